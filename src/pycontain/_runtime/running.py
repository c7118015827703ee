"""A live container: the descriptors by which this process controls it, and its end."""

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
from pycontain._kernel.protocol import RequestKind
from pycontain._runtime.cleanup import CleanupJob
from pycontain._runtime.log import debug
from pycontain.errors import ContainerEnded, StateError

if TYPE_CHECKING:
    from pycontain._cgroups.group import Group
    from pycontain._kernel.file_server import FileServer
    from pycontain._model.process import Reason
    from pycontain._networks.container_networks import ContainerNetworks
    from pycontain._runtime.cancel import Cancellable
    from pycontain._runtime.root_plan import RootPlan
    from pycontain._runtime.session import Session
    from pycontain._runtime.spec import ContainerSpec

_PIDFD_GET_MNT_NAMESPACE = 0xFF03
_REAPED_WITHIN = 20
"""Milliseconds in which PID 1 reaps the last process of a command."""
_IDLE_WITHIN = 1000
"""Milliseconds in which an idle agent answers."""
_END_PATIENCE = 10.0
"""Seconds to wait for a killed PID 1; after that the cleanup helper waits for it."""
_STATUS_WITHIN = 1.0
"""Seconds in which PID 1 is dead after it has closed its sockets."""


@frozen
class Cause:
    """The reason for the end of a container, and a clause for messages."""

    reason: Reason
    text: str


REMOVED = Cause("cancelled", "it was removed")
STOPPED = Cause("cancelled", "it was stopped")
KILLED = Cause("signal", "it was killed")


class Dependent(Protocol):
    """An object that has descriptors of a container open while it runs."""

    def container_ended(self) -> None:
        """Close the descriptors after the end of the container."""

    def forget(self) -> None:
        """Close the descriptors in a forked child, without a lock, which another thread may have held."""


