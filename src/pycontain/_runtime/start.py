"""Bring a container to life: record, cgroups, directory, plan, launcher, READY."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field

from pycontain._cgroups.group import Group
from pycontain._kernel import files, native
from pycontain._kernel.plan import OpFlag, Source, request
from pycontain._runtime.collect import Remains, shielded, wait_dead
from pycontain._runtime.compile import Template, template_of
from pycontain.errors import PathError, StartError, StateError

if TYPE_CHECKING:
    from pycontain._engine import Engine
    from pycontain._kernel.launcher import Launcher
    from pycontain._runtime.spec import ContainerSpec

_PIDFD_GET_MNT_NAMESPACE = 0xFF03
_END_PATIENCE = 10.0
"""Seconds in which a killed PID 1 has to be gone; what is stuck in the kernel longer is the collector's."""

_NO_USERNS = "user namespaces may be disabled: see `Engine().doctor()`"
_HINTS = {
    ("mount", 1): "the host hides parts of /proc, as inside Docker: a new /proc cannot be mounted there",
    ("clone", 1): _NO_USERNS,
    ("namespaces", 1): _NO_USERNS,
    ("session keyring", 1): "a filter above this process refuses keyctl, as Docker's does",
    ("session keyring", 122): "this user's keys are used up: see kernel.keys.maxkeys in keyrings(7)",
}


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
    lock: threading.Lock = field(factory=threading.Lock)
    ended: bool = False
    frozen: bool = False
    users: int = 0
    remains: Remains | None = None

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
            remains.mounts = mounts_of(self.pidfd)
            kill_by(self.pidfd)
            if not wait_dead(self.pidfd, _END_PATIENCE) and self.group is not None:
                self.group.kill()
            self.engine.spares.ended()
            self.engine.collector.put(remains)
        self.engine.unregister(self)

    def forget(self) -> None:
        """For a forked child: close the fds alone; the container goes on, and is the parent's."""
        fds = self.control, self.pidfd, self.exit_socket
        self.ended, self.control, self.pidfd, self.exit_socket = True, -1, -1, -1
        self.lock, self.users = threading.Lock(), 0
        for fd in fds:
            if fd >= 0:
                os.close(fd)


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


class _Attempt:
    """One start under way, and how to undo it."""

    def __init__(self, engine: Engine, spec: ContainerSpec) -> None:
        self.engine = engine
        self.spec = spec
        self.block: int | None = None
        self.group: Group | None = None
        self.directory = False
        self.control = -1
        self.exit_socket = -1
        self.fds: list[int] = []
        self.given = native.ffi.new("int[]", 0)
        self.exchange = native.ffi.new("struct pcx_exchange *")
        self.exchange.reply.fd = -1
        self.running: Running | None = None

    @property
    def pidfd(self) -> int:
        return int(self.exchange.reply.fd)

    def abandon(self) -> None:
        if self.running is not None:
            self.running.end()
            self.engine.collector.settle()
            return
        for fd in (*self.fds, *self.given, self.control, self.exit_socket):
            if fd >= 0:
                os.close(fd)
        kill_by(self.pidfd)
        if self.group is not None:
            self.group.kill()
        self.engine.collector.put(Remains(self.spec.id, self.group, self.pidfd, self.block, self.directory))
        self.engine.collector.settle()


def start(engine: Engine, spec: ContainerSpec, command: tuple[bytes, Sequence[int]] | None = None) -> Running:
    """Start a container; it idles under the agent, or is `command` (an exec buffer and three streams) itself.

    Raises StartError with the step that failed, UnsupportedError, LimitError, PathError.
    Nothing is left behind then.
    """
    try:
        return _try(engine, spec, command, spares=True)
    except StartError as error:
        if error.step != "spare":
            raise
        # It died waiting, of a signal or the OOM killer; a fresh child will tell if something is wrong.
        return _try(engine, spec, command, spares=False)


def _try(
    engine: Engine, spec: ContainerSpec, command: tuple[bytes, Sequence[int]] | None, *, spares: bool
) -> Running:
    attempt = _Attempt(engine, spec)
    try:
        with engine.launchers.borrow() as launcher:
            return _start(attempt, launcher, command, spares)
    except BaseException:
        shielded(attempt.abandon)
        raise


