"""Locks between processes: a file, flock(2), and who holds it.  They vanish with their holder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator

from pycontain.errors import Conflict

PATIENCE = 1800.0
"""Seconds for which work of another process is waited for: a whole image at a slow registry."""
_FIRST_PAUSE, _LAST_PAUSE = 0.002, 0.05


def open_locked(
    path: str, *, patience: float | None, given_up: Callable[[], bool] | None = None
) -> int | None:
    """The file at `path`, made if need be, locked by this process alone.

    patience: seconds, None for as long as the holder lives.  given_up: asked while waiting; when it
    says yes, the answer is None.  Raises Conflict, naming the holder, when patience ends.
    """
    pause = _FIRST_PAUSE
    until = None if patience is None else time.monotonic() + patience
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the name while we opened it: then it locks nothing.
            if is_same_file(fd, path):
                return fd
        except BlockingIOError:
            if until is not None and time.monotonic() > until:
                holder = _holder(path)
                os.close(fd)
                raise Conflict(f"{path} is locked by {holder}") from None
            os.close(fd)
            if given_up is not None and given_up():
                return None
            time.sleep(pause)
            pause = min(_LAST_PAUSE, pause * 2)
            continue
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def is_same_file(fd: int, path: str) -> bool:
    """Is what is open still what has this name?"""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _holder(path: str) -> str:
    """Who holds a lock, as /proc/locks has it."""
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(path)
        wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        with open("/proc/locks", encoding="ascii") as lines:
            for line in lines:
                fields = line.split()
                if len(fields) > 5 and fields[5] == wanted:
                    return f"process {fields[4]}"
    return "another process"


@contextlib.contextmanager
def exclusive(path: str, *, patience: float | None = PATIENCE) -> Iterator[None]:
    """A critical section between processes and threads.  Raises Conflict when `patience` seconds pass."""
    fd = open_locked(path, patience=patience)
    assert fd is not None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(fd)


def unlink_unlocked(path: str) -> bool:
    """Remove a file that nobody has locked, and nobody can lock meanwhile; was it removed?"""
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
    """Does somebody hold it just now?"""
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
