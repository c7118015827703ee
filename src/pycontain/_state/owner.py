"""One owner per process and engine: a lock that dies with the process, above all that it creates.

Every live thing carries its owner in its path: `live/<owner>/<container>` in the
store, `<base>/<owner>/<container>` in the cgroup trees.  The lock file is made and
locked before the first of them, so whatever stands under an owner whose lock is
free belongs to nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import struct
import threading
from collections.abc import Iterator

from attrs import frozen

from pycontain._state.locks import is_locked, lock_within
from pycontain._state.paths import Roots, private_directory
from pycontain.errors import LimitError

BLOCK = 65536
STORE_BLOCK = 0x58000000
"""The block of what several containers have: on the disk their 0 is this."""
_FIRST_ID, _LAST_ID = STORE_BLOCK + BLOCK, 0x70000000
_BLOCKS = (_LAST_ID - _FIRST_ID) // BLOCK
_FLOCK = struct.Struct("hhqqi")


class Owner:
    """This process's claim on a store: directories and id blocks that vanish with its lock."""

    def __init__(self, roots: Roots) -> None:
        self.name = secrets.token_hex(6)
        self._roots = roots
        owners = private_directory(os.path.join(private_directory(roots.run), "owners"))
        live = private_directory(os.path.join(private_directory(roots.data), "live"))
        self._lock_path = os.path.join(owners, f"{self.name}.lock")
        with _registry(roots, fcntl.LOCK_SH):
            self.lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.live = os.path.join(live, self.name)
        private_directory(self.live)
        self.live_fd = os.open(self.live, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.blocks = IdBlocks(os.path.join(roots.run, "ids"))

    def close(self) -> None:
        """Give up the claim; the caller has removed everything under it."""
        with _registry(self._roots, fcntl.LOCK_SH):
            os.rmdir(self.live)
            os.unlink(self._lock_path)
            self.forget()

    def forget(self) -> None:
        """Close the fds alone: for a forked child, which owns nothing."""
        for fd in (self.live_fd, self.lock):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.blocks.close()


@contextlib.contextmanager
def _registry(roots: Roots, how: int) -> Iterator[None]:
    """Hold the lock of the owners: shared to add or remove one, exclusive to claim the dead."""
    path = os.path.join(roots.run, "registry")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock_within(fd, how, path)
        yield
    finally:
        os.close(fd)


@frozen
class Claim:
    """What a dead owner left, claimed by this process for removal."""

    owner: str
    _path: str
    _lock: int

    def release(self, *, removed: bool) -> None:
        """Give the claim up; the owner's name is forgotten once nothing is left under it."""
        if removed:
            os.unlink(self._path)
        os.close(self._lock)


def is_alive(roots: Roots, owner: str) -> bool:
    """Does the process of this owner live?"""
    return is_locked(os.path.join(roots.run, "owners", f"{owner}.lock"))


def claim_dead(roots: Roots) -> list[Claim]:
    """Claim every owner whose process is gone."""
    claims = []
    owners = os.path.join(roots.run, "owners")
    with _registry(roots, fcntl.LOCK_EX):
        # A reboot empties /run but not the store: directories without a lock file belong to nobody.
        names = {name.removesuffix(".lock") for name in _listing(owners)}
        for owner in sorted(names | set(_listing(os.path.join(roots.data, "live")))):
            path = os.path.join(owners, f"{owner}.lock")
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            if os.fstat(lock).st_nlink == 0:  # removed by another between our open and our lock
                os.close(lock)
                continue
            claims.append(Claim(owner, path, lock))
    return claims


def _listing(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


class IdBlocks:
    """Blocks of 65536 ids on this host, each locked by the one container that uses it.

    The locks are open file description locks (fcntl(2)) on bytes of one file, so a
    block is free again the moment that its process dies.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._mutex = threading.Lock()
        self._held: list[int] = []
        self._used: set[int] = set()
        self._next = secrets.randbelow(_BLOCKS)
        self._reserved = _sub_id_blocks()

    def acquire(self) -> int:
        """The first id of a block that no live container has.  Raises LimitError when all are taken."""
        with self._mutex:
            if self._held:
                block = self._held.pop()
                self._used.add(block)
                return _FIRST_ID + block * BLOCK
            for _ in range(_BLOCKS):
                block, self._next = self._next, (self._next + 1) % _BLOCKS
                if block not in self._used and block not in self._reserved and self._lock(block):
                    self._used.add(block)
                    return _FIRST_ID + block * BLOCK
        raise LimitError("every id block of this host is taken by a live container")

    def release(self, first: int) -> None:
        """Give a block back; its lock is kept for the next container of this process."""
        with self._mutex:
            block = (first - _FIRST_ID) // BLOCK
            self._used.discard(block)
            self._held.append(block)

    def close(self) -> None:
        """Release every lock."""
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _lock(self, block: int) -> bool:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, block, 1, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, wanted)
        except (BlockingIOError, PermissionError):
            return False
        return True


def _sub_id_blocks() -> set[int]:
    """Blocks that /etc/subuid or /etc/subgid promise to somebody."""
    taken: set[int] = set()
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            with open(path, encoding="ascii", errors="replace") as lines:
                fields = [line.split(":") for line in lines]
        except OSError:
            continue
        for parts in fields:
            if len(parts) != 3 or not (parts[1].isdigit() and parts[2].strip().isdigit()):
                continue
            first, last = int(parts[1]), int(parts[1]) + int(parts[2]) - 1
            low, high = max(first, _FIRST_ID), min(last, _LAST_ID - 1)
            if low <= high:
                taken.update(range((low - _FIRST_ID) // BLOCK, (high - _FIRST_ID) // BLOCK + 1))
    return taken
