"""Builds of the helper with one control switched off.  They live in a temporary directory, never in a wheel.

`run(weakness, "module:function", ...)` runs an attack of this package in a subprocess that loads such
a build, and returns its result.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

ROOT = Path(__file__).resolve().parent.parent.parent
_EXTENSION = "pycontain._kernel._ffi"


@frozen
class Edit:
    """An edit of one file below src/_native: a text and its replacement."""

    file: str
    old: str
    new: str


_OPEN_FDS = (
    Edit("shared/wire.c", "flags | MSG_CMSG_CLOEXEC_", "flags"),
    Edit("agent/exec.c", "|| (error = pc_close_all_but (&channel, 1)) < 0)", "|| 0)"),
    Edit(
        "shared/fds.c",
        "return (int) sys_close_range (3, ~0u, CLOSE",
        "return (int) sys_close_range (~0u, ~0u, CLOSE",
    ),
)
_DUMPABLE = (
    Edit("agent/main.c", "sys_prctl (PR_SET_DUMPABLE, 0, 0);", ""),
    Edit("ext/start.c", "MFD_EXEC, 0111));", "MFD_EXEC, 0));"),
)
_MAGIC_LINKS = (
    Edit(
        "shared/exec.c",
        ".resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,",
        ".resolve = 0,",
    ),
)

WEAKNESSES: Mapping[str, tuple[Edit, ...]] = {
    "none": (),
    "writable-layers": (
        Edit("helper/spawn/replace_root.c", "CHECK (PC_STEP_SEAL, set_access (security, &root, 1));", ""),
    ),
    "open-fds": _OPEN_FDS,
    "dumpable": _DUMPABLE,
    "unsealed": (
        *_DUMPABLE,
        Edit("ext/start.c", "F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)", "F_SEAL_SHRINK)"),
    ),
    "magic-links": (*_MAGIC_LINKS, *_OPEN_FDS),
    "links": (
        Edit(
            "helper/root/path.c",
            ".resolve = nofollow ? RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS\n"
            "                        : RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,",
            ".resolve = nofollow ? 0 : 0,",
        ),
    ),
    "terminal": (
        Edit("ext/start.c", "  syscall (SYS_setsid);\n", ""),
        Edit("agent/exec.c", "if ((error = sys_setsid ()) < 0)", "if ((error = 0) < 0)"),
    ),
    "unpacker": (
        Edit("helper/archive/beneath.c", ".resolve = RESOLVE_IN_ROOT | resolve,", ".resolve = resolve & 0,"),
        Edit("helper/archive/tree.c", "if ((size == 2 && name[0] == '.' && name[1] == '.') ||", "if ("),
        Edit("helper/archive/entry.c", "if (size == 2 && link[0] == '.' && link[1] == '.')", "if (0)"),
        Edit("helper/sandbox.c", 'error = sys_chroot (".");', "error = 0;"),
        Edit("helper/sandbox.c", 'error = sys_chdir ("/");', "error = 0;"),
        Edit("helper/sandbox.c", "if (error == 0 && landlock)", "if (error == 0 && landlock == 2)"),
        Edit("helper/archive/unpack.c", 'sys_openat (AT_FDCWD_, "/",', 'sys_openat (AT_FDCWD_, ".",'),
    ),
    "groups": (
        Edit("shared/exec.c", "error = sys_setgroups (exec->", "error = raw2 (__NR_geteuid, exec->"),
        Edit("helper/spawn/child.c", "word error = sys_setgroups (0, 0);", "word error = 0;"),
    ),
}
"""Disabled controls by name."""


def build(weakness: str) -> Path:
    """Return the extension with this weakness, made once per state of the sources.

    PYC_WEAK names a directory of those that `build_all` made: for users who have no compiler's headers.
    """
    if ready := os.environ.get("PYC_WEAK"):
        return Path(ready) / f"{weakness}.so"
    edits = WEAKNESSES[weakness]
    state = hashlib.sha256(repr(edits).encode())
    for path in sorted((ROOT / "src" / "_native").rglob("*")):
        if path.is_file():
            state.update(path.read_bytes())
    home = Path(tempfile.gettempdir()) / f"pyc-weak-{os.getuid()}-{state.hexdigest()[:16]}"
    if not home.exists():
        fresh = Path(tempfile.mkdtemp(prefix="pyc-weak-"))
        _make(fresh, edits)
        try:
            fresh.rename(home)
        except OSError:  # another was faster
            shutil.rmtree(fresh)
    (found,) = (home / "pycontain" / "_kernel").glob("_ffi*.so")
    return found


def build_all(directory: Path) -> None:
    """Build all weaknesses in a directory that other users can read."""
    directory.mkdir(mode=0o755, exist_ok=True)
    for weakness in WEAKNESSES:
        shutil.copy(build(weakness), directory / f"{weakness}.so")


def _make(home: Path, edits: tuple[Edit, ...]) -> None:
    shutil.copytree(ROOT / "src" / "_native", home / "src" / "_native")
    for edit in edits:
        path = home / "src" / "_native" / edit.file
        text = path.read_text()
        if edit.old not in text:
            raise LookupError(f"{edit.file} has no {edit.old!r} any more: bring the weakness up to date")
        path.write_text(text.replace(edit.old, edit.new))
    command = [sys.executable, "src/_native/ext/build_ffi.py"]
    subprocess.run(command, cwd=home, check=True, capture_output=True)


def run(weakness: str, attack: str, *arguments: Any) -> Any:
    """Return the finding of the attack `module:function` of this package with this control off."""
    command = [
        sys.executable,
        "-m",
        "tests.security.weak",
        str(build(weakness)),
        attack,
        json.dumps(arguments),
    ]
    with tempfile.TemporaryDirectory(prefix="pyc-weak-root-") as root:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYCONTAIN_ROOT": root},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    if done.returncode:
        raise RuntimeError(f"{attack} with {weakness}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def load(extension: str) -> None:
    """Make the package use this build of its extension.  Call it before the import."""
    spec = importlib.util.spec_from_file_location(_EXTENSION, extension)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_EXTENSION] = module


def _main(extension: str, attack: str, arguments: str) -> None:
    load(extension)
    where, _, what = attack.partition(":")
    found = getattr(importlib.import_module(where), what)(*json.loads(arguments))
    print(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
