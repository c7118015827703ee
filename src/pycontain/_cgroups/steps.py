"""Batches of file operations on cgroups, whose errors name the limit that the kernel refused."""

from __future__ import annotations

import errno
import os

from pycontain._cgroups.layout import write
from pycontain._kernel import files
from pycontain.errors import LimitError, UnsupportedError


class Steps:
    """A batch of file operations, with the names of the limits among them."""

    def __init__(self) -> None:
        self._codes: list[bytes] = []
        self._last: list[bytes] = []
        self._limits: dict[int, tuple[str, str, str]] = {}

    def do(self, code: bytes) -> None:
        """Add an operation, which has to succeed."""
        self._codes.append(code)

    def finally_do(self, code: bytes) -> None:
        """Add an operation that opens a file after all others are done."""
        self._last.append(code)

    def make(self, controller: str, path: str) -> None:
        """Add the operations that make a group of this controller."""
        self.do(files.mkdir(path))
        if controller == "cpuset":  # no process can enter the group before both files are set
            for name in ("cpuset.cpus", "cpuset.mems"):
                self.do(files.write(f"{path}/{name}", _inherited(path, name)))

    def limit(self, directory: str, limits: dict[str, list[str]]) -> None:
        """Add the writes of one controller's limits, `{file: [text, ...]}`."""
        for name, texts in limits.items():
            for text in texts:
                self._limits[len(self._codes)] = (directory, name, text)
                self.do(files.write(f"{directory}/{name}", text))

    def merge(self, other: Steps) -> None:
        """Append another batch's operations, without the names of its limits."""
        self._codes += other._codes
        self._last += other._last

    def below(self, parents: list[str], first: int = 0) -> bytes:
        """Return the script with every path relative to a directory descriptor.

        A launcher runs it, which does not have the mounts of cgroups.

        Args:
            parents: The directories, in the order in which their descriptors are sent.
            first: The position of the first of them among all descriptors that are sent.
        """
        prefixes = [os.fsencode(parent) + b"/" for parent in parents]
        parts = []
        for code in (*self._codes, *self._last):
            place = next(at for at, prefix in enumerate(prefixes) if code.startswith(prefix, 1))
            parts.append(code[:1] + bytes([first + place]) + code[1 + len(prefixes[place]) :])
        return b"".join(parts)

    @property
    def script(self) -> bytes:
        """The whole script, for callers that do not name a refused limit."""
        return b"".join([*self._codes, *self._last])

    def run(self) -> list[int]:
        """Run the batch.

        Returns:
            The descriptors that were opened.

        Raises:
            LimitError: The kernel refused a value.
            UnsupportedError: The kernel has no file for a limit.
            OSError: Another operation failed.
        """
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


def make_missing(controller: str, path: str) -> None:
    """Make a group unless it exists, with mode 0755 under any umask: containers look up their own below it.

    Raises:
        OSError: The group cannot be made.
    """
    steps = Steps()
    steps.make(controller, path)
    try:
        steps.run()
    except files.Failed as error:
        if error.errno != errno.EEXIST:
            raise


def _inherited(path: str, name: str) -> str:
    """Return the content of a file in the nearest group above that exists."""
    parent = os.path.dirname(path)
    while not os.path.exists(f"{parent}/{name}"):
        parent = os.path.dirname(parent)
    with open(f"{parent}/{name}", encoding="ascii") as file:
        return file.read().strip()


def _replace_missing(directory: str, name: str) -> None:
    # A kernel without swap accounting has no file for a swap limit; on v1 swappiness 0 keeps the group
    # from swapping.
    if name == "memory.swap.max":
        return
    if name == "memory.memsw.limit_in_bytes":
        write(f"{directory}/memory.swappiness", "0")
        return
    raise UnsupportedError(f"the limit {name}", hint="leave the limit out: this kernel has no such file")
