"""One batch of file operations on cgroups, in which each limit is known by its name."""

from __future__ import annotations

import errno
import os

from pycontain._cgroups.detect import write
from pycontain._kernel import files
from pycontain.errors import LimitError, UnsupportedError


class Steps:
    """One batch of file operations, and what each limit among them is called."""

    def __init__(self) -> None:
        self._codes: list[bytes] = []
        self._last: list[bytes] = []
        self._limits: dict[int, tuple[str, str, str]] = {}

    def do(self, code: bytes) -> None:
        """Something that has to succeed."""
        self._codes.append(code)

    def finally_do(self, code: bytes) -> None:
        """Something to open, when the rest is done."""
        self._last.append(code)

    def make(self, controller: str, path: str) -> None:
        """A group of this controller."""
        self.do(files.mkdir(path))
        if controller == "cpuset":  # it takes nobody in before it has its sets
            for name in ("cpuset.cpus", "cpuset.mems"):
                self.do(files.write(f"{path}/{name}", _inherited(path, name)))

    def limit(self, directory: str, limits: dict[str, list[str]]) -> None:
        """The files of one controller's limits."""
        for name, texts in limits.items():
            for text in texts:
                self._limits[len(self._codes)] = (directory, name, text)
                self.do(files.write(f"{directory}/{name}", text))

    def merge(self, other: Steps) -> None:
        """Another batch's operations behind these; limits of its are not told apart any more."""
        self._codes += other._codes
        self._last += other._last

    def below(self, parents: list[str], first: int = 0) -> bytes:
        """All of it by place of an fd and path below: what a launcher, without these mounts, can do."""
        prefixes = [os.fsencode(parent) + b"/" for parent in parents]
        parts = []
        for code in (*self._codes, *self._last):
            place = next(at for at, prefix in enumerate(prefixes) if code.startswith(prefix, 1))
            parts.append(code[:1] + bytes([first + place]) + code[1 + len(prefixes[place]) :])
        return b"".join(parts)

    @property
    def script(self) -> bytes:
        """All of it, for who needs no name for a limit that is refused."""
        return b"".join([*self._codes, *self._last])

    def run(self) -> list[int]:
        """Do it all; what was opened.  Raises LimitError, UnsupportedError, OSError."""
        at = 0
        while True:
            try:
                return files.run([*self._codes[at:], *self._last]).fds
            except files.Failed as error:
                at += error.done
                if at not in self._limits:
                    raise
                directory, name, text = self._limits[at]
                if error.errno != errno.ENOENT:
                    raise LimitError(f"the kernel refused {name} = {text}: {error.strerror}") from error
                _replace_missing(directory, name)
                at += 1


def _inherited(path: str, name: str) -> str:
    """What the nearest group above that exists already has."""
    parent = os.path.dirname(path)
    while not os.path.exists(f"{parent}/{name}"):
        parent = os.path.dirname(parent)
    with open(f"{parent}/{name}", encoding="ascii") as file:
        return file.read().strip()


def _replace_missing(directory: str, name: str) -> None:
    # Without swap accounting there is no swap limit to write, and none is needed where memory is the bound.
    if name == "memory.swap.max":
        return
    if name == "memory.memsw.limit_in_bytes":
        write(f"{directory}/memory.swappiness", "0")
        return
    raise UnsupportedError(f"the limit {name}", hint="this kernel has no such file")
