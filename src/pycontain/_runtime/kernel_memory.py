"""Limit of kernel memory that no cgroup counts, enforced by a kill with reason `oom`.

Record locks, the queues of netlink sockets, error queues, and connections that no process has accepted are
such memory.  The host's kernel memory, one file for all containers, shows when one of them may have taken
much; only then its sockets and locks are measured (`uncounted`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define

from pycontain._kernel.waiting import now
from pycontain._model.sizes import UNLIMITED
from pycontain._runtime.running import Cause
from pycontain._runtime.watch import BUSY_TICK, IDLE_TICK, Watch, Watched, stop

if TYPE_CHECKING:
    from pycontain._runtime.running import Running
    from pycontain._runtime.session import Session

_PART = 4
"""A container may hold one part in so many of its memory limit."""
_LEAST = 16 << 20
"""Bytes that every container may hold: a listener's full backlog of 4096 connections takes 10 MiB."""
_FAST = 4 << 20
"""Bytes by which kernel memory grows between two looks while something takes it fast."""
_EXCEEDED = Cause("oom", "it held more kernel memory than its memory limit allows")
_SHARE = 10
"""A measurement takes at most one part in so many of the time."""
_NOT_KERNEL = (
    b"MemFree:", b"Buffers:", b"Cached:", b"SwapCached:", b"AnonPages:", b"SReclaimable:", b"PageTables:",
)  # fmt: skip
"""Lines of /proc/meminfo for memory that is free, of files and processes, or counted by every cgroup."""


@define(eq=False)
class Holding(Watched):
    """A container with a memory limit.

    Attributes:
        most: bytes that it may hold.
        low: the smallest kernel memory of the host since it was measured, in bytes.
        used: bytes that it held when it was measured last.
    """

    most: int
    low: int
    used: int = 0

    def may_exceed(self, kernel: int) -> bool:
        """Return whether the host's kernel memory has grown by as much as this container may still take."""
        self.low = min(self.low, kernel)
        return self.used + kernel - self.low > self.most


class KernelMemoryWatch(Watch[Holding]):
    """The containers of a session that have a memory limit."""

    _NAME = "pycontain-kernel-memory"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._last: int | None = None

    def add(self, running: Running) -> None:
        """Watch a container that starts."""
        memory = running.spec.limits.memory
        if memory is None or memory == UNLIMITED or running.group is None:
            return
        # A figure that is a moment old will do, and costs a start nothing.
        low = self._last if self._thread is not None and self._last is not None else host_kernel_memory()
        self._begin(Holding(running, max(memory // _PART, _LEAST), low))

    def _look(self) -> float:
        kernel = host_kernel_memory()
        last, self._last = self._last, kernel
        for one in list(self._watched.values()):
            if one.may_exceed(kernel) and now() >= one.next:
                self._measure(one, kernel)
        return BUSY_TICK if last is not None and kernel - last >= _FAST else IDLE_TICK

    def _measure(self, one: Holding, kernel: int) -> None:
        """Measure one container, and stop it where it exceeds its limit."""
        from pycontain._runtime import uncounted  # loaded where it is needed first

        begun = now()
        others = [other.running for other in list(self._watched.values()) if other is not one]
        held = uncounted.measure(one.running, one.most, others)
        grown = held > one.used
        one.used, one.low = held, kernel
        done = now()
        one.next = done + _SHARE * (done - begun)
        if grown and held > one.most:
            one.stops += 1
            stop(one.running, _EXCEEDED)


def host_kernel_memory() -> int:
    """Return the bytes of the host's memory that neither files nor processes use."""
    with open("/proc/meminfo", "rb") as file:
        fields = file.read().split()
    lines = dict(zip(fields[::3], fields[1::3], strict=False))  # lines without a unit come last
    return (int(lines[b"MemTotal:"]) - sum(int(lines.get(name, 0)) for name in _NOT_KERNEL)) << 10
