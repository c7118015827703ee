"""The file server of a container: a confined process that resolves the guest's paths."""

from __future__ import annotations

import os
import threading
from enum import IntEnum

from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import RequestKind, structure
from pycontain._kernel.unpacker import LANDLOCK_LEAST, User, padded_groups

_BODY = structure(
    "pc_file_request",
    "verb flags mode uid gid owner_uid owner_gid set group_count groups times",
    without="request",
)
_GONE = "the file server has ended"
UTIME_NOW: int = native.lib.UTIME_NOW
"""Nanoseconds that stand for the current time (utimensat(2))."""
UNCHANGED = 0xFFFFFFFF
"""An owner that is left as it is (chown(2): -1)."""


SET_OWNER: int = native.lib.PC_FILE_SET_OWNER
SET_MODE: int = native.lib.PC_FILE_SET_MODE
SET_TIMES: int = native.lib.PC_FILE_SET_TIMES
"""The attributes that Verb.SET changes (files.h)."""


class Verb(IntEnum):
    """The operations of the file server (enum pc_file_verb)."""

    OPEN = native.lib.PC_FILE_OPEN
    MKDIR = native.lib.PC_FILE_MKDIR
    UNLINK = native.lib.PC_FILE_UNLINK
    RMDIR = native.lib.PC_FILE_RMDIR
    RENAME = native.lib.PC_FILE_RENAME
    SYMLINK = native.lib.PC_FILE_SYMLINK
    LINK = native.lib.PC_FILE_LINK
    SET = native.lib.PC_FILE_SET


class FileServer:
    """A file server: root in a container's user namespace, confined to the container's files.

    Threads may use it at the same time; their requests are served one after the other.

    Args:
        root: The root directory of the container; the descriptor remains the caller's.
        pidfd: A process in the container's user namespace; the descriptor remains the caller's.
        landlock: The Landlock ABI of the kernel.

    Raises:
        StartError: The process could not be started.
        OSError: It could not confine itself.
    """

    def __init__(self, root: int, pidfd: int, *, landlock: int) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._launcher = Launcher(files=True)
        try:
            flags = native.lib.PC_FILES_LANDLOCK if landlock >= LANDLOCK_LEAST else 0
            native.send(self._launcher.socket, request(RequestKind.FILES, flags=flags), [root, pidfd])
            record = native.receive_uninterrupted(self._launcher.socket)
            if record is None:
                raise ConnectionResetError(_GONE)
            if record.errno:
                raise OSError(record.errno, os.strerror(record.errno), "file server")
        except BaseException:
            self.close()
            raise

    @property
    def pid_fd(self) -> int:
        """The pidfd of the process."""
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
        """Perform an operation.

        Args:
            verb: The operation.
            path: A path of the container, without NUL.
            second: The other path of RENAME and LINK, or the content of SYMLINK, without NUL.
            flags: Of open(2) for OPEN, of renameat2(2) for RENAME.
            mode: The mode of a new file, or the one to set.
            user: The user of the container who acts and owns new files.
            owner: The uid and gid to set; UNCHANGED leaves one as it is.
            change: The attributes to set, of SET_OWNER, SET_MODE and SET_TIMES.
            times: Seconds and nanoseconds of access, then of modification.
            fd: The file whose attributes to set, instead of the path.

        Returns:
            The descriptor of an opened file, or -1.

        Raises:
            OSError: The kernel refused the operation.
            BrokenPipeError: The server had ended; the operation was not done.
            ConnectionResetError: The server ended meanwhile; the operation may have been done.
        """
        uid, gid, groups = user
        numbers = (verb, flags & 0xFFFFFFFF, mode, uid, gid, *owner, change, len(groups))
        body = _BODY.pack(*numbers, *padded_groups(groups), *times)
        with self._lock:
            self._number = (self._number + 1) & 0x7FFFFFFF
            message = request(RequestKind.FILE, body + path + b"\0" + second + b"\0", number=self._number)
            native.send(self._launcher.socket, message, [fd] if fd >= 0 else [])
            record = self._receive()
        if record.errno:
            raise OSError(record.errno, os.strerror(record.errno))
        return record.fd

    def _receive(self) -> native.Record:
        """Return the answer to the last request; discard answers whose callers were interrupted."""
        while (record := native.receive_uninterrupted(self._launcher.socket)) is not None:
            if record.op == self._number:
                return record
            if record.fd >= 0:
                os.close(record.fd)
        raise ConnectionResetError(_GONE)

    def close(self) -> None:
        """Kill the process and wait for its end.  Idempotent."""
        self._launcher.kill()  # without the lock, which a thread holds that waits for an answer
        with self._lock:
            self._launcher.close()

    def forget(self) -> None:
        """Close the descriptors only, in a forked child."""
        self._launcher.close()
