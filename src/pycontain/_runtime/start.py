"""Bring a container to life: record, cgroups, directory, plan, launcher, READY."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define, field

from pycontain._cgroups.group import Group
from pycontain._kernel import native
from pycontain._kernel.plan import NO_FD, Plan, PlanFlag, Source, request
from pycontain._runtime.collect import Remains, wait_dead
from pycontain._runtime.compile import Compiled, compile_root, identity_map, namespaces
from pycontain.errors import PathError, StartError

if TYPE_CHECKING:
    from pycontain._engine import Engine
    from pycontain._runtime.spec import ContainerSpec

_EPERM_HINTS = {
    "mount": "the host hides parts of /proc, as inside Docker: a new /proc cannot be mounted there",
    "clone": "user namespaces may be disabled: see `Engine().doctor()`",
    "namespaces": "user namespaces may be disabled: see `Engine().doctor()`",
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
    compiled: Compiled
    timings: dict[str, float]
    pid: int
    lock: threading.Lock = field(factory=threading.Lock)
    ended: bool = False

    def end(self) -> None:
        """Kill everything inside, wait until PID 1 is dead, and leave the rest to the collector."""
        with self.lock:
            if self.ended:
                return
            self.ended = True
        os.close(self.control)
        if not self.spec.init:
            import signal

            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_dead(self.pidfd)
        self.engine.collector.put(Remains(self.spec.id, self.group, self.pidfd, self.block))
        if self.exit_socket >= 0:
            os.close(self.exit_socket)

    def forget(self) -> None:
        """Close the fds alone: for a forked child, which must not keep the container alive."""
        for fd in (self.control, self.pidfd, self.exit_socket):
            if fd >= 0:
                try:
                    os.close(fd)
                except OSError:
                    pass


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
        self.pidfd = -1
        self.fds: list[int] = []
        self.sent_from = 0

    def abandon(self) -> None:
        for fd in (*self.fds, self.control, self.exit_socket):
            if fd >= 0:
                os.close(fd)
        self.fds = []
        self.engine.collector.put(Remains(self.spec.id, self.group, self.pidfd, self.block, self.directory))
        self.engine.collector.settle()


def start(engine: Engine, spec: ContainerSpec, command: tuple[bytes, Sequence[int]] | None = None) -> Running:
    """Start a container; it idles under the agent, or is `command` (an exec buffer and three streams) itself.

    Raises StartError with the control that failed, UnsupportedError for one that this host lacks.
    Nothing is left behind then.
    """
    attempt = _Attempt(engine, spec)
    try:
        return _start(attempt, command)
    except BaseException:
        attempt.abandon()
        raise


def _start(attempt: _Attempt, command: tuple[bytes, Sequence[int]] | None) -> Running:
    engine, spec = attempt.engine, attempt.spec
    begun = time.perf_counter()
    features = engine.features
    compiled = compile_root(engine, spec)
    if features.privileged:
        attempt.block = engine.owner.blocks.acquire()
    group = attempt.group = engine.make_group(spec, compiled, attempt.block)
    os.mkdir(spec.id, 0o700, dir_fd=engine.owner.live_fd)
    attempt.directory = True
    if attempt.block is not None:
        os.chown(spec.id, attempt.block, attempt.block, dir_fd=engine.owner.live_fd)
    prepared = time.perf_counter()

    attempt.control, guest = native.pair()
    fds = attempt.fds
    fds.append(guest)
    exit_index = NO_FD
    if not spec.init:
        attempt.exit_socket, told = native.pair()
        exit_index = len(fds)
        fds.append(told)
    borrowed: list[int] = []
    cgroup_index, tasks_index = NO_FD, 0
    if group is not None:
        if group.birth >= 0:
            cgroup_index = len(fds) + len(borrowed)
            borrowed.append(group.birth)
        tasks_index = len(fds) + len(borrowed)
        borrowed.extend(group.tasks)
    store, sources, opened = _open_sources(engine, spec, compiled, len(fds) + len(borrowed))
    outgoing = [*fds, *borrowed, *opened, *(command[1] if command else ())]
    fds.extend(opened)
    id_map = identity_map(engine, attempt.block)
    plan = Plan(
        control_fd=0,
        exit_fd=exit_index,
        cgroup_fd=cgroup_index,
        tasks_fd=tasks_index,
        tasks=len(group.tasks) if group is not None else 0,
        namespaces=namespaces(engine, spec),
        ops=compiled.ops,
        sources=sources,
        store=store,
        security=compiled.security,
        flags=compiled.flags | (PlanFlag.COMMAND_IS_INIT if command else 0),
        hostname=spec.hostname,
        command=command[0] if command else b"",
        uid_map=id_map,
        gid_map=id_map,
    )
    message = plan.encode()
    if spec.init:
        native.send(attempt.control, request(native.SECURITY, compiled.security))
    encoded = time.perf_counter()
    ready, reply, sent = _ask_launcher(attempt, message, outgoing)
    if reply is not None and reply.fd >= 0:
        attempt.pidfd = reply.fd
    if ready is None or ready.kind != native.READY or reply is None or reply.kind != native.STARTED:
        raise _failure(spec, compiled, ready, reply)
    if group is not None:
        group.started()
    done = time.perf_counter()
    return Running(
        spec,
        engine,
        attempt.control,
        attempt.pidfd,
        attempt.exit_socket,
        group,
        attempt.block,
        compiled,
        {
            "prepare": prepared - begun,
            "encode": encoded - prepared,
            "send": sent - encoded,
            "launch": done - sent,
            "total": done - begun,
        },
        reply.value,
    )


def _ask_launcher(
    attempt: _Attempt, plan: bytes, outgoing: list[int]
) -> tuple[native.Record | None, native.Record | None, float]:
    """Send the plan; meanwhile make the first leaf; READY comes from the agent, then the launcher's reply."""
    with attempt.engine.launchers.borrow() as launcher:
        if len(plan) > native.MAX_INLINE:
            memory = native.sealed("pycontain-plan", plan)
            attempt.fds.append(memory)
            header = request(native.SPAWN, flags=native.IN_MEMFD, size=len(plan))
            native.send(launcher.socket, header, [memory, *outgoing])
        else:
            native.send(launcher.socket, request(native.SPAWN, plan), outgoing)
        sent = time.perf_counter()
        # Ours alone would hold the guest's ends open and hide the end of its stream.
        while attempt.fds:
            os.close(attempt.fds.pop())
        failed: BaseException | None = None
        try:
            if attempt.group is not None and attempt.spec.init:
                attempt.group.prepare()
        except BaseException as error:  # noqa: BLE001  raised below, when the launcher has answered
            failed = error
        try:
            ready = native.receive_uninterrupted(attempt.control)
        finally:
            reply = native.receive_uninterrupted(launcher.socket)
            if reply is not None and reply.fd >= 0:
                attempt.pidfd = reply.fd
        if failed is not None:
            raise failed
        if reply is None:
            raise ConnectionResetError("the launcher is gone")
        return ready, reply, sent


