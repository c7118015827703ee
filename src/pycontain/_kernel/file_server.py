"""The files server of one container: a confined process that walks the guest's paths, and how to ask it."""

from __future__ import annotations

import os
import struct
import threading
from enum import IntEnum

from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import request
from pycontain._kernel.unpacker import User

_FILES, _FILE = 14, 15
_BODY = struct.Struct("<IIIIIIIIII64I4q")
_LANDLOCK = 1
_LANDLOCK_FROM = 3
UTIME_NOW = 0x3FFFFFFF
SET_OWNER, SET_MODE, SET_TIMES = 1, 2, 4
UNCHANGED = 0xFFFFFFFF
"""An owner that stays as it is."""


class Verb(IntEnum):
    """What can be asked (files.h)."""

    OPEN = 1
    MKDIR = 2
    UNLINK = 3
    RMDIR = 4
    RENAME = 5
    SYMLINK = 6
    LINK = 7
    SET = 8


class FileServer:
    """A files server: root in the user namespace of the process behind `pidfd`, with `root` as its root.

    Both fds stay the caller's.  Many threads may ask, one after the other.  Raises OSError.
    """

    def __init__(self, root: int, pidfd: int, *, landlock: int) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._launcher = Launcher(files=True)
        try:
            flags = (landlock >= _LANDLOCK_FROM) * _LANDLOCK
            native.send(self._launcher.socket, request(_FILES, flags=flags), [root, pidfd])
            record = native.receive_uninterrupted(self._launcher.socket)
            if record is None:
                raise ConnectionResetError("the files server is gone")
            if record.errno:
                raise OSError(record.errno, os.strerror(record.errno), "files server")
        except BaseException:
            self.close()
            raise

    @property
    def pid_fd(self) -> int:
        """The pidfd of the server."""
        return self._launcher.pidfd

    def ask(
        self,
        verb: Verb,
        path: bytes,
        second: bytes = b"",
        *,
        flags: int = 0,
        mode: int = 0,
        user: User = (0, 0, ()),
        owner: tuple[int, int] = (0, 0),
        change: int = 0,
        times: tuple[int, int, int, int] = (0, 0, 0, 0),
        fd: int = -1,
    ) -> int:
        """Have it done; the fd that OPEN gives, or -1.

        user: with whose rights, and the owner of what is created.  owner: for SET.  path, second: without
        NUL.  times: seconds and nanoseconds of access and change.  fd: what SET is
        about, instead of the path.  Raises OSError as the kernel has it, BrokenPipeError where the server
        is gone and nothing was done, ConnectionResetError where that is not known.
        """
        uid, gid, groups = user
        numbers = (verb, flags & 0xFFFFFFFF, mode, uid, gid, *owner, change, len(groups), 0)
        body = _BODY.pack(*numbers, *groups, *(0,) * (64 - len(groups)), *times)
        with self._lock:
            self._number = (self._number + 1) & 0x7FFFFFFF
            message = request(_FILE, body + path + b"\0" + second + b"\0", number=self._number)
            native.send(self._launcher.socket, message, [fd] if fd >= 0 else [])
            record = self._hear()
        if record.errno:
            raise OSError(record.errno, os.strerror(record.errno))
        return record.fd

    def _hear(self) -> native.Record:
        """The answer to the last question: one that an interrupt kept somebody from hearing is let go."""
        while (record := native.receive_uninterrupted(self._launcher.socket)) is not None:
            if record.op == self._number:
                return record
            if record.fd >= 0:
                os.close(record.fd)
        raise ConnectionResetError("the files server is gone")

    def close(self) -> None:
        """End it and wait until it is gone.  Idempotent."""
        self._launcher.kill()  # without the lock: who waits for an answer hears of its end
        with self._lock:
            self._launcher.close()

    def forget(self) -> None:
        """For a forked child: close the fds alone."""
        self._launcher.close()
