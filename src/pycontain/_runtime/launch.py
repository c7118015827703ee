"""One launch of a container: its record, cgroups, directory and plan, the answers, and how to undo it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pycontain._cgroups.exec_cgroup import ExecCgroup
from pycontain._cgroups.group import Group
from pycontain._kernel import files, hostpath, native
from pycontain._kernel.plan import Source, request
from pycontain._kernel.protocol import IN_MEMFD, MAX_FDS, MAX_INLINE, OpFlag, RecordKind, RequestKind
from pycontain._runtime.cleanup import CleanupJob
from pycontain._runtime.compile import root_plan_of
from pycontain._runtime.network import JOINED
from pycontain._runtime.root_plan import CgroupEntry, RootPlan
from pycontain._runtime.running import Running, kill_by
from pycontain.errors import PathError, StartError

if TYPE_CHECKING:
    from pycontain._kernel.launcher import Launcher
    from pycontain._model.limits import CgroupLimits
    from pycontain._runtime.precloned import PreclonedChild
    from pycontain._runtime.session import Session
    from pycontain._runtime.spec import ContainerSpec


def mount_of(path: str, source: Source) -> int:
    """Return a detached mount of the tree at a path, or of the file system image there.

    Raises:
        PathError: The path cannot be opened or mounted.
    """
    if source.image:
        from pycontain._volumes.filesystem import mount

        return mount(path)
    recursive = int(bool(source.flags & OpFlag.RECURSIVE))
    try:
        if not source.bind:
            return native.checked(native.lib.pcx_open_tree(hostpath.AT_FDCWD, os.fsencode(path), recursive))
        found = hostpath.open_path(path, os.O_PATH)
        try:
            return native.checked(native.lib.pcx_open_tree(found, b"", recursive))
        finally:
            os.close(found)
    except PathError:
        raise
    except OSError as error:
        from pycontain._runtime.start_hints import hint_for

        number = error.errno or 0
        hint = hint_for("mount source", number)
        raise PathError(
            f"cannot mount {path!r}: {error.strerror}", path=path, errno=number, hint=hint
        ) from error


class Launch:
    """A start in progress: call `prepare`, `ask` and `conclude` in this order, or `abandon` after an error.

    Args:
        session: The session that owns the container.
        spec: The container.
        command: Exec buffer and three streams of a command that is PID 1; None for the agent.

    Raises:
        UnsupportedError: This host lacks a control that the spec asks for.
    """

    def __init__(
        self, session: Session, spec: ContainerSpec, command: tuple[bytes, Sequence[int]] | None = None
    ) -> None:
        self.session = session
        self.spec = spec
        self.root_plan: RootPlan = root_plan_of(session, spec)
        self.limits: CgroupLimits = session.enforceable(spec.limits, spec.asked, spec.security.optional)
        self._command, self._streams = command or (b"", ())
        self._precloned: PreclonedChild | None = None
        self._launcher: Launcher | None = None
        self._block: int | None = None
        self._group: Group | None = None
        self._exec_cgroup: ExecCgroup | None = None
        self._exec_cgroup_script = b""
        self._directory = ""
        self._control = -1
        self._exit_socket = -1
        self._fds: list[int] = []
        self._given = native.ffi.new("int[]", 0)
        self._exchange = native.ffi.new("struct pcx_exchange *")
        self._exchange.reply.fd = -1
        self._running: Running | None = None
        self._outgoing: list[int] = []
        self._asked = b""
        self.begun = self._prepared = self._encoded = time.perf_counter()

    @property
    def pidfd(self) -> int:
        """Return the pidfd of PID 1, or -1 before the launcher has answered."""
        return int(self._exchange.reply.fd)

    def prepare(self, *, precloned: PreclonedChild | None = None, warm: bool = False) -> None:
        """Create everything that the container needs before its first process, and encode the plan.

        Args:
            precloned: The pre-cloned child to use.
            warm: Whether the launcher creates the cgroups.

        Raises:
            LimitError: A limit cannot be set, or no block of ids is free.
            PathError: A path to mount cannot be used.
            OSError: A directory, cgroup or descriptor cannot be had.
        """
        session, spec = self.session, self.spec
        self._precloned = precloned
        if precloned is not None:
            self._block, self._group = precloned.block, precloned.group
        else:
            if session.features.privileged:
                self._block = session.owner.blocks.acquire()
            # Recorded before it exists, so that an interrupt leaves nothing behind.
            self._group = Group(session.cgroups, spec.id, self._block) if session.cgroups.usable else None
            if self._group is not None and not warm:
                self._group.make(self.limits)
        self._directory = os.path.join(session.owner.live, spec.id)
        files.run(
            files.mkdir_private(self._directory)
            + (files.own(self._directory, self._block) if self._block is not None else b"")
        )
        self._prepared = time.perf_counter()
        self._open_sockets()
        self._open_sources()
        self._encode(warm)
        self._encoded = time.perf_counter()

    def _open_sockets(self) -> None:
        self._control, guest = native.pair()
        self._fds.append(guest)
        if self.spec.init:
            native.send(self._control, self.root_plan.security_request)
        else:
            self._exit_socket, other = native.pair()
            self._fds.append(other)

    def _open_sources(self) -> None:
        """Open the mounts of the plan in its order; rootless the launcher opens them."""
        if not self.session.features.privileged:
            return
        for path, source in ((self._directory, Source()), *self.root_plan.sources):
            self._fds.append(mount_of(path, source))

    def _encode(self, warm: bool) -> None:
        """Encode the request: the plan and, if the launcher creates or limits cgroups, a script for that."""
        group, entry, script = self._group, CgroupEntry(), b""
        self._outgoing = list(self._fds)
        by_launcher = group is not None and (warm or self._precloned is not None)
        if group is not None and by_launcher:
            first = len(self._outgoing)
            script = (group.creation_script if warm else group.limits_script)(self.limits, first)
            parents = [fd for fd, _ in group.parents()]
            if warm:
                entry = CgroupEntry(group.enters_unified, group.tasks_count, len(parents))
            self._outgoing += parents
        elif group is not None:
            entry = CgroupEntry(group.unified_fd >= 0, len(group.tasks))
            self._outgoing += group.entry_fds()
        join = None
        if self.spec.network_spec.kind == JOINED:
            join = len(self._outgoing)
            self._fds.append(self.session.registry.find(self.spec.network_spec.other).share_namespaces())
            self._outgoing.append(self._fds[-1])
        self._outgoing += self._streams
        plan = self.root_plan.fill(
            self.spec,
            self._block,
            entry,
            self._command,
            precloned=self._precloned is not None,
            join=join,
            group=group.name if group is not None else "",
        )
        if by_launcher:
            self._asked = request(RequestKind.SPAWN, plan + script, value=len(plan))
        elif len(plan) > MAX_INLINE:
            memory = native.sealed("pycontain-plan", plan)
            self._fds.append(memory)
            self._asked = request(RequestKind.SPAWN, flags=IN_MEMFD, size=len(plan))
            self._outgoing.insert(0, memory)
        else:
            self._asked = request(RequestKind.SPAWN, plan)
        if group is not None and self.spec.init:
            self._exec_cgroup, self._exec_cgroup_script = group.first_exec_cgroup() or (None, b"")

    def ask(self, launcher: Launcher) -> None:
        """Send the request to a launcher, without waiting for the answer.

        Raises:
            ConnectionError: The launcher has died.
            OSError: The request cannot be sent.
        """
        self._launcher = launcher
        self._given, self._fds = native.ffi.new("int[]", self._fds), []
        more, self._outgoing = self._outgoing[MAX_FDS:], self._outgoing[:MAX_FDS]
        for at in range(0, len(more), MAX_FDS):
            part = more[at : at + MAX_FDS]
            native.send(launcher.socket, request(RequestKind.FDS, value=int(at == 0)), part)
        # First, so that after an interrupt the next reader skips this answer.
        launcher.unanswered.append(self)
        native.checked(
            native.lib.pcx_send_plan(
                launcher.socket,
                self._asked,
                len(self._asked),
                self._outgoing,
                len(self._outgoing),
                self._given,
                len(self._given),
                self._exchange,
            ),
            "launcher",
        )

    def receive_answers(self) -> None:
        """Wait for the answers of agent and launcher; meanwhile create the first exec cgroup.  Idempotent."""
        launcher = self._launcher
        if launcher is None:
            return
        with launcher.receiving:
            while self in launcher.unanswered:
                launcher.unanswered[0].receive_answer(launcher.socket)
                launcher.unanswered.popleft()

    def receive_answer(self, socket: int) -> None:
        """Read the next answer of a launcher, which is the one to this request."""
        made = native.ffi.new("struct pcx_files *")
        script = self._exec_cgroup_script
        native.lib.pcx_receive_answers(socket, self._control, script, len(script), made, self._exchange)

    def conclude(self, spec: ContainerSpec | None = None) -> Running:
        """Wait for the answers and return the live container.

        Args:
            spec: The options of the container that takes a warm one.

        Raises:
            StartError: A step failed; it is named.
            ConnectionResetError: The launcher has died.
        """
        if spec is not None:
            self.spec, self.begun = spec, time.perf_counter()
            self._prepared = self._encoded = self.begun
        self.receive_answers()
        exchange, group = self._exchange, self._group
        if exchange.reply_result != 1:
            raise ConnectionResetError("the launcher has died")
        if self._exec_cgroup is not None and group is not None:
            # If it could not be created, the first exec tries again and reports the cause.
            group.keep(self._exec_cgroup) if exchange.files_result == 0 else self._exec_cgroup.remove()
            self._exec_cgroup = None
        ready = native.record_of(exchange.ready.record) if exchange.ready_result == 1 else None
        reply = native.record_of(exchange.reply.record, exchange.reply.fd)
        if ready is None or ready.kind != RecordKind.READY or reply.kind != RecordKind.STARTED:
            raise self._failure(ready, reply)
        if group is not None:
            group.started()
        self._running = Running(
            self.spec,
            self.session,
            self._control,
            self.pidfd,
            self._exit_socket,
            group,
            self._block,
            self.root_plan,
            self._timings(),
            reply.value,
        )
        return self._running

    def _timings(self) -> dict[str, float]:
        done = time.perf_counter()
        sent = max(self._encoded, self._exchange.sent / 1e9)
        return {
            "prepare": self._prepared - self.begun,
            "encode": self._encoded - self._prepared,
            "send": sent - self._encoded,
            "launch": done - sent,
            "total": done - self.begun,
        }

    def abandon(self) -> None:
        """Undo the start: kill the processes, and let the cleanup helper remove the rest."""
        if self._running is not None:
            self._running.end()
            return
        self.receive_answers()
        for fd in (*self._fds, *self._given, self._control, self._exit_socket):
            if fd >= 0:
                os.close(fd)
        kill_by(self.pidfd)
        try:
            if self._group is not None:
                self._group.kill()
        finally:  # the kill fails without a free descriptor; cleanup is due in any case
            self.session.cleanup.put(
                CleanupJob(self.spec.id, self._group, self.pidfd, self._block, bool(self._directory))
            )

    def forget(self) -> None:
        """Close the descriptors in a forked child."""
        for fd in (self._control, self._exit_socket, self.pidfd):
            if fd >= 0:
                os.close(fd)

    def _failure(self, ready: native.Record | None, reply: native.Record) -> StartError:
        from pycontain._runtime.start_hints import hint_for

        record = ready if ready is not None and ready.kind == RecordKind.FAILED else reply
        name = self.spec.name
        if record.kind != RecordKind.FAILED:
            step = "spare" if self._precloned is not None else "agent"
            return StartError(f"container {name} died while starting", step=step)
        step, path = record.step_name, None
        if record.op >= 0:
            if step in ("mount source", "mount id map"):
                path = self.root_plan.sources[record.op][0]
            elif record.op < len(self.root_plan.ops):
                path = "/" + self.root_plan.ops[record.op].target.lstrip("/")
        hint = hint_for(step, record.errno, path)
        if path is not None and path.startswith("/proc/sys/"):
            step = "sysctl"
        return StartError(
            f"container {name} could not start", step=step, errno=record.errno, path=path, hint=hint
        )