def _open_sources(
    engine: Engine, spec: ContainerSpec, compiled: Compiled, first: int
) -> tuple[Source, list[Source], list[int]]:
    """The mounts that the plan names: opened here as root, described for the launcher otherwise."""
    opened: list[int] = []
    directory = f"{engine.owner.live}/{spec.id}"

    def source_of(path: str, template: Source) -> Source:
        if engine.features.privileged:
            fd = native.lib.pcx_open_tree(os.fsencode(path), int(bool(template.flags & 16)))
            if fd < 0:
                for other in opened:
                    os.close(other)
                raise PathError(f"cannot open {path}: {os.strerror(-fd)}", path=path, errno=-fd)
            opened.append(fd)
            return Source(first + len(opened) - 1, "", 0, 0, template.flags, template.attributes)
        found = os.stat(path)
        device = os.major(found.st_dev) << 32 | os.minor(found.st_dev)
        return Source(NO_FD, path, device, found.st_ino, template.flags, template.attributes)

    store = source_of(directory, Source())
    return store, [source_of(path, template) for path, template in compiled.sources], opened


def _failure(
    spec: ContainerSpec, compiled: Compiled, ready: native.Record | None, reply: native.Record | None
) -> StartError:
    record = ready if ready is not None and ready.kind == native.FAILED else reply
    if record is None or record.kind != native.FAILED:
        return StartError(f"container {spec.name} died while starting", step="agent")
    step, path = record.step_name, None
    if record.op >= 0:
        if step in ("mount source", "mount id map"):
            path = compiled.sources[record.op][0]
        elif record.op < len(compiled.ops):
            path = "/" + compiled.ops[record.op].target.lstrip("/")
    hint = _EPERM_HINTS.get(step) if record.errno == 1 else None
    if record.errno == 40:
        hint = "a symbolic link of the image stands where the engine mounts or writes"
    return StartError(
        f"container {spec.name} could not start", step=step, errno=record.errno, path=path, hint=hint
    )
