"""Remove what ended containers leave, behind the caller's back but never behind its exit."""

from __future__ import annotations

import os
import queue
import select
import threading
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._kernel.launcher import Launcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontain._cgroups.group import Group
    from pycontain._state.owner import Owner


@frozen(eq=False)
class Remains:
    """What one container leaves: its groups, its directory, its ids, and the pidfd that tells of its end."""

    name: str
    group: Group | None
    pidfd: int
    block: int | None
    has_directory: bool = True


class Collector:
    """A thread that removes remains as soon as their PID 1 is dead."""

    def __init__(self, owner: Owner, make_janitor: Callable[[], Launcher]) -> None:
        self._owner = owner
        self._make_janitor = make_janitor
        self._janitor: Launcher | None = None
        self._queue: queue.SimpleQueue[Remains | threading.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.errors: list[str] = []

    def put(self, remains: Remains) -> None:
        """Take over; returns at once."""
        with self._lock:
            if self._thread is None:
                # A daemon, since the interpreter joins the others before atexit can end this one.
                self._thread = threading.Thread(target=self._run, name="pycontain-collector", daemon=True)
                self._thread.start()
        self._queue.put(remains)

    def settle(self) -> None:
        """Wait until everything taken over so far is removed."""
        if self._thread is not None:
            done = threading.Event()
            self._queue.put(done)
            done.wait()

    def close(self) -> None:
        """Remove what is left and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        if self._janitor is not None:
            self._janitor.close()
            self._janitor = None

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                self.remove(item)
            except OSError as error:
                self.errors.append(f"{item.name}: {error}")

    def remove(self, remains: Remains) -> None:
        """Remove one container's remains.  Raises OSError with what could not be removed."""
        wait_dead(remains.pidfd)
        if remains.pidfd >= 0:
            os.close(remains.pidfd)
        removed = remains.group is None or remains.group.remove()
        if remains.has_directory:
            if self._janitor is None:
                self._janitor = self._make_janitor()
            self._janitor.remove(self._owner.live_fd, remains.name)
        if remains.block is not None:
            self._owner.blocks.release(remains.block)
        if not removed:
            raise OSError(16, "a cgroup is still in use", remains.name)


def wait_dead(pidfd: int, timeout: float | None = None) -> bool:
    """Wait for the end of the process behind pidfd (pidfd_open(2)); False at the timeout (seconds)."""
    if pidfd < 0:
        return True
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))
