"""A live container, as this process holds it: its sockets and fds, and its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, Protocol

from attrs import define, field, frozen

from pycontain._kernel import native
from pycontain._kernel.pidfd import exit_status, wait_dead
from pycontain._kernel.plan import request
from pycontain._runtime.cleanup import CleanupJob
from pycontain.errors import ContainerEnded, StateError

if TYPE_CHECKING:
    from pycontain._cgroups.group import Group
    from pycontain._kernel.file_server import FileServer
    from pycontain._model.process import Reason
    from pycontain._networks.container_networks import ContainerNetworks
    from pycontain._runtime.cancel import Cancellable
    from pycontain._runtime.compile import RootPlan
    from pycontain._runtime.session import Session
    from pycontain._runtime.spec import ContainerSpec

_PIDFD_GET_MNT_NAMESPACE = 0xFF03
_REAPED_WITHIN = 20
"""Milliseconds."""
_IDLE_WITHIN = 1000
"""Milliseconds in which an agent that nobody asks begins the last command, or is taken for busy."""
_END_PATIENCE = 10.0
"""Seconds to wait for a killed PID 1; after that the cleanup helper waits for it."""


_STATUS_WITHIN = 1.0
"""Seconds in which PID 1 is dead once its sockets are closed."""


@frozen
class Cause:
    """The reason that a container ended for, and a clause that says it."""

    reason: Reason
    text: str


REMOVED = Cause("cancelled", "it was removed")
STOPPED = Cause("cancelled", "it was stopped")
KILLED = Cause("signal", "it was killed")


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
    session: Session
    control: int
    pidfd: int
    exit_socket: int
    group: Group | None
    block: int | None
    root_plan: RootPlan
    timings: dict[str, float]
    pid: int
    handle: object = None  # the `Container` of the caller, for `Engine.containers`
    environment: Any = None  # exec's default one, encoded on first use
    zygote: Any = None  # that of `Container.call`, made on first use
    lock: threading.Lock = field(factory=threading.Lock)
    still: threading.Condition = field(init=False)
    ended: bool = False
    frozen: bool = False
    users: int = 0
    alone: bool = False
    upper: int = 0
    aside: bool = False
    writers: weakref.WeakSet[IO[Any]] = field(factory=weakref.WeakSet)
    cleanup_job: CleanupJob | None = None
    dependents: list[Dependent] = field(factory=list)  # what holds fds for as long as this runs
    file_server_lock: threading.Lock = field(factory=threading.Lock)
    file_server: FileServer | None = None
    networks: ContainerNetworks | None = None
    shared: bool = False
    active: set[Cancellable] = field(factory=set)
    processes: weakref.WeakSet[Cancellable] = field(factory=weakref.WeakSet)
    cause: Cause | None = None
    before_cleanup: Callable[[], None] | None = None
    forgotten: bool = False

    @still.default
    def _still(self) -> threading.Condition:
        return threading.Condition(self.lock)

    @property
    def upper_path(self) -> str:
        """The directory that the guest writes to, where that is on disk."""
        return os.path.join(self.session.owner.live, self.spec.id, str(self.upper), "u")

    @property
    def first_id(self) -> int:
        """What the guest's root is on the disk."""
        return self.block or 0

    @contextlib.contextmanager
    def by_itself(self) -> Iterator[bool]:
        """Nothing is asked of the container meanwhile; is its agent alone?

        That is: no process that it has started lives, and nobody here has a file of it open to write.
        """
        with self.lock:
            if self.ended:
                raise StateError(f"container {self.spec.name} is not running")
            self.alone = self.users == 0
        try:
            written = any(not file.closed for file in list(self.writers))
            quiet = self.alone and not written and self.spec.init and self._is_idle()
            yield quiet and _is_childless(self.pid)
        finally:
            with self.lock:
                self.alone = False
                self.still.notify_all()

    def hold(self) -> int:
        """The control socket, which stays open until `let_go`.  Raises StateError when the container ended.

        Its number belongs to something else once it is closed, another container's socket perhaps.
        """
        with self.lock:
            self.still.wait_for(lambda: not self.alone)
            if self.ended:
                raise StateError(f"container {self.spec.name} is not running")
            self.users += 1
            return self.control

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """`hold` and `let_go`: meanwhile its root stays what it is.  Raises StateError."""
        self.hold()
        try:
            yield
        finally:
            self.let_go()

    def let_go(self) -> None:
        """The other end of `hold`."""
        with self.lock:
            self.users -= 1
            if self.ended and self.users == 0:
                os.close(self.control)

    def _is_idle(self) -> bool:
        """Has the agent done what it was asked?  It takes requests in turn: one about nobody is the last."""
        ours, theirs = native.pair()
        try:
            native.send(self.control, request(native.KILL_TREE, number=0), [theirs])
            os.close(theirs)
            theirs = -1
            return native.receive(ours, _IDLE_WITHIN) is not None
        except OSError:
            return False  # too busy, or dead
        finally:
            for fd in (ours, theirs):
                if fd >= 0:
                    os.close(fd)

    def share(self) -> int:
        """A pidfd for who joins its namespaces, which last longer than it then.  Raises StateError."""
        with self.lock:
            if self.ended:
                raise StateError(f"container {self.spec.name} is not running")
            self.shared = True
            return os.dup(self.pidfd)

    def share_pidfd(self) -> int:
        """Return a pidfd of PID 1 for the caller to close.  Raises StateError when the container ended."""
        with self.lock:
            if self.ended:
                raise StateError(f"container {self.spec.name} is not running")
            return os.dup(self.pidfd)

    def attach(self, make: Callable[[int], ContainerNetworks]) -> ContainerNetworks:
        """Its networks, made with a pidfd of their own the first time.  Raises StateError."""
        with self.lock:
            # Who ends it sets this first, under the lock, and looks for dependents then.
            if self.ended:
                raise StateError(f"container {self.spec.name} is not running")
            if self.networks is None:
                self.networks = make(os.dup(self.pidfd))
                self.dependents.append(self.networks)
            return self.networks

    @property
    def dead(self) -> bool:
        """Is PID 1 gone?"""
        with self.lock:
            return self.ended or wait_dead(self.pidfd, 0)

    def why_ended(self) -> Cause:
        """Return why it ended, for a command that lost its agent."""
        with self.lock:
            if self.cause is None and not self.ended:
                self.cause = self._died()
            return self.cause or REMOVED

    def ended_error(self) -> ContainerEnded:
        """Return the error of a command that ran when the container ended."""
        cause = self.why_ended()
        text = f"container {self.spec.name} ended while a command ran: {cause.text}"
        return ContainerEnded(text, reason=cause.reason)

    def _died(self) -> Cause:
        """Why PID 1 ended by itself.  With the lock held, and before the pidfd is closed."""
        if not wait_dead(self.pidfd, _STATUS_WITHIN):
            return Cause("signal", "its init does not answer")
        if self.group is not None and self.group.init_oom_killed():
            return Cause("oom", "the kernel killed its init at the memory limit")
        if not self.spec.init:
            return Cause("exit", "its command is its init, and ended")
        status = exit_status(self.pidfd)
        if status is None:
            return Cause("signal", "its init died")
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            return Cause("signal", f"its init was killed by signal {-code}")
        return Cause("exit", f"its init ended with status {code}")

    def kill(self, cause: Cause) -> None:
        """Kill PID 1 and do not wait; `end` comes after."""
        with self.lock:
            if not self.ended and self.cause is None:
                self.cause = self._died() if wait_dead(self.pidfd, 0) else cause
                kill_by(self.pidfd)

    def end(self, cause: Cause = REMOVED) -> None:
        """Kill everything inside, wait until PID 1 is dead, and leave the rest to the cleanup helper.

        Idempotent, also where an interrupt ended it half-way.  The first cause is kept.  In a forked child
        nothing happens: the container belongs to the parent.
        """
        if self.forgotten:
            return
        with self.lock:
            if not self.ended:
                if self.cause is None:
                    self.cause = self._died() if wait_dead(self.pidfd, 0) else cause
                self.ended = True
                native.lib.pcx_shutdown(self.control)
                if self.users == 0:
                    os.close(self.control)
            if self.cleanup_job is None:
                self.cleanup_job = CleanupJob(
                    self.spec.id, self.group, self.pidfd, self.block, has_directory=not self.aside
                )
            job, exit_socket, self.exit_socket = self.cleanup_job, self.exit_socket, -1
        if exit_socket >= 0:
            os.close(exit_socket)
        self.drop_file_server()
        self._kill_and_clean(job)
        for one in list(self.dependents):
            one.let_go()
        self.session.disk.drop(self)
        self.session.registry.remove(self)

    def _kill_and_clean(self, job: CleanupJob) -> None:
        if not job.taken:
            if job.mounts < 0:  # else this is the second time, after an interrupt
                job.mounts = mounts_of(self.pidfd)
            kill_by(self.pidfd)
            self.session.warm.ended()  # while it dies
            if not wait_dead(self.pidfd, _END_PATIENCE) and self.group is not None:
                self.group.kill()
            if self.before_cleanup is not None:
                self.before_cleanup()
            self.session.cleanup.put(job)

    def drop_file_server(self, which: FileServer | None = None) -> None:
        """End the files server, or this one if it still is; the next use starts one on the root of then."""
        with self.file_server_lock:
            file_server = self.file_server
            if file_server is not None and which in (None, file_server):
                file_server.close()
                self.file_server = None

    def forget(self) -> None:
        """For a forked child: close the fds alone; the container goes on, and is the parent's."""
        fds = self.control, self.pidfd, self.exit_socket
        self.forgotten = True
        self.ended, self.control, self.pidfd, self.exit_socket = True, -1, -1, -1
        self.lock, self.users, self.alone = threading.Lock(), 0, False
        self.still = threading.Condition(self.lock)
        self.active, self.processes = set(), weakref.WeakSet()
        file_server, self.file_server, self.file_server_lock = self.file_server, None, threading.Lock()
        if file_server is not None:
            file_server.forget()
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        for one in self.dependents:
            one.forget()


def _is_childless(pid: int) -> bool:
    """Has PID 1 no process?  The last one of a command is reaped a moment after its end was told."""
    for _ in range(_REAPED_WITHIN):
        found = _children(pid)
        if not found:
            return found is not None
        time.sleep(0.001)
    return False


def _children(pid: int) -> str | None:
    """PID 1's processes that are not reaped, orphans too (proc_pid_children(5)); None where none tells."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return file.read().strip()
    except OSError:
        return None


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
