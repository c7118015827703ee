"""Batches of small file operations, executed by one call of C without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Sequence

from attrs import frozen

from pycontain._kernel import native


def mkdir(path: str) -> bytes:
    """Return the operation that makes a directory with mode 0755, whatever the umask is."""
    return b"m" + os.fsencode(path) + b"\0"


def mkdir_private(path: str) -> bytes:
    """Return the operation that makes a directory with mode 0700."""
    return b"p" + os.fsencode(path) + b"\0"


def own(path: str, owner: int) -> bytes:
    """Return the operation that changes the owner and group of a path to an id."""
    return b"c" + os.fsencode(path) + b"\0%d\0" % owner


def write(path: str, text: str) -> bytes:
    """Return the operation that writes text to an existing file by one write(2)."""
    return b"w" + os.fsencode(path) + b"\0" + text.encode() + b"\0"


def open_directory(path: str) -> bytes:
    """Return the operation that opens a directory and keeps it open."""
    return b"d" + os.fsencode(path) + b"\0"


def open_to_write(path: str) -> bytes:
    """Return the operation that opens a file for writing and keeps it open."""
    return b"t" + os.fsencode(path) + b"\0"


def read(path: str) -> bytes:
    """Return the operation that reads a file's beginning; it gives no text if that fails."""
    return b"r" + os.fsencode(path) + b"\0"


@frozen
class Done:
    """The opened descriptors and the texts that were read, in the order of the operations."""

    fds: list[int]
    texts: list[bytes]


class Failed(OSError):
    """The error of the first operation that failed; the descriptors of the others are closed.

    Attributes:
        done: The number of operations that succeeded before it.
    """

    def __init__(self, errno: int, done: int) -> None:
        super().__init__(errno, os.strerror(errno))
        self.done = done


def run(script: bytes | Sequence[bytes]) -> Done:
    """Execute operations in order.  Raises Failed for the first that fails."""
    code = script if isinstance(script, bytes) else b"".join(script)
    files = native.ffi.new("struct pcx_files *")
    try:
        result = native.lib.pcx_run_files(code, len(code), files)
        fds = native.ffi.unpack(files.fds, files.fd_count) if files.fd_count else []
        size = files.text_size
        texts = native.ffi.buffer(files.text, size)[:-1].split(b"\0") if size else []
    except BaseException:  # a signal handler may raise after the call
        for at in range(files.fd_count):
            os.close(files.fds[at])
        raise
    if result < 0:
        raise Failed(-result, files.done)
    return Done(fds, texts)
