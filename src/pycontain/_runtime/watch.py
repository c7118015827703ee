"""Watch of a limit that the kernel does not enforce: one cheap figure of the host for all containers.

A thread looks at the figure.  Only when it has changed by as much as a container may still use is the
container measured, and stopped where it exceeds its limit.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from attrs import define, field

from pycontain._kernel import native
from pycontain._kernel.pidfd import wait_dead
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import RequestKind
from pycontain._kernel.waiting import now
from pycontain._runtime.running import Cause
from pycontain.errors import PycontainError, StateError

if TYPE_CHECKING:
    from pycontain._runtime.running import Running
    from pycontain._runtime.session import Session

BUSY_TICK, IDLE_TICK = 0.02, 0.1
"""Seconds between two looks at the figure, while it changes fast and otherwise."""
_LINGER = 2.0
"""Seconds without a container after which the thread ends."""


@define(eq=False)
class Watched:
    """A container with a limit.

    Args:
        running: The container.
        stops: How often its processes were killed for the limit.
        next: The moment before which it is not measured again.
    """

    running: Running
    stops: int = field(default=0, kw_only=True)
    next: float = field(default=0.0, kw_only=True)
    lock: threading.Lock = field(factory=threading.Lock, kw_only=True)


One = TypeVar("One", bound=Watched)


class Watch(Generic[One]):
    """The containers of a session that have one kind of limit, and the thread that watches them.

    Each watch has its own thread, so that a slow measurement of one does not delay another.
    """

    _NAME = ""
    """Name of the thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._watched: dict[str, One] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._closed = False

    def _begin(self, one: One) -> None:
        """Watch a container from now on."""
        with self._lock:
            self._watched[one.running.spec.id] = one
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name=self._NAME, daemon=True)
                self._thread.start()

    def drop(self, running: Running) -> None:
        """Forget a container that has ended."""
        self._watched.pop(running.spec.id, None)

    def stops(self, running: Running) -> int:
        """Return how often the processes of a container were killed for its limit."""
        one = self._watched.get(running.spec.id)
        return 0 if one is None else one.stops

    def stopped_since(self, running: Running, stops: int) -> bool:
        """Return whether a container was stopped again since `stops` was read."""
        one = self._watched.get(running.spec.id)
        return one is not None and one.stops != stops

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

    def _look(self) -> float:
        """Look at the figure, measure containers that may exceed their limit, and return the next tick."""
        raise NotImplementedError

    def _run(self) -> None:
        idle_since, tick = now(), BUSY_TICK
        while not self._wake.wait(tick):
            if self._watched:
                idle_since = now()
            elif now() - idle_since > _LINGER and self._ends():
                return
            with contextlib.suppress(OSError, PycontainError):
                tick = self._look()

    def _ends(self) -> bool:
        with self._lock:
            if self._watched:
                return False
            self._thread = None
            return True


def stop(running: Running, cause: Cause) -> None:
    """Kill every process of a container except its agent, or the container itself if it has no agent.

    Args:
        running: The container.
        cause: Why the container ends if it has no agent.
    """
    if not running.spec.init:
        running.kill(cause)
        return
    try:
        control = running.acquire_control()
    except StateError:
        return
    try:
        native.send(control, request(RequestKind.KILL_ALL))
    except OSError:
        wait_dead(running.pidfd, 0)
    finally:
        running.release_control()


def descendants(pid: int) -> list[int]:
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