@define(eq=False)
class Running:
    """A live container.

    Attributes:
        spec: Its options.
        session: The session that owns it.
        control: Socket of its agent; use `acquire_control`.
        pidfd: Descriptor of its PID 1, closed by the cleanup helper's job after the end.
        exit_socket: Socket that reports the end of a command that is PID 1, or -1.
        group: Its cgroups, None without any.
        block: Its block of user ids, None where it has none of its own.
        root_plan: The plan of its root file system and controls.
        timings: Seconds of each phase of the start.
        pid: Its PID 1 as the host sees it.
        handle: The `Container` of the caller, for `Engine.containers`.
        lock: Protects the descriptors and the state of the end.
        frozen: Whether it is paused.
        users: Threads that use `control`.
        exclusive: Whether a thread waits for or has exclusive use; see `quiesced`.
        upper: Number of its upper directory; a replaced root has the next one.
        directory_moved: Whether its directory was moved away, so that the cleanup job has none.
        writers: Open files that write to it.
        dependents: Objects with descriptors of it, to be closed at its end.
        shared: Whether another container uses its network namespace.
        active: Commands that threads wait for.
        processes: Commands of `popen`.
        cause: Why it ended.
        before_cleanup: Called after its end, before the cleanup.
    """

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
    handle: object = None
    environment: Any = None  # the default one of exec, encoded on first use
    zygote: Any = None  # the one of `Container.call`, made on first use
    lock: threading.Lock = field(factory=threading.Lock)
    released: threading.Condition = field(init=False)
    ended: bool = False
    frozen: bool = False
    users: int = 0
    exclusive: bool = False
    upper: int = 0
    directory_moved: bool = False
    writers: weakref.WeakSet[IO[Any]] = field(factory=weakref.WeakSet)
    cleanup_job: CleanupJob | None = None
    dependents: list[Dependent] = field(factory=list)
    file_server_lock: threading.Lock = field(factory=threading.Lock)
    file_server: FileServer | None = None
    networks: ContainerNetworks | None = None
    shared: bool = False
    active: set[Cancellable] = field(factory=set)
    processes: weakref.WeakSet[Cancellable] = field(factory=weakref.WeakSet)
    cause: Cause | None = None
    before_cleanup: Callable[[], None] | None = None
    forgotten: bool = False

    @released.default
    def _released(self) -> threading.Condition:
        return threading.Condition(self.lock)

    @property
    def upper_path(self) -> str:
        """Return the upper directory of the root file system on disk."""
        return os.path.join(self.session.owner.live, self.spec.id, str(self.upper), "u")

    @property
    def first_id(self) -> int:
        """Return the host's user id of the guest's root."""
        return self.block or 0

    @contextlib.contextmanager
    def quiesced(self) -> Iterator[bool]:
        """Keep other threads from using the container, and yield whether it is quiet.

        It is quiet if the agent is its only process and no file of it is open for writing here.

        Raises:
            StateError: The container has ended.
        """
        with self.lock:
            if self.ended:
                raise StateError(f"container {self.spec.name} is not running")
            self.exclusive = self.users == 0
        try:
            written = any(not file.closed for file in list(self.writers))
            quiet = self.exclusive and not written and self.spec.init and self._is_idle()
            yield quiet and _is_childless(self.pid)
        finally:
            with self.lock:
                self.exclusive = False
                self.released.notify_all()

    def acquire_control(self) -> int:
        """Return the control socket, which stays open until `release_control`.

        Without that its number could belong to another container's socket by the time of its use.

        Raises:
            StateError: The container has ended.
        """
        with self.lock:
            self.released.wait_for(lambda: not self.exclusive)
            if self.ended:
                raise StateError(f"container {self.spec.name} is not running")
            self.users += 1
            return self.control

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the control socket open and the root file system in place during a `with` block.

        Raises:
            StateError: The container has ended.
        """
        self.acquire_control()
        try:
            yield
        finally:
            self.release_control()

    def release_control(self) -> None:
        """End a use of the control socket; the last one closes it if the container has ended."""
        with self.lock:
            self.users -= 1
            if self.ended and self.users == 0:
                os.close(self.control)

    def _is_idle(self) -> bool:
        """Return whether the agent has finished: it answers requests in turn, so that a new one is last."""
        ours, theirs = native.pair()
        try:
            native.send(self.control, request(RequestKind.KILL_TREE, number=0), [theirs])
            os.close(theirs)
            theirs = -1
            return native.receive(ours, _IDLE_WITHIN) is not None
        except OSError:
            return False  # too busy, or dead
        finally:
            for fd in (ours, theirs):
                if fd >= 0:
                    os.close(fd)

    def share_namespaces(self) -> int:
        """Return a pidfd of PID 1 for a container that joins its namespaces, which then outlive it.

        The caller closes the descriptor.

        Raises:
            StateError: The container has ended.
        """
        with self.lock:
            if self.ended:
                raise StateError(f"container {self.spec.name} is not running")
            self.shared = True
            return os.dup(self.pidfd)

    def share_pidfd(self) -> int:
        """Return a pidfd of PID 1, which the caller closes.

        Raises:
            StateError: The container has ended.
        """
        with self.lock:
            if self.ended:
                raise StateError(f"container {self.spec.name} is not running")
            return os.dup(self.pidfd)

    def attach(self, make: Callable[[int], ContainerNetworks]) -> ContainerNetworks:
        """Return the networks of the container, made on first use with a pidfd that they own.

        Raises:
            StateError: The container has ended.
        """
        with self.lock:
            # `end` sets this under the lock before it reads the dependents.
            if self.ended:
                raise StateError(f"container {self.spec.name} is not running")
            if self.networks is None:
                self.networks = make(os.dup(self.pidfd))
                self.dependents.append(self.networks)
            return self.networks

    @property
    def dead(self) -> bool:
        """Return whether PID 1 has ended."""
        with self.lock:
            return self.ended or wait_dead(self.pidfd, 0)

    def why_ended(self) -> Cause:
        """Return why the container ended, for a command that lost its agent."""
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
        """Return why PID 1 ended; called with the lock held, before the pidfd is closed."""
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
        """Kill PID 1 without waiting; the caller calls `end` afterwards."""
        with self.lock:
            if not self.ended and self.cause is None:
                self.cause = self._died() if wait_dead(self.pidfd, 0) else cause
                kill_by(self.pidfd)

    def end(self, cause: Cause = REMOVED) -> None:
        """Kill everything inside, wait until PID 1 is dead, and leave the rest to the cleanup helper.

        Idempotent, also after an interrupt in the middle.  No-op in a forked child, because the container is
        the parent's.

        Args:
            cause: Why it ends; the first cause is kept.
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
                    self.spec.id, self.group, self.pidfd, self.block, has_directory=not self.directory_moved
                )
            job, exit_socket, self.exit_socket = self.cleanup_job, self.exit_socket, -1
        if exit_socket >= 0:
            os.close(exit_socket)
        self.drop_file_server()
        self._kill_and_clean(job)
        for one in list(self.dependents):
            one.container_ended()
        self.session.disk.drop(self)
        self.session.kernel_memory.drop(self)
        if self.session.registry.remove(self) and self.cause is not None:
            debug("container %s ended: %s (%s)", self.spec.name, self.cause.reason, self.cause.text)

    def _kill_and_clean(self, job: CleanupJob) -> None:
        if not job.taken:
            if job.mounts < 0:  # it is set in the second call, after an interrupt
                job.mounts = mounts_of(self.pidfd)
            kill_by(self.pidfd)
            self.session.warm.ended()  # while it dies
            if not wait_dead(self.pidfd, _END_PATIENCE) and self.group is not None:
                self.group.kill()
            if self.before_cleanup is not None:
                self.before_cleanup()
            self.session.cleanup.put(job)

    def drop_file_server(self, which: FileServer | None = None) -> None:
        """End the file server; the next use starts one on the root file system of that time.

        Args:
            which: Only if it is this one.
        """
        with self.file_server_lock:
            file_server = self.file_server
            if file_server is not None and which in (None, file_server):
                file_server.close()
                self.file_server = None

    def forget(self) -> None:
        """Close the descriptors in a forked child; the container is the parent's and goes on."""
        fds = self.control, self.pidfd, self.exit_socket
        self.forgotten = True
        self.ended, self.control, self.pidfd, self.exit_socket = True, -1, -1, -1
        self.lock, self.users, self.exclusive = threading.Lock(), 0, False
        self.released = threading.Condition(self.lock)
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
    """Return whether PID 1 has no child; the last one is reaped a moment after its end was reported."""
    for _ in range(_REAPED_WITHIN):
        found = _children(pid)
        if not found:
            return found is not None
        time.sleep(0.001)
    return False


def _children(pid: int) -> str | None:
    """Return the children of PID 1, orphans included (proc_pid_children(5)), or None if it has ended."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return file.read().strip()
    except OSError:
        return None


def mounts_of(pidfd: int) -> int:
    """Return a descriptor of the mount namespace of a process, or -1 before Linux 6.11.

    The last user of a mount namespace unmounts everything in it, which waits for two grace periods of the
    kernel. The cleanup helper gets the descriptor so that it is the last.
    """
    try:
        return fcntl.ioctl(pidfd, _PIDFD_GET_MNT_NAMESPACE)
    except OSError:
        return -1


def kill_by(pidfd: int) -> None:
    """Kill the process of a pidfd; no-op for a process that has ended and for -1."""
    if pidfd >= 0:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
