"""One command in a running container: its exec cgroup, its streams, and what became of it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from pycontain._cgroups.exec_cgroup import Counters, ExecCgroup
from pycontain._kernel import native
from pycontain._kernel.plan import ExecFlag, encode_exec, request
from pycontain._model.process import Reason, Usage
from pycontain._runtime.running import Cause
from pycontain._runtime.users import ROOT, Identity, resolve, with_groups
from pycontain.errors import CommandNotExecutable, CommandNotFound, StartError, StateError, WorkdirError

if TYPE_CHECKING:
    from pycontain._model.limits import CgroupLimits
    from pycontain._runtime.lent import Carrier
    from pycontain._runtime.running import Running
    from pycontain._runtime.spec import ContainerSpec

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NUMBERS = itertools.count(1)
_EPERM, _ENOENT, _ENOEXEC, _EACCES, _ENOTDIR, _EINVAL = 1, 2, 8, 13, 20, 22
_E2BIG, _EAGAIN, _ENOMEM, _EMFILE, _ENAMETOOLONG = 7, 11, 12, 24, 36
_PAYLOAD_MOST = 16 << 20
"""Bytes of a request that the agent maps (wire.c); execve(2) takes 6 MB at most."""
_SIGKILL, _SIGXCPU, _SIGSYS = 9, 24, 31
_CPU_MOST = 1 << 32
"""Seconds: a higher rlimit is none."""
_CPU_SHARE = 0.7
"""Of the rlimit: the kernel holds it by whole ticks, and a cgroup's counters leave out what was stolen."""
_GONE = (32, 104)  # EPIPE, ECONNRESET
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
        """Encode `variables`; PATH is also where commands are looked for."""
        lines = [f"{name}={value}\0".encode("utf-8", "surrogateescape") for name, value in variables.items()]
        return cls(b"".join(lines), len(lines), variables.get("PATH", _DEFAULT_PATH))


@frozen
class Command:
    """What to run, resolved: everything that the agent is told besides fds."""

    argv: tuple[str, ...]
    env: Environment
    identity: Identity
    workdir: str
    terminal: tuple[int, int] | None = None

    def encode(self, number: int, flags: int, tasks: int) -> bytes:
        """The exec buffer.  Raises ValueError for NUL bytes."""
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
    """Defaults of image and container filled in.  Raises NotFound for an unknown user."""
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
    """HOME, and what image and container say."""
    return {"HOME": identity.home, **spec.image.env, **spec.env}


@define(eq=False)
class Execution:
    """A command under way: its channel to the agent, its exec cgroup, and the clock."""

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
        """Ask the agent.  `streams` are the guest's ends of stdin, stdout, stderr, -1 for /dev/null.

        They stay the caller's to close.  quiet: the channel tells of the end alone.  idle: it only
        waits, and is not to blame for what others run into.
        Raises StateError when the container ended.
        """
        begun = time.perf_counter()
        stops = running.session.disk.stops(running)
        if running.spec.init is False:
            raise StateError("the command is PID 1 itself (init=False): no agent starts others beside it")
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
        execution.stops = stops
        return execution

    def kill(self) -> None:
        """SIGKILL for the whole tree of this command, and wait until the last process is gone.

        Where that cannot be said, the whole container is ended.
        """
        # By the agent first: by then it has begun what it was asked to, and nothing is born after the kill.
        told = self._kill_by_agent()
        if self.running.ended:
            return
        if self.exec_cgroup is not None and self.exec_cgroup.killable:
            try:
                told = self.exec_cgroup.kill(_KILL_PATIENCE)
            except FileNotFoundError:
                told = True  # removed, so empty
        if not told:
            self.running.end(Cause("cancelled", "a command in it could not be ended otherwise"))

    def cancel(self) -> None:
        """Make the thread that waits for this command end it, with reason 'cancelled'.  Does not wait."""
        with self.running.lock:  # once it ended, the number of its channel belongs to something else
            if not self.ended:
                self.cancelled = True
                native.lib.pcx_shutdown(self.channel)

    def _kill_by_agent(self) -> bool:
        patience = (
            _AGENT_PATIENCE if self.exec_cgroup is not None and self.exec_cgroup.killable else _KILL_PATIENCE
        )
        ours, theirs = native.pair()
        try:
            self._tell(request(native.KILL_TREE, number=self.number), [theirs])
            os.close(theirs)
            theirs = -1
            record = native.receive(ours, int(patience * 1000))
        except TimeoutError:
            return False
        except (OSError, StateError):
            return True  # the container is gone, and the command with it
        finally:
            os.close(ours)
            if theirs >= 0:
                os.close(theirs)
        return record is None or record.errno == 0

    def _tell(self, message: bytes, fds: list[int]) -> None:
        control = self.running.acquire_control()
        try:
            native.send(control, message, fds)
        finally:
            self.running.release_control()

    def signal(self, number: int) -> None:
        """Send a signal to the command's first process."""
        self._tell(request(native.SIGNAL, number=self.number, value=number), [])

    def finish(self) -> Counters:
        """Read the counters and give the exec cgroup back.  Idempotent."""
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
            # Only then are the container's own counters this command's.
            self.exclusive = group.was_exclusive(self.exec_cgroup)
            if not self.running.ended:
                group.release(self.exec_cgroup)
        return counters

    def usage(self, record: native.Record | Any | None, counters: Counters) -> Usage:
        """What the command used: the cgroup's counters, else those of the waited-for tree."""
        return usage_of(self.begun, record, counters)

    def reason(self, returncode: int, counters: Counters, usage: Usage) -> Reason:
        """Return why it ended, by the kernel's counters only: a cause that nothing counted is not claimed."""
        if self.running.session.disk.exceeded(self.running, self.stops):
            return "disk"
        if returncode == 0 or counters.oom_kills or counters.pids_refused:
            return reason_of(self.running.spec, returncode, counters, usage)
        if counters.refused_above and self.exclusive:
            return "pids"
        return reason_of(self.running.spec, returncode, counters, usage)


