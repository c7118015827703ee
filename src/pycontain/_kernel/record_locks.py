"""Record locks that processes hold: kernel objects that no cgroup counts.

/proc/PID/fdinfo shows the locks of each descriptor.  Locks of an open file (`F_OFD_SETLK`) last as long as
the file, also where no descriptor has it because it is mapped or on its way through a socket.  Only
/proc/locks shows those.  It is read in part only: each read of 4 KiB walks the list of all locks from its
start, and stops every other lock operation of the host meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from attrs import frozen

from pycontain._kernel import native

SIZE = 200
"""Bytes of one lock with its share of the slab (192 to 216 by kernel version)."""
SAMPLE = 20_000
"""Lines of /proc/locks that are read: 75 ms of processor time, where 100 000 take 4 s."""

_HOST = "/sys/kernel/slab/file_lock_cache/objects"
_MARK, _POSIX, _OPEN_FILE = b"\nlock:\t", b"POSIX", b"OFDLCK"
_NUMBERED = re.compile(rb"\nlock:\t[0-9]+: ")
"""The beginning of a line, with a number that depends on the locks before it."""


@frozen
class _Holder:
    """A descriptor that shows locks, and how many."""

    pid: int
    fd: int
    locks: int


@frozen
class Sample:
    """Locks of open files in a part of /proc/locks.

    Attributes:
        found: those on the devices that were asked for.
        lines: locks of every kind that were read.
        complete: whether there were no more.
    """

    found: int
    lines: int
    complete: bool


def count_host() -> int | None:
    """Return the number of file locks on the host, or None where this kernel or user cannot read it."""
    try:
        with open(_HOST, encoding="ascii") as file:
            return int(file.read().split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return None


def count(pids: Iterable[int], most: int) -> int:
    """Return how many file locks the descriptors of processes show; each lock counts once.

    Args:
        pids: the processes.  Those that ended meanwhile are passed over.
        most: the limit.  Counting ends with the first descriptor beyond it.
    """
    seen: dict[bytes, list[_Holder]] = {}
    total = 0
    again = most  # repeated locks are left out once there are more than that
    for pid in pids:
        for fd, text in _read_locks(pid):
            for shown in _by_owner(text):
                locks = shown.count(_MARK)
                seen.setdefault(shown, []).append(_Holder(pid, fd, locks))
                total += locks
            if total > again:
                total = _count_distinct(seen)
                if total > most:
                    return total
                again = 2 * again
    return total if total <= most else _count_distinct(seen)


def sample(devices: Collection[bytes]) -> Sample:
    """Read a part of /proc/locks.

    Args:
        devices: as that file has them, `00:5d`.

    Raises:
        OSError: it cannot be read.
    """
    found = lines = 0
    with open("/proc/locks", "rb", buffering=0) as file:
        while lines < SAMPLE and (text := file.read(1 << 16)):
            for line in text.splitlines():
                fields = line.split()
                lines += 1
                found += fields[1] == _OPEN_FILE and fields[5].rpartition(b":")[0] in devices
        return Sample(found, lines, lines < SAMPLE)


def _read_locks(pid: int) -> Iterator[tuple[int, bytes]]:
    """Yield each descriptor of a process that holds locks, with their lines."""
    directory = f"/proc/{pid}/fdinfo"
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(directory)
    for name in names:
        with contextlib.suppress(OSError):
            fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                text = os.read(fd, 1 << 16)
                while (more := os.read(fd, 1 << 22)) if _MARK in text else b"":
                    text += more
            finally:
                os.close(fd)
            if _MARK in text:
                yield int(name), _NUMBERED.sub(_MARK, text[text.index(_MARK) :])


def _by_owner(text: bytes) -> Iterable[bytes]:
    """Split locks into those of a process and those of the open file, which its children may share."""
    if _POSIX not in text or text.count(_POSIX) == text.count(_MARK):
        return (text,)
    kinds: tuple[list[bytes], list[bytes]] = ([], [])
    for lock in text.split(_MARK)[1:]:
        kinds[lock.startswith(_POSIX)].append(_MARK + lock.rstrip())
    return (b"".join(kind) + b"\n" for kind in kinds if kind)


def _count_distinct(seen: Mapping[bytes, list[_Holder]]) -> int:
    return sum(_distinct(same) * same[0].locks for same in seen.values())


def _distinct(holders: list[_Holder]) -> int:
    """Return the number of different open files behind descriptors that show the same locks."""
    if len(holders) == 1:
        return 1
    ordered = sorted(holders, key=functools.cmp_to_key(_compare))
    return 1 + sum(_compare(one, other) != 0 for one, other in itertools.pairwise(ordered))


def _compare(one: _Holder, other: _Holder) -> int:
    """Compare two open files; they are the same where the kernel cannot say, so no lock counts twice."""
    order = native.lib.pcx_compare_files(one.pid, one.fd, other.pid, other.fd)
    return {1: -1, 2: 1}.get(order, 0)
