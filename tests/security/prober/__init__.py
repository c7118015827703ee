"""Build and run the prober, a static C program that measures what a process can reach.

The program is built once per source, in a directory below the temporary one that all test processes share.
It needs nothing but a root file system with the mount points that `make_root` makes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from attrs import frozen

from pycontain._security.syscalls import TABLE

SOURCE = Path(__file__).with_name("prober.c")
FLAGS = ("-std=c11", "-static", "-O2", "-Wall", "-Wextra", "-Werror")
PLACES = "proc dev sys etc usr bin lib root home tmp var run srv opt".split()
"""The mount points, and the directories in which the program tries to create a file."""


class CannotBuild(Exception):
    """An error of a host without a C compiler or a static libc."""


@frozen
class Reach:
    """Measured outcomes by axis and key.  prober.c describes the axes."""

    findings: Mapping[str, Mapping[str, str]]

    def axis(self, name: str) -> Mapping[str, str]:
        """Return the findings of an axis; empty where there are none."""
        return self.findings.get(name, MappingProxyType({}))

    def having(self, axis: str, *outcomes: str) -> frozenset[str]:
        """Return the keys of an axis with one of these outcomes, or all keys."""
        return frozenset(
            key for key, outcome in self.axis(axis).items() if not outcomes or outcome in outcomes
        )


def parse(text: str) -> Reach:
    """Parse the program's output.  Raises ValueError if it is incomplete."""
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) != 3:
            raise ValueError(f"the prober said {line!r}")
        axis, key, outcome = fields
        found.setdefault(axis, {})[key] = outcome
    if "end" not in found:
        raise ValueError(f"the prober stopped early, after {text[-200:]!r}")
    return Reach(_by_name(found))


def _by_name(found: dict[str, dict[str, str]]) -> Mapping[str, Mapping[str, str]]:
    """Return the calls by their names on this machine; unnamed ones keep their number."""
    names = {str(number): name for name, number in TABLE.get(platform.machine(), {}).items()}
    calls = {names.get(key, key): outcome for key, outcome in found.get("syscall", {}).items()}
    return MappingProxyType({**found, "syscall": calls})


def build() -> Path:
    """Return the program, compiled if this source has not been yet.  Raises CannotBuild."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise CannotBuild("no C compiler")
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    directory = Path(tempfile.gettempdir(), f"pyc-prober-{os.getuid()}-{key}")
    directory.mkdir(mode=0o755, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.getuid():
        raise CannotBuild(f"{directory} belongs to another user")
    program = directory / "prober"
    if not program.exists():
        _compile(compiler, program)
    return program


def _compile(compiler: str, program: Path) -> None:
    # A name of this process's own, then a rename: test processes side by side never see half a program.
    unfinished = program.with_name(f"unfinished-{os.getpid()}")
    done = subprocess.run(
        [compiler, *FLAGS, str(SOURCE), "-o", str(unfinished)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotBuild(done.stderr.strip()[:500])
    unfinished.chmod(0o755)
    unfinished.rename(program)


def make_root(top: Path) -> Path:
    """Return a root file system at `top` with the program as /prober, which every user may read."""
    for name in PLACES:
        (top / name).mkdir(parents=True)
    shutil.copy(build(), top / "prober")
    for path in (top, *top.iterdir()):
        path.chmod(0o755)
    return top
