"""Layout rules: direction of imports, size of modules, forbidden module names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "pycontain"
MODULES = sorted(PACKAGE.rglob("*.py"))

ROOMS = [
    {"errors", "_model"},
    {"oci"},
    {"_kernel", "_state"},
    {"_cgroups", "_security", "_rootfs", "_registry"},
    {"_images"},
    {"_volumes", "_networks"},
    {"_runtime"},
    {"_python"},
    {"_objects", "lowlevel"},
    {"executor"},
    {"__init__"},
    {"__main__"},
]
"""Rooms from the bottom up: each may import itself and those below."""

FORBIDDEN = {"utils", "common", "helpers", "misc", "util", "helper"}


def _level(room: str) -> int:
    return next(at for at, rooms in enumerate(ROOMS) if room in rooms)


def _room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """Return the rooms that a module imports, also late or for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("pycontain."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    level = _level(_room(path))
    for room in _imports(path):
        assert _level(room) <= level, f"{path.name} imports {room} above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_small_and_named(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
    assert path.stem not in FORBIDDEN


def test_runtime_uses_a_session_instead_of_an_engine() -> None:
    for path in (PACKAGE / "_runtime").glob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"Engine", "Container"}, path


def test_engine_has_only_the_documented_members() -> None:
    from pycontain import Engine

    public = {name for name in vars(Engine) if not name.startswith("_")}
    assert public == {
        *("images", "containers", "networks", "volumes"),
        *("prune", "fsck", "info", "doctor", "sweep", "settle", "kill_all", "close"),
    }
    with Engine() as engine:
        assert {name for name in vars(engine) if not name.startswith("_")} == set()


def test_sql_is_only_in_the_room_of_the_records() -> None:
    statement = re.compile(r"""["'](SELECT|INSERT|UPDATE|DELETE FROM|CREATE TABLE) """)
    found = [path for path in MODULES if statement.search(path.read_text())]
    assert found
    assert {_room(path) for path in found} == {"_state"}


def test_c_files_are_small() -> None:
    for path in (ROOT / "src" / "_native").rglob("*.[ch]"):
        assert len(path.read_text().splitlines()) <= 500, path


def test_import_loads_only_the_standard_library_attrs_and_the_extension() -> None:
    # concurrent.futures, which an executor is for, imports logging.
    executors = ("SandboxExecutor", "sandboxed")
    everything = f"[getattr(pycontain, name) for name in pycontain.__all__ if name not in {executors}]"
    code = f"import sys; import pycontain; {everything}; print('\\n'.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    known = set(sys.stdlib_module_names) | {"__main__", "pycontain", "attr", "attrs", "_cffi_backend", "_ffi"}
    foreign = {
        name
        for name in loaded - known
        if not name.startswith(("__editable__", "_distutils", "sitecustomize"))
    }
    assert not foreign
    for heavy in ("sqlite3", "urllib", "asyncio", "tarfile", "ssl", "logging"):
        assert heavy not in loaded, heavy


def test_every_export_exists() -> None:
    import pycontain

    for name in pycontain.__all__:
        assert getattr(pycontain, name) is not None
        if isinstance(getattr(pycontain, name), type):
            assert getattr(pycontain, name).__doc__, name
