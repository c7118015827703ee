"""Disk limits: allocated blocks of a container are measured, and its processes are killed beyond the limit.

This needs no file system quota, memory or privilege.  The free space of the file system, one system call for
all containers, shows when a container may have reached its limit; only then a launcher measures its
directory.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from attrs import define

from pycontain._kernel.waiting import now
from pycontain._runtime.running import Cause
from pycontain._runtime.watch import BUSY_TICK, IDLE_TICK, Watch, Watched, descendants, stop

if TYPE_CHECKING:
    from pycontain._runtime.running import Running
    from pycontain._runtime.session import Session

BLOCK = 4096
INODES_FLOOR = 16384
"""Inodes that every limit allows; larger limits allow one for each block."""
_SHRINKS = 1 << 20
_REGULARLY = 10.0
"""Seconds after which a container is measured in any case: other files that are freed hide what it writes."""
_EXCEEDED = Cause("disk", "it wrote more than its disk limit allows")
_SHARE = 10
"""Measurements of a container take at most one part in this many of the time."""


@define(eq=False)
class Written(Watched):
    """One container with a disk limit.

    Args:
        most: Its limit in bytes.
        inodes: Its limit in inodes.
        free: Free bytes and inodes of the file system at the last measurement.
        used: Bytes that it used then.
        names: Inodes that it used then.
        regular: The moment at which it is measured in any case.
    """

    most: int
    inodes: int
    free: tuple[int, int]
    used: int = 0
    names: int = 0
    regular: float = 0.0

    def may_exceed(self, free: tuple[int, int]) -> bool:
        """Return whether the file system lost more than this container has left."""
        bytes_, names = self.free[0] - free[0], self.free[1] - free[1]
        return self.used + bytes_ > self.most or self.names + names > self.inodes


class DiskWatch(Watch[Written]):
    """The containers of a session that have a disk limit, and the thread that watches them."""

    _NAME = "pycontain-disk"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._before: int | None = None

    def add(self, running: Running) -> None:
        """Watch a container that has just started, if it has a limit."""
        most = running.spec.disk
        if most is None:
            return
        one = Written(running, most, max(INODES_FLOOR, most // BLOCK), self._free())
        one.regular = now() + _REGULARLY
        self._begin(one)

    def exceeded(self, running: Running, stops: int) -> bool:
        """Return whether a container reached its limit since there were `stops` kills.

        It is measured again if the free space allows for it.
        """
        one = self._watched.get(running.spec.id)
        if one is None:
            return False
        if one.stops == stops and one.may_exceed(self._free()):
            self._measure(one)
        return one.stops != stops

    def _free(self) -> tuple[int, int]:
        found = os.fstatvfs(self._session.owner.live_fd)
        return found.f_bfree * found.f_frsize, found.f_ffree

    def _look(self) -> float:
        free = self._free()
        before, self._before = self._before, free[0]
        for one in list(self._watched.values()):
            moment = now()
            if moment >= one.next and (one.may_exceed(free) or moment >= one.regular):
                self._measure(one)
        return BUSY_TICK if before is None or before - free[0] >= _SHRINKS else IDLE_TICK

    def _measure(self, one: Written) -> None:
        """Measure a container, and kill its processes if it has grown beyond its limit."""
        running = one.running
        with one.lock:
            begun, free = now(), self._free()
            try:
                with self._session.launchers.borrow() as launcher:
                    used, names = launcher.measure(
                        self._session.owner.live_fd, running.spec.id, (one.most, one.inodes)
                    )
            except FileNotFoundError:
                return  # it has ended
            if used <= one.most:
                used += _unlinked(running, os.fstat(self._session.owner.live_fd).st_dev)
            grown = used > one.used or names > one.names
            one.used, one.names, one.free = used, names, free
            done = now()
            one.next = done + _SHARE * (done - begun)
            one.regular = done + max(_REGULARLY, _SHARE * _SHARE * (done - begun))
            if not grown or (used <= one.most and names <= one.inodes):
                return
            one.stops += 1
        stop(running, _EXCEEDED)


def _unlinked(running: Running, device: int) -> int:
    """Return the bytes of deleted files that are still open, as far as /proc shows them."""
    found: dict[tuple[int, int], int] = {}
    devices = {device}
    with contextlib.suppress(OSError):
        devices.add(os.stat(f"/proc/{running.pid}/root").st_dev)
    for pid in descendants(running.pid):
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    seen = entry.stat()
                    if seen.st_nlink == 0 and seen.st_dev in devices:
                        found[seen.st_dev, seen.st_ino] = seen.st_blocks * 512
    return sum(found.values())