def usage_of(begun: float, record: native.Record | Any | None, counters: Counters) -> Usage:
    """Return what a command used: the cgroup's counters, else those of the waited-for tree."""
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
    """Return why a process ended, by its status and what its own cgroup counted."""
    if returncode == 0:
        return "exit"
    if counters.oom_kills:
        return "oom"
    if counters.pids_refused:
        return "pids"
    if returncode == -_SIGSYS:
        return "seccomp"
    if returncode in (-_SIGXCPU, -_SIGKILL) and _is_over_cpu_time(spec, usage):
        return "cpu"
    return "signal" if returncode < 0 else "exit"


def _is_over_cpu_time(spec: ContainerSpec, usage: Usage) -> bool:
    """Did the command use what the rlimit cpu allows, by which the kernel sends the two signals?"""
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
    """Send one exec request; our end of its channel."""
    present = [fd for fd in streams if fd >= 0]
    flags = how + sum(bit for fd, bit in zip(streams, _STREAM_BITS, strict=True) if fd >= 0)
    if exec_cgroup is not None and exec_cgroup.directory is not None:
        flags |= ExecFlag.CGROUP
    if command.terminal is not None:
        flags |= ExecFlag.PTY
    payload = command.encode(number, flags, len(exec_cgroup.legacy) if exec_cgroup is not None else 0)
    if len(payload) > _PAYLOAD_MOST:
        raise too_long(command)
    opened: list[int] = []
    memory: list[int] = []
    ours, theirs = native.pair()
    control = -1
    try:
        control = running.acquire_control()
        if exec_cgroup is not None:
            opened = exec_cgroup.open()
        if len(payload) > native.MAX_INLINE:
            memory = [native.sealed("pycontain-exec", payload)]
            message = request(native.EXEC, number=number, flags=native.IN_MEMFD, size=len(payload))
        else:
            message = request(native.EXEC, payload, number=number)
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
    """A wait status as subprocess has it: negative for a signal."""
    return os.waitstatus_to_exitcode(status)


def start_failure(command: Command, record: native.Record) -> StartError:
    """The typed error of an exec that did not reach its command."""
    step, errno = record.step_name, record.errno
    name = command.argv[0]
    if step == "execve":
        if errno in (_ENOENT, _ENOTDIR):
            return CommandNotFound(
                "no such command",
                step=step,
                errno=errno,
                path=name,
                hint="install the command, or the interpreter that its first line names, in the image",
            )
        if errno in (_EACCES, _ENOEXEC):
            return CommandNotExecutable(
                "cannot execute the command", step=step, errno=errno, path=name, hint=_EXECUTE_HINTS[errno]
            )
    if step == "chdir":
        return WorkdirError(
            "no usable working directory",
            step=step,
            errno=errno,
            path=command.workdir,
            hint=_CHDIR_HINTS.get(errno, _CHDIR_HINT),
        )
    hint = _START_HINTS.get(errno)
    if step in ("user", "groups") and errno in (_EPERM, _EINVAL):
        hint = "use an id below 65536; an unprivileged user without ranges in /etc/subuid has only 0"
    return StartError("cannot start the command", step=step, errno=errno, path=name, hint=hint)


def too_long(command: Command) -> StartError:
    """Return the error for arguments and environment that are more than the agent takes."""
    return StartError(
        "cannot start the command",
        step="execve",
        errno=_E2BIG,
        path=command.argv[0],
        hint=_START_HINTS[_E2BIG],
    )


_EXECUTE_HINTS = {
    _EACCES: "give the file execute permission for this user, on a mount without noexec",
    _ENOEXEC: "use a program for this machine's architecture, or begin the script with #!",
}
_CHDIR_HINT = "create the directory in the image, mount one there, or name another workdir"
_CHDIR_HINTS = {
    _EACCES: "give this user the right to enter the directory, or name another workdir",
    _EMFILE: "raise the rlimit nofile: the agent needs descriptors to start a command",
}
_START_HINTS = {
    _E2BIG: "pass large data with input= or in a file; execve(2) limits arguments and environment together",
    _ENAMETOOLONG: "shorten the name: a path has at most 4095 bytes, and a part of it 255",
    _EMFILE: "raise the rlimit nofile: the agent needs descriptors to start a command",
    _ENOMEM: "raise the memory limit, or the rlimits as, data and stack",
    _EAGAIN: "raise pids, or the rlimit nproc",
}


def _disk_full(running: Running) -> bool:
    from pycontain._runtime.users import open_inside

    fd = open_inside(running, "/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = os.fstatvfs(fd)
        return found.f_bavail == 0 or found.f_favail == 0
    finally:
        os.close(fd)
