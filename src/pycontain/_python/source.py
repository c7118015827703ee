"""The bytes of an answer, and the errors of those who read it."""

from __future__ import annotations

import os
from collections.abc import Iterable


class Malformed(ValueError):
    """No answer that the writer could have given."""


class TooLarge(Malformed):
    """An answer that takes too much memory when it is read."""


class Source:
    """The bytes of an answer, in memory or in a file, read once and in order."""

    def __init__(self, data: bytes | int, start: int = 0, size: int | None = None) -> None:
        """Read `size` bytes from `start` on, of bytes or of a descriptor; all bytes without a size."""
        self._data = data
        self._at = start
        self.left = size if size is not None else len(data) if isinstance(data, bytes) else 0
        self.size = self.left

    def _advance(self, count: int) -> int:
        if not 0 <= count <= self.left:
            raise Malformed("it ends too early")
        at = self._at
        self._at, self.left = at + count, self.left - count
        return at

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        at = self._advance(count)
        if isinstance(self._data, bytes):
            return self._data[at : at + count]
        data = os.pread(self._data, count, at)
        if len(data) != count:
            raise Malformed("it ends too early")
        return data

    def fill(self, view: memoryview) -> None:
        """Read the next bytes into memory that is there."""
        at = self._advance(view.nbytes)
        if isinstance(self._data, bytes):
            view[:] = memoryview(self._data)[at : at + view.nbytes]
            return
        done = 0
        while done < view.nbytes:
            count = os.preadv(self._data, [view[done:]], at + done)
            if count == 0:
                raise Malformed("it ends too early")
            done += count


def printable(text: str) -> str:
    """Return a guest's text fit for a terminal: control characters but newline and tab as escapes."""
    return "".join(_escaped(text))


def _escaped(text: str) -> Iterable[str]:
    for one in text:
        if one in "\n\t" or one.isprintable():
            yield one
        else:
            yield one.encode("unicode_escape").decode()
