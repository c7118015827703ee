"""Fuzz check.c: build the decoders with the best engine that is here, and run them.

Engines: libFuzzer where clang has its runtime, else gcc (or clang) with AddressSanitizer and
standalone.c.  Exit status: 0 clean, 1 a finding, 2 the harness is broken, 77 no compiler with
AddressSanitizer.

PYC_CHECK_C: another check.c to fuzz.  PYC_FUZZ_CLANG, PYC_FUZZ_GCC: the compilers, with options.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent.parent / "src" / "_native"
CORPUS = HERE / "corpus"
SKIPPED = 77

_FLAGS = (
    "-std=gnu11 -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all "
    "-Wall -Wextra -Werror -Wno-missing-field-initializers"
).split()
_SANITIZERS = "address,undefined"
_OPTIONS = {
    "ASAN_OPTIONS": "handle_abort=2:handle_sigill=2:detect_leaks=1:abort_on_error=0:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
}
_FOUND = (1, 77, 99)
"""Exit statuses of sanitizers and libFuzzer after a finding; a replayed one leaves no new file."""
_COUNTS = re.compile(r"^decoders: executions=(\d+) plan=(\d+) security=(\d+) exec=(\d+)$", re.MULTILINE)


class NoCompiler(Exception):
    """No compiler here links AddressSanitizer."""


@dataclass(frozen=True)
class Fuzzer:
    """A built fuzzer: its engine, and what to run."""

    engine: str
    program: Path

    def command(self, arguments: argparse.Namespace, artifacts: Path, fresh: Path) -> list[str]:
        """The command line of a run, or of a replay of the files given."""
        shared = [f"-artifact_prefix={artifacts}/"]
        if arguments.replay:
            return [str(self.program), *shared, *map(str, arguments.replay)]
        shared += [f"-seed={arguments.seed}", f"-max_len={arguments.max_len}"]
        if self.engine == "libfuzzer":
            limits = [f"-max_total_time={arguments.seconds}", "-timeout=20", "-verbosity=0"]
            return [str(self.program), *shared, *limits, "-use_value_profile=1", str(fresh), str(CORPUS)]
        return [str(self.program), *shared, f"-seconds={arguments.seconds}", str(CORPUS)]


def check_source() -> Path:
    """The check.c that is fuzzed."""
    return Path(os.environ.get("PYC_CHECK_C") or NATIVE / "shared" / "check.c")


def _candidates(engine: str) -> list[tuple[str, list[str], list[str]]]:
    """Engine, compiler and what it adds, best first."""
    clang = shlex.split(os.environ.get("PYC_FUZZ_CLANG", "clang"))
    gcc = shlex.split(os.environ.get("PYC_FUZZ_GCC", "gcc"))
    driver = [str(HERE / "standalone.c")]
    every = [
        ("libfuzzer", clang, [f"-fsanitize=fuzzer,{_SANITIZERS}", str(HERE / "libfuzzer.c")]),
        ("standalone", gcc, [f"-fsanitize={_SANITIZERS}", *driver]),
        ("standalone", clang, [f"-fsanitize={_SANITIZERS}", *driver]),
    ]
    return [one for one in every if engine in ("auto", one[0]) and shutil.which(one[1][0])]


def _has_runtime(compiler: list[str], sanitizers: str, into: Path) -> bool:
    """Whether the compiler links a program with these sanitizers, and that program runs."""
    probe, program = into / "probe.c", into / "probe"
    entry = "int LLVMFuzzerTestOneInput (const unsigned char *d, unsigned long n) { return d == 0 && n; }"
    probe.write_text(entry if "fuzzer" in sanitizers else "int main (void) { return 0; }")
    built = subprocess.run(
        [*compiler, sanitizers, "-o", str(program), str(probe)], capture_output=True, check=False
    )
    if built.returncode:
        return False
    return subprocess.run([str(program), "-runs=1"], capture_output=True, check=False).returncode == 0


def build(into: Path, engine: str = "auto") -> Fuzzer:
    """Build with the first compiler that has the runtime.  Raises NoCompiler, CalledProcessError."""
    for name, compiler, added in _candidates(engine):
        if not _has_runtime(compiler, added[0], into):
            continue
        program = into / f"decoders-{name}"
        include = [f"-I{NATIVE / 'include'}", f"-I{HERE}"]
        sources = [str(HERE / "decoders.c"), str(HERE / "mutate.c"), str(check_source())]
        subprocess.run([*compiler, *_FLAGS, *added, *include, *sources, "-o", str(program)], check=True)
        return Fuzzer(name, program)
    raise NoCompiler(
        "no compiler with the AddressSanitizer runtime (gcc with libasan, or clang with its own)"
    )


def _report(fuzzer: Fuzzer, done: subprocess.CompletedProcess[str], elapsed: float, found: list[Path]) -> int:
    counts = _COUNTS.search(done.stderr)
    executions, *accepted = map(int, counts.groups()) if counts else (0, 0, 0, 0)
    corpus = re.search(r"^corpus: .*$", done.stderr, re.MULTILINE)
    print(f"fuzz: engine {fuzzer.engine}, {check_source()}")
    if corpus:
        print(f"fuzz: {corpus.group()}")
    print(
        f"fuzz: executions={executions} accepted={sum(accepted)} plan={accepted[0]} security={accepted[1]} "
        f"exec={accepted[2]} seconds={elapsed:.1f}"
    )
    if done.returncode == 0 and executions:
        print("fuzz: clean")
        return 0
    print(done.stderr, file=sys.stderr)
    for path in found:
        print(f"fuzz: FINDING: replay with {Path(__file__).name} --replay {path}")
    if found or done.returncode in _FOUND:
        return 1
    print(f"fuzz: the fuzzer ended with {done.returncode}", file=sys.stderr)
    return 2


def _keep(findings: Path, kept: Path) -> list[Path]:
    """Copy findings to where they outlive this run."""
    copies = []
    for path in sorted(findings.iterdir()):
        kept.mkdir(parents=True, exist_ok=True)
        copies.append(Path(shutil.copy(path, kept)))
    return copies


def main() -> int:
    """Build, run, report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-len", type=int, default=4096)
    parser.add_argument("--engine", choices=("auto", "libfuzzer", "standalone"), default="auto")
    parser.add_argument("--artifacts", type=Path, help="where findings are kept")
    parser.add_argument("--replay", type=Path, nargs="+", help="execute these files and nothing else")
    arguments = parser.parse_args()
    artifacts: Path = arguments.artifacts or Path(tempfile.gettempdir()) / f"pyc-fuzz-{os.getuid()}"
    with tempfile.TemporaryDirectory(prefix="pyc-fuzz-") as directory:
        top = Path(directory)
        try:
            fuzzer = build(top, arguments.engine)
        except NoCompiler as error:
            print(f"fuzz: skipped: {error}")
            return SKIPPED
        except subprocess.CalledProcessError:
            return 2
        for path in (findings := top / "findings", fresh := top / "fresh"):
            path.mkdir()
        begun = time.monotonic()
        done = subprocess.run(
            fuzzer.command(arguments, findings, fresh),
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, **_OPTIONS},
        )
        elapsed = time.monotonic() - begun
        return _report(fuzzer, done, elapsed, _keep(findings, artifacts))


if __name__ == "__main__":
    sys.exit(main())
