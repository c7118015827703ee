"""Commands in a running container: request to the agent, exec cgroup, kill, and result."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from pycontain._cgroups.exec_cgroup import Counters, ExecCgroup
from pycontain._kernel import native
from pycontain._kernel.plan import encode_exec, request
from pycontain._kernel.protocol import IN_MEMFD, MAX_INLINE, ExecFlag, RequestKind
from pycontain._model.process import Reason, Usage
from pycontain._runtime.running import Cause
from pycontain._runtime.users import ROOT, Identity, resolve, with_groups
from pycontain.errors import StateError

if TYPE_CHECKING:
    from pycontain._model.limits import CgroupLimits
    from pycontain._runtime.lent import Carrier
    from pycontain._runtime.running import Running
    from pycontain._runtime.spec import ContainerSpec

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NUMBERS = itertools.count(1)
_PAYLOAD_MOST = 16 << 20
"""Bytes of a request that the agent maps (wire.c); execve(2) takes 6 MB at most."""
_CPU_MOST = 1 << 32
"""Seconds: a higher rlimit is none."""
_CPU_SHARE = 0.7
"""Share of the rlimit cpu that counts as reached: the kernel counts whole ticks, a cgroup no stolen time."""
_GONE = (errno.EPIPE, errno.ECONNRESET)
_STREAM_BITS = (ExecFlag.STDIN, ExecFlag.STDOUT, ExecFlag.STDERR)
_KILL_PATIENCE, _AGENT_PATIENCE = 10.0, 1.0
"""Seconds: for a tree to be gone, and for an agent where a cgroup does the same without it."""


@frozen
class Environment:
    """An environment, encoded once."""

    encoded: bytes
    count: int
    search: str

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> Environment:
        """Encode variables; commands are looked up in their PATH."""
        lines = [f"{name}={value}\0".encode("utf-8", "surrogateescape") for name, value in variables.items()]
        return cls(b"".join(lines), len(lines), variables.get("PATH", _DEFAULT_PATH))


@frozen
class Command:
    """A resolved command: the exec request without its descriptors."""

    argv: tuple[str, ...]
    env: Environment
    identity: Identity
    workdir: str
    terminal: tuple[int, int] | None = None

    def encode(self, number: int, flags: int, tasks: int) -> bytes:
        """Return the exec buffer.

        Args:
            number: Number of the command at the agent.
            flags: Flags of `ExecFlag`.
            tasks: The number of v1 cgroups of the command.

        Raises:
            ValueError: An argument or variable contains a NUL byte.
        """
        return encode_exec(
            flags=flags,
            number=number,
            tasks=tasks,
            uid=self.identity.uid,
            gid=self.identity.gid,
            groups=self.identity.groups,
            argv=[part.encode("utf-8", "surrogateescape") for part in self.argv],
            env=self.env.encoded,
            env_count=self.env.count,
            workdir=self.workdir,
            search=self.env.search,
            size=self.terminal or (0, 0),
        )


def command_of(
    running: Running,
    argv: tuple[str, ...],
    env: Mapping[str, str] | None,
    workdir: str | None,
    user: str | None,
    terminal: tuple[int, int] | None = None,
) -> Command:
    """Return a command with the defaults of image and container.

    Args:
        running: The container.
        argv: The command and its arguments.
        env: Variables in addition to those of image and container.
        workdir: Its working directory, None for the container's.
        user: Its user, None for the container's.
        terminal: Rows and columns of its terminal, None without one.

    Raises:
        NotFound: The image has no such user.
    """
    spec = running.spec
    name = spec.user if user is None else str(user)
    identity = resolve(running, name) if name else ROOT
    if spec.group_add:
        identity = with_groups(running, identity)
    if identity is ROOT and not env and terminal is None:
        if running.environment is None:
            running.environment = Environment.of(default_variables(spec, ROOT))
        return Command(argv, running.environment, ROOT, workdir or spec.workdir)
    variables = default_variables(spec, identity)
    if terminal is not None:
        variables.setdefault("TERM", "xterm")
    if env:
        variables.update(env)
    return Command(argv, Environment.of(variables), identity, workdir or spec.workdir, terminal)


def default_variables(spec: ContainerSpec, identity: Identity) -> dict[str, str]:
    """Return the variables of a command: HOME, those of the image and those of the container."""
    return {"HOME": identity.home, **spec.image.env, **spec.env}


@define(eq=False)
class Execution:
    """A command that was requested from the agent.

    Attributes:
        running: The container.
        command: The command.
        number: Its number at the agent.
        channel: Socket on which the agent reports its end.
        exec_cgroup: Its exec cgroup, None without any.
        begun: The moment of the request, by time.perf_counter.
        timings: Seconds of each phase of the request.
        ended: Whether `finish` was called.
        alone: Whether no other command ran in the container meanwhile; set by `finish`.
        cancelled: Whether `cancel` was called.
        thread: Identifier of the thread that waits for it.
        last: Counters read before the end of the container.
        stops: Kills for the disk limit before its start.
        lent: Streams that the caller lends to it.
    """

    running: Running
    command: Command
    number: int
    channel: int
    exec_cgroup: ExecCgroup | None
    begun: float
    timings: dict[str, float] = field(factory=dict)
    ended: bool = False
    exclusive: bool = False
    cancelled: bool = False
    thread: int = 0
    last: Counters | None = None
    stops: int = 0
    memory_stops: int = 0
    lent: Carrier | None = None

    @classmethod
    def launch(
        cls,
        running: Running,
        command: Command,
        streams: Sequence[int],
        limits: CgroupLimits | None,
        *,
        quiet: bool = False,
        idle: bool = False,
    ) -> Execution:
        """Request a command from the agent.

        Args:
            running: The container.
            command: The command.
            streams: Descriptors of its stdin, stdout and stderr, -1 for /dev/null; the caller closes them.
            limits: Limits of this command.
            quiet: Whether the channel reports only the end.
            idle: Whether it only waits, so that it is not counted as a concurrent command.

        Raises:
            StateError: The container has ended, or has no agent.
            LimitError: A limit cannot be set.
            UnsupportedError: This host cannot enforce a limit.
        """
        begun = time.perf_counter()
        stops = running.session.disk.stops(running)
        memory_stops = running.session.kernel_memory.stops(running)
        if running.spec.init is False:
            raise StateError(
                "a container with init=False has no agent to start another command",
                hint="leave init=False out",
            )
        group = running.group
        if limits is not None:
            running.session.cgroups.check(limits)
        try:
            exec_cgroup = group.acquire(limits, idle=idle) if group is not None else None
        except OSError as error:
            if running.dead:
                raise StateError(f"container {running.spec.name} has ended") from error
            raise
        try:
            number = next(_NUMBERS) & 0xFFFFFFFF
            prepared = time.perf_counter()
            channel = _send(running, command, number, streams, exec_cgroup, ExecFlag.QUIET if quiet else 0)
        except BaseException:
            if group is not None and exec_cgroup is not None:
                group.release(exec_cgroup)
            raise
        sent = time.perf_counter()
        timings = {"prepare": prepared - begun, "send": sent - prepared}
        execution = cls(running, command, number, channel, exec_cgroup, begun, timings)
        execution.stops, execution.memory_stops = stops, memory_stops
        return execution

    def kill(self) -> None:
        """Kill the whole process tree of this command, and wait until its last process is gone.

        If that cannot be verified, the whole container is ended.
        """
        # The agent first: it answers requests in turn, so no process of this command starts after its kill.
        gone = self._kill_by_agent()
        if self.running.ended:
            return
        if self.exec_cgroup is not None and self.exec_cgroup.killable:
            try:
                gone = self.exec_cgroup.kill(_KILL_PATIENCE)
            except FileNotFoundError:
                gone = True  # the cgroup was removed, so it was empty
        if not gone:
            self.running.end(Cause("cancelled", "a command in it could not be killed otherwise"))

    def cancel(self) -> None:
        """Make the thread that waits for this command kill it, with reason 'cancelled'; return at once."""
        with self.running.lock:  # after its end, another socket may have the number of its channel
            if not self.ended:
                self.cancelled = True
                native.lib.pcx_shutdown(self.channel)

    def _kill_by_agent(self) -> bool:
        patience = (
            _AGENT_PATIENCE if self.exec_cgroup is not None and self.exec_cgroup.killable else _KILL_PATIENCE
        )
        ours, theirs = native.pair()
        try:
            self._request(request(RequestKind.KILL_TREE, number=self.number), [theirs])
            os.close(theirs)
            theirs = -1
            record = native.receive(ours, int(patience * 1000))
        except TimeoutError:
            return False
        except (OSError, StateError):
            return True  # the container has ended, and the command with it
        finally:
            os.close(ours)
            if theirs >= 0:
                os.close(theirs)
        return record is None or record.errno == 0

    def _request(self, message: bytes, fds: list[int]) -> None:
        control = self.running.acquire_control()
        try:
            native.send(control, message, fds)
        finally:
            self.running.release_control()

    def signal(self, number: int) -> None:
        """Send a signal to the command's first process."""
        self._request(request(RequestKind.SIGNAL, number=self.number, value=number), [])

    def finish(self) -> Counters:
        """Read the counters and give the exec cgroup back; the second call returns empty counters."""
        counters = Counters()
        with self.running.lock:
            if self.ended:
                return counters
            self.ended = True
        os.close(self.channel)
        if self.lent is not None:
            self.lent.settle()
        if self.exec_cgroup is not None:
            if not self.running.ended:
                counters = self.exec_cgroup.counters()
            elif self.last is not None:
                counters = self.last
            group = self.running.group
            assert group is not None
            # Only then do the counters of the container belong to this command.
            self.exclusive = group.was_exclusive(self.exec_cgroup)
            if not self.running.ended:
                group.release(self.exec_cgroup)
        return counters

    def usage(self, record: native.Record | Any | None, counters: Counters) -> Usage:
        """Return what the command used: by its cgroup, or else by wait4(2) of its first process."""
        return usage_of(self.begun, record, counters)

    @property
    def was_stopped(self) -> bool:
        """Whether the container was stopped at its limit of disk or kernel memory since the command began."""
        session = self.running.session
        return session.disk.stopped_since(self.running, self.stops) or session.kernel_memory.stopped_since(
            self.running, self.memory_stops
        )

    def reason(self, returncode: int, counters: Counters, usage: Usage) -> Reason:
        """Return why the command ended, by the kernel's counters and measured limits: never a guess."""
        if self.running.session.disk.exceeded(self.running, self.stops):
            return "disk"
        stopped = self.running.session.kernel_memory.stopped_since(self.running, self.memory_stops)
        if returncode == -signal.SIGKILL and stopped:
            return "oom"
        if returncode == 0 or counters.oom_kills or counters.pids_refused:
            return reason_of(self.running.spec, returncode, counters, usage)
        if counters.refused_above and self.exclusive:
            return "pids"
        return reason_of(self.running.spec, returncode, counters, usage)