def _start(
    attempt: _Attempt, launcher: Launcher, command: tuple[bytes, Sequence[int]] | None, spares: bool
) -> Running:
    engine, spec = attempt.engine, attempt.spec
    begun = time.perf_counter()
    template = template_of(engine, spec)
    limits = engine.enforceable(spec.limits, spec.asked, spec.security.optional)
    spare = engine.spares.take(launcher, template, limits) if spares and command is None else None
    if spare is not None:
        attempt.block, attempt.group = spare.block, spare.group
    else:
        if engine.features.privileged:
            attempt.block = engine.owner.blocks.acquire()
        attempt.group = engine.make_group(spec.id, limits, attempt.block)
    group = attempt.group
    directory = os.path.join(engine.owner.live, spec.id)
    attempt.directory = True
    files.run(
        files.mkdir_private(directory)
        + (files.own(directory, attempt.block) if attempt.block is not None else b"")
    )
    prepared = time.perf_counter()

    attempt.control, guest = native.pair()
    attempt.fds.append(guest)
    told: tuple[int, ...] = ()
    if not spec.init:
        attempt.exit_socket, other = native.pair()
        attempt.fds.append(other)
        told = (other,)
    borrowed = group.entrance() if group is not None else []
    opened = _open_sources(attempt, template)
    outgoing = [guest, *told, *borrowed, *opened, *(command[1] if command else ())]
    message = template.fill(spec, attempt.block, group, command[0] if command else b"", spare is not None)
    if spec.init:
        native.send(attempt.control, template.security_request)
    asked = request(native.SPAWN, message)
    if spare is not None:
        parents = [fd for fd, _ in spare.group.parents()]
        script = spare.group.claim(limits, len(outgoing))
        asked = request(native.SPAWN, message + script, value=len(message))
        outgoing += parents
    elif len(message) > native.MAX_INLINE:
        asked, outgoing = _in_memory(attempt, message, outgoing)
    encoded = time.perf_counter()
    ready, reply = _ask_launcher(attempt, launcher, asked, outgoing)
    if ready is None or ready.kind != native.READY or reply.kind != native.STARTED:
        raise _failure(spec, template, ready, reply, spare is not None)
    if group is not None:
        group.started()
    done, sent = time.perf_counter(), attempt.exchange.sent / 1e9
    engine.spares.started(launcher, template)
    timings = {
        "prepare": prepared - begun,
        "encode": encoded - prepared,
        "send": sent - encoded,
        "launch": done - sent,
        "total": done - begun,
    }
    attempt.running = Running(
        spec,
        engine,
        attempt.control,
        attempt.pidfd,
        attempt.exit_socket,
        group,
        attempt.block,
        template,
        timings,
        reply.value,
    )
    engine.adopt(attempt.running)
    return attempt.running


def _ask_launcher(
    attempt: _Attempt, launcher: Launcher, message: bytes, outgoing: list[int]
) -> tuple[native.Record | None, native.Record]:
    """Send the plan; meanwhile make the first leaf; READY comes from the agent, then the launcher's reply."""
    ahead = attempt.group.leaf_ahead() if attempt.group is not None and attempt.spec.init else None
    leaf, script = ahead or (None, b"")
    made = native.ffi.new("struct pcx_files *")
    exchange = attempt.exchange
    attempt.given, attempt.fds = native.ffi.new("int[]", attempt.fds), []
    result = native.lib.pcx_exchange(
        launcher.socket,
        message,
        len(message),
        outgoing,
        len(outgoing),
        attempt.given,
        len(attempt.given),
        attempt.control,
        script,
        len(script),
        made,
        exchange,
    )
    native.checked(result, "launcher")
    if exchange.reply_result != 1:
        raise ConnectionResetError("the launcher is gone")
    if leaf is not None and attempt.group is not None:
        # Where it could not be made, the first exec tries again and says why.
        attempt.group.keep(leaf) if exchange.files_result == 0 else leaf.remove()
    ready = native.record_of(exchange.ready.record) if exchange.ready_result == 1 else None
    return ready, native.record_of(exchange.reply.record, exchange.reply.fd)


def _in_memory(attempt: _Attempt, plan: bytes, outgoing: list[int]) -> tuple[bytes, list[int]]:
    """A plan that is too long for a message."""
    memory = native.sealed("pycontain-plan", plan)
    attempt.fds.append(memory)
    return request(native.SPAWN, flags=native.IN_MEMFD, size=len(plan)), [memory, *outgoing]


def _open_sources(attempt: _Attempt, template: Template) -> list[int]:
    """As root, the mounts that the plan names, in its order; the launcher opens them for plain users."""
    engine = attempt.engine
    if not engine.features.privileged:
        return []
    opened: list[int] = []
    directory = f"{engine.owner.live}/{attempt.spec.id}"
    for path, source in ((directory, Source()), *template.sources):
        fd = native.lib.pcx_open_tree(os.fsencode(path), int(bool(source.flags & OpFlag.RECURSIVE)))
        if fd < 0:
            raise PathError(f"cannot open {path}: {os.strerror(-fd)}", path=path, errno=-fd)
        opened.append(fd)
        attempt.fds.append(fd)
    return opened


def _failure(
    spec: ContainerSpec,
    compiled: Template,
    ready: native.Record | None,
    reply: native.Record,
    spare: bool,
) -> StartError:
    record = ready if ready is not None and ready.kind == native.FAILED else reply
    if record.kind != native.FAILED:
        step = "spare" if spare else "agent"
        return StartError(f"container {spec.name} died while starting", step=step)
    step, path = record.step_name, None
    if record.op >= 0:
        if step in ("mount source", "mount id map"):
            path = compiled.sources[record.op][0]
        elif record.op < len(compiled.ops):
            path = "/" + compiled.ops[record.op].target.lstrip("/")
    hint = _HINTS.get((step, record.errno))
    if record.errno == 40:
        hint = "a symbolic link of the image stands where the engine mounts or writes"
    return StartError(
        f"container {spec.name} could not start", step=step, errno=record.errno, path=path, hint=hint
    )
