"""Disk limits: allocated blocks of a container are measured, and its processes are killed beyond the limit.

This needs no file system quota, memory or privilege.  The free space of the file system, one system call for
all containers, shows when a container may have reached its limit; only then a launcher measures its
directory.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from attrs import define, field

from pycontain._kernel import native
from pycontain._kernel.pidfd import wait_dead
from pycontain._kernel.plan import request
from pycontain._kernel.waiting import now
from pycontain._runtime.running import kill_by
from pycontain.errors import PycontainError, StateError

if TYPE_CHECKING:
    from pycontain._runtime.running import Running
    from pycontain._runtime.session import Session

BLOCK = 4096
INODES_FLOOR = 16384
"""Inodes that every limit allows; larger limits allow one for each block."""
_BUSY_TICK, _IDLE_TICK, _LINGER = 0.02, 0.1, 2.0
"""Seconds between two readings of the free space, while it shrinks and otherwise, and of an idle thread."""
_SHRINKS = 1 << 20
_REGULARLY = 10.0
"""Seconds after which a container is measured in any case: other files that are freed hide what it writes."""
_SHARE = 10
"""Measurements of a container take at most one part in this many of the time."""


@define(eq=False)
class Watched:
    """One container with a disk limit.

    Args:
        running: The container.
        most: Its limit in bytes.
        inodes: Its limit in inodes.
        free: Free bytes and inodes of the file system at the last measurement.
        used: Bytes that it used then.
        names: Inodes that it used then.
        stops: How often its processes were killed for the limit.
        next: The moment before which it is not measured again.
        regular: The moment at which it is measured in any case.
    """

    running: Running
    most: int
    inodes: int
    free: tuple[int, int]
    used: int = 0
    names: int = 0
    stops: int = 0
    next: float = 0.0
    regular: float = 0.0
    lock: threading.Lock = field(factory=threading.Lock)

    def may_exceed(self, free: tuple[int, int]) -> bool:
        """Return whether the file system lost more than this container has left."""
        bytes_, names = self.free[0] - free[0], self.free[1] - free[1]
        return self.used + bytes_ > self.most or self.names + names > self.inodes


class DiskWatch:
    """The containers of a session that have a disk limit, and the thread that watches them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._watched: dict[str, Watched] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._closed = False

    def add(self, running: Running) -> None:
        """Watch a container that has just started, if it has a limit."""
        most = running.spec.disk
        if most is None:
            return
        one = Watched(running, most, max(INODES_FLOOR, most // BLOCK), self._free())
        one.regular = now() + _REGULARLY
        with self._lock:
            self._watched[running.spec.id] = one
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="pycontain-disk", daemon=True)
                self._thread.start()

    def drop(self, running: Running) -> None:
        """Stop to watch a container that has ended."""
        self._watched.pop(running.spec.id, None)

    def stops(self, running: Running) -> int:
        """Return how often the processes of a container were killed for its limit."""
        one = self._watched.get(running.spec.id)
        return 0 if one is None else one.stops

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

    def close(self) -> None:
        """End the thread.  Idempotent."""
        self._closed = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def forget(self) -> None:
        """Drop all containers in a forked child, which has no such thread."""
        self._closed, self._thread = True, None
        self._watched = {}

    def _free(self) -> tuple[int, int]:
        found = os.fstatvfs(self._session.owner.live_fd)
        return found.f_bfree * found.f_frsize, found.f_ffree

    def _run(self) -> None:
        before, idle_since = self._free()[0], now()
        tick = _BUSY_TICK
        while not self._wake.wait(tick):
            if self._watched:
                idle_since = now()
            elif now() - idle_since > _LINGER and self._ends():
                return
            with contextlib.suppress(OSError, PycontainError):
                free = self._free()
                tick = _BUSY_TICK if before - free[0] >= _SHRINKS else _IDLE_TICK
                before = free[0]
                self._look(free)

    def _ends(self) -> bool:
        with self._lock:
            if self._watched:
                return False
            self._thread = None
            return True

    def _look(self, free: tuple[int, int]) -> None:
        for one in list(self._watched.values()):
            moment = now()
            if moment >= one.next and (one.may_exceed(free) or moment >= one.regular):
                self._measure(one)

    def _measure(self, one: Watched) -> None:
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
        stop(running)


def _unlinked(running: Running, device: int) -> int:
    """Return the bytes of deleted files that are still open, as far as /proc shows them."""
    found: dict[tuple[int, int], int] = {}
    devices = {device}
    with contextlib.suppress(OSError):
        devices.add(os.stat(f"/proc/{running.pid}/root").st_dev)
    for pid in _descendants(running.pid):
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    seen = entry.stat()
                    if seen.st_nlink == 0 and seen.st_dev in devices:
                        found[seen.st_dev, seen.st_ino] = seen.st_blocks * 512
    return sum(found.values())


def _descendants(pid: int) -> list[int]:
    """Return every process below PID 1, whose children include orphans (proc_pid_children(5))."""
    found, fresh = [], [pid]
    while fresh:
        one = fresh.pop()
        with contextlib.suppress(OSError, ValueError):
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children", encoding="ascii") as file:
                    fresh += map(int, file.read().split())
        found.append(one)
    return found[1:]


def stop(running: Running) -> None:
    """Kill every process of a container except its agent, or the container itself if it has no agent."""
    if not running.spec.init:
        kill_by(running.pidfd)
        return
    try:
        control = running.acquire_control()
    except StateError:
        return
    try:
        native.send(control, request(native.KILL_ALL))
    except OSError:
        wait_dead(running.pidfd, 0)
    finally:
        running.release_control()
