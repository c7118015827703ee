"""Many small operations on small files in one call of C, without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Sequence

from attrs import frozen

from pycontain._kernel import native


def mkdir(path: str) -> bytes:
    """Make a directory, mode 0755 whatever the umask is."""
    return b"m" + os.fsencode(path) + b"\0"


def mkdir_private(path: str) -> bytes:
    """Make a directory, mode 0700."""
    return b"p" + os.fsencode(path) + b"\0"


def own(path: str, owner: int) -> bytes:
    """Give `path` to the user and group of this number."""
    return b"c" + os.fsencode(path) + b"\0%d\0" % owner


def write(path: str, text: str) -> bytes:
    """One write(2) to a file that exists."""
    return b"w" + os.fsencode(path) + b"\0" + text.encode() + b"\0"


def open_directory(path: str) -> bytes:
    """Open a directory and keep it."""
    return b"d" + os.fsencode(path) + b"\0"


def open_to_write(path: str) -> bytes:
    """Open a file for writing and keep it."""
    return b"t" + os.fsencode(path) + b"\0"


def read(path: str) -> bytes:
    """Read a file's beginning; empty where it cannot be read."""
    return b"r" + os.fsencode(path) + b"\0"


@frozen
class Done:
    """fds that were kept, and texts that were read, in order."""

    fds: list[int]
    texts: list[bytes]


class Failed(OSError):
    """An operation failed; those before it, `done` in number, are done, and nothing is kept open."""

    def __init__(self, errno: int, done: int) -> None:
        super().__init__(errno, os.strerror(errno))
        self.done = done


def run(script: bytes | Sequence[bytes]) -> Done:
    """Do every operation in turn.  Raises Failed at the first that fails."""
    code = script if isinstance(script, bytes) else b"".join(script)
    files = native.ffi.new("struct pcx_files *")
    try:
        result = native.lib.pcx_run_files(code, len(code), files)
        fds = native.ffi.unpack(files.fds, files.fd_count) if files.fd_count else []
        size = files.text_size
        texts = native.ffi.buffer(files.text, size)[:-1].split(b"\0") if size else []
    except BaseException:  # a signal handler's, when all was done
        for at in range(files.fd_count):
            os.close(files.fds[at])
        raise
    if result < 0:
        raise Failed(-result, files.done)
    return Done(fds, texts)
