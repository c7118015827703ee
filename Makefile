# pycontain: `make demo` and `make test` on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
STAMP := $(VENV)/.installed
NATIVE := $(shell find src/_native -name '*.[ch]' -o -name '*.cdef' -o -name 'build_ffi.py')

.PHONY: help demo check test test-all bench lint types c-check docs unit kernel security rootless guest fuzz e2e packages together wheel clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.packages: pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'setuptools>=77' 'cffi>=1.17'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[dev]'
	touch $@

# A change of C builds the extension in place, in a fifth of the time that pip takes. By force, for setuptools
# compares only the extension's own sources and misses the programs that are embedded in it.
$(STAMP): $(VENV)/.packages $(NATIVE)
	$(BIN)/python -W ignore setup.py -q build_ext --inplace --force
	touch $@

demo: ## sandbox untrusted Python with a memory limit, as root or not
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -e $(STAMP) || $(BIN)/pip install --quiet --disable-pip-version-check .
	$(BIN)/python examples/demo.py

packages:
	@tests/packages.sh

lint: $(STAMP) ## ruff, formatting of Python and C
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.c %.h,$(NATIVE))

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

c-check: $(STAMP) ## warnings as errors, gcc -fanalyzer, the aarch64 compiler where there is one
	$(BIN)/python tests/native/check.py
	$(BIN)/python -m pytest tests/native -q

unit: $(STAMP)
	$(BIN)/python -m pytest tests/unit $(wildcard tests/test_*.py) -n $(JOBS) -q

kernel: $(STAMP)
	$(BIN)/python -m pytest tests/kernel tests/security -n $(JOBS) -q --dist loadgroup

security: $(STAMP) ## every security case, root and rootless, and its table in docs; under an hour
	$(BIN)/python -m tests.security.report
	$(BIN)/python -m tests.security.inject

rootless: $(STAMP) ## the kernel tests again as unprivileged users, with and without sub-ids
	$(BIN)/python tests/rootless/run.py

guest: $(STAMP) ## the kernel tests again on cgroup v2, in user-mode-linux
	$(BIN)/python tests/guest/suite.py

fuzz: $(STAMP) ## the decoders under ASan, live agent and launcher under random messages; PYC_FUZZ_SECONDS
	$(BIN)/python -m pytest tests/fuzz -q

e2e: $(STAMP) ## the demo, the wheel and the sdist as a user meets them
	$(BIN)/python -m pytest tests/e2e -q

check: lint types unit ## lint, types and unit tests: under two minutes

test: packages check c-check kernel ## check, the C compilers, and the kernel and security tests as this user
	@echo "make test: passed"

test-all: packages rootless ## the long suites: rootless users, the cgroup v2 guest, fuzz, end to end
	@$(MAKE) --no-print-directory -j2 --output-sync=target guest together
	@echo "make test-all: passed"

# The guest is one thread that is idle half of the time, so the others run beside it.
together: fuzz
	@$(MAKE) --no-print-directory e2e

bench: $(STAMP) ## measure against the floor and the peers; benchmarks/results
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[bench]'
	$(MAKE) -s -C benchmarks/native
	$(BIN)/python -m benchmarks

docs: ## build docs/_build/html
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m sphinx -W -b html docs docs/_build/html

wheel: $(STAMP) ## build wheel and sdist into dist/
	$(BIN)/python -m build

clean:
	rm -rf build dist $(VENV) docs/_build src/pycontain/_kernel/*.so
