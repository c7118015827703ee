"""Bring a container to life: record, cgroups, directory, plan, launcher, READY."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field

from pycontain._cgroups.group import Group
from pycontain._kernel import files, native
from pycontain._kernel.plan import OpFlag, Source, request
from pycontain._runtime.collect import Remains, wait_dead
from pycontain._runtime.compile import Template, template_of
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
    template: Template
    timings: dict[str, float]
    pid: int
    environment: Any = None  # exec's default one, encoded on first use
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
    template = template_of(engine, spec)
    if engine.features.privileged:
        attempt.block = engine.owner.blocks.acquire()
    group = attempt.group = engine.make_group(spec, attempt.block)
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
    message = template.fill(spec, attempt.block, group, command[0] if command else b"")
    if spec.init:
        native.send(attempt.control, template.security_request)
    encoded = time.perf_counter()
    ready, reply, sent = _ask_launcher(attempt, message, outgoing)
    if ready is None or ready.kind != native.READY or reply is None or reply.kind != native.STARTED:
        raise _failure(spec, template, ready, reply)
    if group is not None:
        group.started()
    done = time.perf_counter()
    timings = {
        "prepare": prepared - begun,
        "encode": encoded - prepared,
        "send": sent - encoded,
        "launch": done - sent,
        "total": done - begun,
    }
    return Running(
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
    spec: ContainerSpec, compiled: Template, ready: native.Record | None, reply: native.Record | None
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
