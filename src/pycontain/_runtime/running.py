"""A live container, as this process holds it: its sockets and fds, and its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, field

from pycontain._kernel import native
from pycontain._runtime.collect import Remains, wait_dead
from pycontain.errors import StateError

if TYPE_CHECKING:
    from pycontain._cgroups.group import Group
    from pycontain._engine import Engine
    from pycontain._runtime.compile import Template
    from pycontain._runtime.spec import ContainerSpec

_PIDFD_GET_MNT_NAMESPACE = 0xFF03
_END_PATIENCE = 10.0
"""Seconds in which a killed PID 1 has to be gone; what is stuck in the kernel longer is the collector's."""


class Dependent(Protocol):
    """What holds fds into a container for as long as it runs."""

    def let_go(self) -> None:
        """The container has ended: close them."""

    def forget(self) -> None:
        """This is a forked child: close them, and take no lock, which another thread may have held."""


@define(eq=False)
class Running:
    """A live container: the sockets and fds by which this process holds it."""

    spec: ContainerSpec
    engine: Engine
    control: int
    pidfd: int
    exit_socket: int
    group: Group | None
    block: int | None
    template: Template
    timings: dict[str, float]
    pid: int
    environment: Any = None  # exec's default one, encoded on first use
    zygote: Any = None  # that of `Container.call`, made on first use
    lock: threading.Lock = field(factory=threading.Lock)
    ended: bool = False
    frozen: bool = False
    users: int = 0
    remains: Remains | None = None
    dependents: list[Dependent] = field(factory=list)  # what holds fds for as long as this runs

    def hold(self) -> int:
        """The control socket, which stays open until `let_go`.  Raises StateError when the container ended.

        Its number belongs to something else once it is closed, another container's socket perhaps.
        """
        with self.lock:
            if self.ended:
                raise StateError(f"container {self.spec.name} is not running")
            self.users += 1
            return self.control

    def let_go(self) -> None:
        """The other end of `hold`."""
        with self.lock:
            self.users -= 1
            if self.ended and self.users == 0:
                os.close(self.control)

    @property
    def dead(self) -> bool:
        """Is PID 1 gone?"""
        with self.lock:
            return self.ended or wait_dead(self.pidfd, 0)

    def end(self) -> None:
        """Kill everything inside, wait until PID 1 is dead, and leave the rest to the collector.

        Idempotent, also where an interrupt ended it half-way.
        """
        with self.lock:
            if not self.ended:
                self.ended = True
                native.lib.pcx_shutdown(self.control)
                if self.users == 0:
                    os.close(self.control)
            if self.remains is None:
                self.remains = Remains(self.spec.id, self.group, self.pidfd, self.block)
            remains, exit_socket, self.exit_socket = self.remains, self.exit_socket, -1
        if exit_socket >= 0:
            os.close(exit_socket)
        if not remains.taken:
            if remains.mounts < 0:  # else this is the second time, after an interrupt
                remains.mounts = mounts_of(self.pidfd)
            kill_by(self.pidfd)
            self.engine.ahead.ended()  # while it dies
            if not wait_dead(self.pidfd, _END_PATIENCE) and self.group is not None:
                self.group.kill()
            self.engine.collector.put(remains)
        for one in list(self.dependents):
            one.let_go()
        self.engine.unregister(self)

    def forget(self) -> None:
        """For a forked child: close the fds alone; the container goes on, and is the parent's."""
        fds = self.control, self.pidfd, self.exit_socket
        self.ended, self.control, self.pidfd, self.exit_socket = True, -1, -1, -1
        self.lock, self.users = threading.Lock(), 0
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        for one in self.dependents:
            one.forget()


def mounts_of(pidfd: int) -> int:
    """An fd of its mount namespace, or -1 before Linux 6.11.

    Who holds one when the last process ends takes over the work of dissolving it, which waits for two
    grace periods.
    """
    try:
        return fcntl.ioctl(pidfd, _PIDFD_GET_MNT_NAMESPACE)
    except OSError:
        return -1


def kill_by(pidfd: int) -> None:
    """SIGKILL for the process behind pidfd; nothing where it is gone."""
    if pidfd >= 0:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
