"""Owners: the claim of an engine on everything that it creates, with a lock that ends with its process.

Directories and cgroups have their owner in the path: `live/<owner>/<container>` in the store,
`<base>/<owner>/<container>` in the cgroup trees.  The lock file is created and locked first, so everything of
an owner whose lock is free is garbage.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from collections.abc import Iterator

from attrs import frozen

from pycontain._state.locks import is_locked, lock_within
from pycontain._state.paths import Roots, private_directory
from pycontain.errors import LimitError

BLOCK = 65536
STORE_BLOCK = 0x58000000
"""Block of files that several containers share, such as volumes: the host id of their id 0."""
_FIRST_ID, _LAST_ID = STORE_BLOCK + BLOCK, 0x70000000
_BLOCKS = (_LAST_ID - _FIRST_ID) // BLOCK
_FLOCK = struct.Struct("hhqqi")


class Owner:
    """The claim of one engine on a store: a name, its lock, a directory and blocks of ids.

    Args:
        roots: The directories of the engine.

    Raises:
        PathError: A directory cannot be made, or belongs to another user.
        Conflict: Another process keeps the list of owners locked.

    Attributes:
        name: Random name of the owner.
        lock: Descriptor of the locked file.
        live: Directory of everything live in the store.
        live_fd: Descriptor of that directory.
        blocks: Blocks of user ids.
    """

    def __init__(self, roots: Roots) -> None:
        self.name = os.urandom(6).hex()
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
        """Give up the claim, after the caller has removed everything under it."""
        with _registry(self._roots, fcntl.LOCK_SH):
            os.rmdir(self.live)
            os.unlink(self._lock_path)
            self.forget()

    def forget(self) -> None:
        """Close the descriptors in a forked child, which owns nothing."""
        for fd in (self.live_fd, self.lock):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.blocks.close()


@contextlib.contextmanager
def _registry(roots: Roots, how: int) -> Iterator[None]:
    """Hold the lock of the list of owners: shared to add or remove one, exclusive to claim dead ones."""
    path = os.path.join(roots.run, "registry")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock_within(fd, how, path)
        yield
    finally:
        os.close(fd)


@frozen
class Claim:
    """A dead owner, whose remains this process removes."""

    owner: str
    _path: str
    _lock: int

    def release(self, *, removed: bool) -> None:
        """Give the claim up.

        Args:
            removed: Whether nothing is left of the owner, so that its name goes too."""
        if removed:
            os.unlink(self._path)
        os.close(self._lock)


def is_alive(roots: Roots, owner: str) -> bool:
    """Return whether the process of an owner lives."""
    return is_locked(os.path.join(roots.run, "owners", f"{owner}.lock"))


def claim_dead(roots: Roots) -> list[Claim]:
    """Claim every owner whose process does not live, and return the claims."""
    claims = []
    owners = os.path.join(roots.run, "owners")
    with _registry(roots, fcntl.LOCK_EX):
        # A reboot empties /run but not the store, so a directory without a lock file is garbage too.
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
    """Blocks of 65536 user ids on this host, each locked by the container that uses it.

    The locks are open file description locks (fcntl(2)) on bytes of one file, so the kernel frees a block
    when its process dies.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._mutex = threading.Lock()
        self._held: list[int] = []
        self._used: set[int] = set()
        self._next = int.from_bytes(os.urandom(4)) % _BLOCKS
        self._reserved = _sub_id_blocks()

    def acquire(self) -> int:
        """Return the first id of a block that no live container has.

        Raises:
            LimitError: All blocks of this host are taken.
        """
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
        raise LimitError(
            "every block of user ids of this host is taken", hint="remove containers that run on this host"
        )

    def release(self, first: int) -> None:
        """Give a block back.  Its lock is kept for the next container of this process."""
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
    """Return the blocks that overlap ranges of /etc/subuid or /etc/subgid."""
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