def usage_of(begun: float, record: native.Record | Any | None, counters: Counters) -> Usage:
    """Return what a command used: by its cgroup, or else by wait4(2) of its first process."""
    user = system = 0.0
    peak = read = written = None
    if record is not None:
        user, system, peak = record.cpu_user / 1e6, record.cpu_system / 1e6, record.peak_rss
        read, written = record.read, record.written
    return Usage(
        wall=time.perf_counter() - begun,
        cpu_user=user if counters.cpu_user is None else counters.cpu_user,
        cpu_system=system if counters.cpu_system is None else counters.cpu_system,
        memory_peak=peak if counters.memory_peak is None else counters.memory_peak,
        read_bytes=read if counters.read_bytes is None else counters.read_bytes,
        written_bytes=written if counters.written_bytes is None else counters.written_bytes,
        processes=counters.processes,
        oom_kills=counters.oom_kills,
    )


def reason_of(spec: ContainerSpec, returncode: int, counters: Counters, usage: Usage) -> Reason:
    """Return why a process ended, by its status and the counters of its cgroup."""
    if returncode == 0:
        return "exit"
    if counters.oom_kills:
        return "oom"
    if counters.pids_refused:
        return "pids"
    if returncode == -signal.SIGSYS:
        return "seccomp"
    if returncode in (-signal.SIGXCPU, -signal.SIGKILL) and _is_over_cpu_time(spec, usage):
        return "cpu"
    return "signal" if returncode < 0 else "exit"


