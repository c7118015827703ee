"""Locks between processes by flock(2), with the holder named; the kernel releases them with their holder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator

from pycontain.errors import Conflict

PATIENCE = 1800.0
"""Seconds to wait for work of another process: a whole image from a slow registry."""
BRIEF = 30.0
"""Seconds to wait for a lock that every holder releases within milliseconds."""
_NOTICE = 10.0
"""Seconds after which a wait is logged, with the holder."""
_FIRST_PAUSE, _LAST_PAUSE = 0.002, 0.05


class _Wait:
    """Pauses between attempts to take a lock, up to a bound."""

    def __init__(self, path: str, patience: float | None) -> None:
        self._path, self._patience = path, patience
        self._begun = time.monotonic()
        self._pause = _FIRST_PAUSE
        self._logged = False

    def check(self) -> None:
        """Log a long wait.

        Raises:
            Conflict: The bound has passed; the message names the holder.
        """
        waited = time.monotonic() - self._begun
        if self._patience is not None and waited > self._patience:
            raise Conflict(
                f"{self._path} has been locked by {holder_of(self._path)} for {self._patience:g} seconds",
                hint="end that process, or wait for it and try again",
            )
        if waited > _NOTICE and not self._logged:
            import logging

            self._logged = True
            logging.getLogger("pycontain.state").warning(
                "waiting for %s, which has locked %s", holder_of(self._path), self._path
            )

    def pause(self) -> None:
        """Sleep, a little longer each time."""
        time.sleep(self._pause)
        self._pause = min(_LAST_PAUSE, self._pause * 2)


def lock_within(fd: int, how: int, path: str, patience: float = BRIEF) -> None:
    """Take a lock on an open file, without waiting for a stuck holder forever.

    Args:
        fd: The open file.
        how: `fcntl.LOCK_SH` or `fcntl.LOCK_EX`.
        path: The path of the file, for the error.
        patience: Seconds to wait.

    Raises:
        Conflict: Another process kept the lock for `patience` seconds; the message names it.
    """
    wait: _Wait | None = None
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            wait = wait or _Wait(path, patience)
            wait.check()
            wait.pause()


def open_locked(
    path: str, *, patience: float | None, given_up: Callable[[], bool] | None = None
) -> int | None:
    """Open a file, made if necessary, and lock it exclusively.

    Args:
        path: The file.
        patience: Seconds to wait, None to wait as long as the holder lives.
        given_up: Called while waiting; when it returns True, the function returns None.

    Raises:
        Conflict: Another process kept the lock for `patience` seconds; the message names it.
    """
    wait = _Wait(path, patience)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the name while we opened it: then it locks nothing.
            if is_same_file(fd, path):
                return fd
        except BlockingIOError:
            os.close(fd)
            wait.check()
            if given_up is not None and given_up():
                return None
            wait.pause()
            continue
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def is_same_file(fd: int, path: str) -> bool:
    """Return whether an open file still has this name."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def holder_of(path: str, at: int | None = None) -> str:
    """Return the process that has locked a file, or 'another process' (proc_locks(5)).

    Args:
        path: The file.
        at: The first byte of the lock; any lock without it.
    """
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(path)
        wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        with open("/proc/locks", encoding="ascii") as lines:
            for line in lines:
                fields = line.split()
                if len(fields) > 6 and fields[5] == wanted and at in (None, int(fields[6])):
                    return f"process {fields[4]}"
    return "another process"


@contextlib.contextmanager
def exclusive(path: str, *, patience: float | None = PATIENCE) -> Iterator[None]:
    """Hold a lock file between processes and threads.

    Raises:
        Conflict: Another holder kept the lock for `patience` seconds.
    """
    fd = open_locked(path, patience=patience)
    assert fd is not None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(fd)


def unlink_unlocked(path: str) -> bool:
    """Remove a file unless it is locked; return whether it was removed."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_same_file(fd, path):
            return False
        os.unlink(path)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def is_locked(path: str) -> bool:
    """Return whether a file is locked."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        return error.errno != errno.ENOENT
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