def _is_over_cpu_time(spec: ContainerSpec, usage: Usage) -> bool:
    """Return whether the command used what the rlimit cpu allows, after which the kernel kills it."""
    pair = spec.rlimits.get("cpu") or spec.security.rlimits.get("cpu") or -1
    soft = pair if isinstance(pair, int) else pair[0]
    if soft < 0 or soft > _CPU_MOST:
        return False
    return usage.cpu_user + usage.cpu_system >= soft * _CPU_SHARE


def _send(
    running: Running,
    command: Command,
    number: int,
    streams: Sequence[int],
    exec_cgroup: ExecCgroup | None,
    how: int,
) -> int:
    """Send an exec request, and return this end of its channel."""
    present = [fd for fd in streams if fd >= 0]
    flags = how + sum(bit for fd, bit in zip(streams, _STREAM_BITS, strict=True) if fd >= 0)
    if exec_cgroup is not None and exec_cgroup.directory is not None:
        flags |= ExecFlag.CGROUP
    if command.terminal is not None:
        flags |= ExecFlag.PTY
    payload = command.encode(number, flags, len(exec_cgroup.legacy) if exec_cgroup is not None else 0)
    if len(payload) > _PAYLOAD_MOST:
        from pycontain._runtime.exec_errors import too_long

        raise too_long(command)
    opened: list[int] = []
    memory: list[int] = []
    ours, theirs = native.pair()
    control = -1
    try:
        control = running.acquire_control()
        if exec_cgroup is not None:
            opened = exec_cgroup.open()
        if len(payload) > MAX_INLINE:
            memory = [native.sealed("pycontain-exec", payload)]
            message = request(RequestKind.EXEC, number=number, flags=IN_MEMFD, size=len(payload))
        else:
            message = request(RequestKind.EXEC, payload, number=number)
        native.send(control, message, [*memory, theirs, *present, *opened])
    except BaseException as error:
        os.close(ours)
        if isinstance(error, OSError) and (error.errno in _GONE or running.dead):
            raise StateError(f"container {running.spec.name} has ended") from error
        raise
    finally:
        if control >= 0:
            running.release_control()
        for fd in (theirs, *memory, *opened):
            os.close(fd)
    return ours


def returncode_of(status: int) -> int:
    """Return the return code of a wait status, negative for a signal, as subprocess does."""
    return os.waitstatus_to_exitcode(status)
