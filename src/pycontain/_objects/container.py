"""The container: what users hold."""

from __future__ import annotations

import os
import secrets
import signal as signals
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar, Unpack

from pycontain._model.limits import CgroupLimits
from pycontain._model.mounts import Tmpfs
from pycontain._model.process import ExecResult
from pycontain._model.sizes import parse_duration
from pycontain._objects.call import Call, Invocation
from pycontain._objects.image import Default, Image
from pycontain._objects.main import MainCommand
from pycontain._objects.process import Process, check_terminal, check_text
from pycontain._runtime import spec as specs
from pycontain._runtime.collect import shielded
from pycontain._runtime.isolation import Isolation, isolation_of
from pycontain._runtime.running import Running
from pycontain._runtime.start import start
from pycontain._runtime.stats import Stats, stats_of
from pycontain._runtime.streams import DEVNULL, PIPE, Stream
from pycontain._security.policy import Security
from pycontain.errors import Args, NotFound, StateError, UnsupportedError

if TYPE_CHECKING:
    from pycontain._engine import Engine
    from pycontain._model.change import Change
    from pycontain._objects.zygote import CallOptions, Zygote
    from pycontain.oci import ContainerConfig

T = TypeVar("T")
Status = Literal["created", "running", "paused", "exited", "removed"]


class Container:
    """A container: private namespaces, a root file system of its own, limits, and no way out.

    image: an `Image`, or the name of one, which is pulled where the store has none; `Image.host()`
    without one.  command: what it runs, after the image's entrypoint; `Image.DEFAULT` for what the image
    itself runs; without one it idles until `exec`.  memory, cpus, pids: short for fields of `limits`;
    512M and 128 where none is given.  disk: bytes that may be written to the root file system, kept in
    memory then: the default
    of memory grows by it, and below one that is given the container runs out of memory first.
    rlimits: name to value or (soft, hard).  network: 'none'.  mounts: place inside to `Bind`,
    `Tmpfs` or a path.  tmpfs: places, or place to size.  read_only: no writes but to tmpfs.
    init: False makes the command PID 1 itself.  lifetime: seconds after which it is ended.

    Used as a context manager it starts at the top and is removed at the end; `start` and `remove`
    do the same.  Everything is checked here, before anything is created: ValueError, LimitError,
    NotFound, UnsupportedError.
    """

    def __init__(
        self,
        image: Image | str | None = None,
        command: Args | Default | None = None,
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | os.PathLike[str] | None = None,
        user: str | int | None = None,
        hostname: str | None = None,
        memory: int | str | None = None,
        cpus: float | None = None,
        pids: int | None = None,
        disk: int | str | None = None,
        limits: CgroupLimits | None = None,
        rlimits: Mapping[str, int | Sequence[int]] | None = None,
        network: str = "none",
        ports: Mapping[int, int] | None = None,
        volumes: specs.Mounts | None = None,
        mounts: specs.Mounts | None = None,
        tmpfs: specs.TmpfsOption | None = None,
        read_only: bool = False,
        init: bool = True,
        security: Security = Security.SANDBOX,
        runtime: str | None = None,
        lifetime: float | timedelta | None = None,
        labels: Mapping[str, str] | None = None,
        engine: Engine | None = None,
    ) -> None:
        from pycontain._engine import default_engine

        if network != "none":
            raise UnsupportedError(f"the network {network!r}", hint="this version has network='none' alone")
        if ports:
            raise UnsupportedError("published ports", hint="they need a network; this version has none")
        if runtime is not None:
            raise UnsupportedError(
                f"the runtime {runtime!r}", hint="leave it out: pycontain starts containers itself"
            )
        chosen, asked = specs.limits_of(limits, memory, cpus, pids, disk)
        new = secrets.token_hex(16)
        given = {**(volumes or {}), **(mounts or {})}
        if len(given) < len(volumes or {}) + len(mounts or {}):
            raise ValueError("volumes and mounts name the same place")
        points = specs.mount_points(given, tmpfs)
        self._engine = engine or default_engine()
        self._engine.check_open()
        base = self._image(image)
        self._removed = False
        self._engine.hold(base, self)
        for layer in base.directories:
            _check_layer(layer)
        if read_only:
            points = {**{place: Tmpfs() for place in _empty_volumes(base, points)}, **points}
        spec = specs.ContainerSpec(
            id=new,
            image=base,
            command=_whole_command(base, command),
            name=name or specs.default_name(new),
            env=env,
            workdir=workdir or base.workdir or "/",
            user=user if user is not None else base.user,
            hostname=hostname or new[:12],
            limits=chosen,
            asked=asked,
            rlimits=rlimits or {},
            disk=disk,
            mounts=points,
            read_only=read_only,
            init=init,
            network=network,
            security=security,
            lifetime=lifetime,
            labels={**base.labels, **(labels or {})},
        )
        self._engine.enforceable(chosen, asked, security.optional)
        self.spec = self._engine.ahead.named(spec, self)
        self.id = self.spec.id
        self._running: Running | None = None
        self._main: MainCommand | None = None
        self._timer: threading.Timer | None = None
        self._paused = False
        self._started = False
        self._timings: Mapping[str, float] | None = None
        self._returncode: int | None = None
        self._lock = threading.RLock()

    def _image(self, image: Image | str | None) -> Image:
        if image is None:
            return self._engine.host_image()
        if isinstance(image, str):
            try:
                return Image.get(image, engine=self._engine)
            except NotFound:
                return Image.pull(image, engine=self._engine)
        if not isinstance(image, Image):
            raise TypeError(f"image is an Image, not {image!r}")
        return image

    @property
    def name(self) -> str:
        """The container's name."""
        return self.spec.name

    @property
    def status(self) -> Status:
        """'created', 'running', 'paused', 'exited' or 'removed'."""
        if self._removed:
            return "removed"
        if self._main is not None and self._main.poll() is not None:
            return "exited"
        if self._running is None or self._running.dead:
            return "exited" if self._started else "created"
        return "paused" if self._paused else "running"

    @property
    def pid(self) -> int:
        """PID 1 as the host sees it.  Raises StateError when it does not run."""
        return self._live().pid

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds by phase of the last start.  Raises StateError before the first."""
        if self._timings is None:
            raise StateError(f"container {self.name} was never started")
        return self._timings

    @property
    def isolation(self) -> Isolation:
        """What is in force, and what this host could not give."""
        return isolation_of(self._live())

    def _live(self) -> Running:
        if self._running is None or self._running.ended:
            raise StateError(f"container {self.name} is not running")
        return self._running

    def _awake(self) -> Running:
        running = self._live()
        if self._paused:
            raise StateError(f"container {self.name} is paused: unpause it first")
        return running

    def start(self) -> Container:
        """Start it, and its command if it has one.

        Raises StartError, StateError, Conflict when another live container of the engine has its name.
        """
        begun = False
        try:
            with self._lock:
                self._check_startable()
                begun = True
                self._start()
        except BaseException:
            # Whoever enters a `with` and is interrupted is never asked to leave it.
            if begun:
                shielded(self._end)
            raise
        return self

    def _check_startable(self) -> None:
        if self._removed:
            raise StateError(f"container {self.name} is removed")
        if self._running is not None and not self._running.ended:
            raise StateError(f"container {self.name} runs already")
        self._engine.check_open()

    def _start(self) -> None:
        if self._started:
            self._engine.settle()  # the names of the last run are free again
        self._engine.claim(self.spec)
        self._paused, self._returncode, self._started = False, None, True
        if self.spec.init:
            self._running = start(self._engine, self.spec)
        else:
            self._main = MainCommand.as_init(self._engine, self.spec)
            self._running = self._main.running
        self._timings = self._running.timings
        self._engine.register(self)
        if self.spec.init and self.spec.command is not None:
            self._main = MainCommand.beside_agent(self._running, self.spec.command)
        if self.spec.lifetime is not None:
            self._timer = threading.Timer(self.spec.lifetime, self.kill)
            self._timer.daemon = True
            self._timer.start()

    def _end(self) -> None:
        with self._lock:
            timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            # Under the lock: whoever comes second returns when it is over, not while it goes on.
            running = self._running or self._engine.find(self.id)
            if running is not None:
                running.end()
            self._running = None
            self._engine.release(self.spec)

    def remove(self) -> None:
        """End it and everything in it, and forget it.  Idempotent."""
        try:
            self._end()
        except BaseException:
            shielded(self._end)
            raise
        main = self._main
        if main is not None:
            self._returncode = main.close()
        self._removed = True

    def stop(self, timeout: float | timedelta = 10) -> None:
        """The image's stop signal or SIGTERM to the command, SIGKILL to all after `timeout` seconds."""
        main = self._main
        self._live()
        if main is not None and main.poll() is None:
            main.signal(self.spec.image.stop_signal or signals.SIGTERM)
            main.join(parse_duration(timeout))
        self._end()
        if main is not None:
            self._returncode = main.close()

    def kill(self, signal: int = signals.SIGKILL) -> None:
        """Send a signal to the command; SIGKILL ends the whole container."""
        if signal == signals.SIGKILL:
            self._end()
            if self._main is not None:
                self._main.join(10)
            return
        self._live()
        if self._main is None:
            raise StateError(f"container {self.name} has no command to signal")
        self._main.signal(signal)

    def pause(self) -> None:
        """Freeze every process.  Raises UnsupportedError on a host without cgroups."""
        self._freeze(True)

    def unpause(self) -> None:
        """Let every process go on."""
        self._freeze(False)

    def _freeze(self, frozen: bool) -> None:
        running = self._live()
        group = running.group
        if group is None or not group.freezable:
            raise UnsupportedError("pausing", hint="it needs a cgroup v2 tree that this user may write")
        group.freeze(frozen)
        self._paused = running.frozen = frozen

    def wait(self, timeout: float | timedelta | None = None) -> int:
        """Wait for the command's end; its return code.  Raises subprocess.TimeoutExpired, StateError."""
        if self._main is None:
            what = "has no command to wait for" if self.spec.command is None else "was not started"
            raise StateError(f"container {self.name} {what}")
        seconds = None if timeout is None else parse_duration(timeout)
        if not self._main.join(seconds):
            assert seconds is not None
            raise subprocess.TimeoutExpired(list(self.spec.command or ()), seconds)
        self._end()
        self._returncode = self._main.returncode
        assert self._returncode is not None
        return self._returncode

    def restart(self, timeout: float | timedelta = 10) -> Container:
        """Stop and start again, with a fresh root file system."""
        if self._running is not None:
            self.stop(timeout)
        return self.start()

    def logs(self, follow: bool = False) -> Iterator[bytes]:
        """What the command wrote, both streams in order of arrival; the last 16 MiB are kept.

        follow: go on until the command ended and nobody can write any more, or the container ends.
        """
        if self._main is None:
            raise StateError(f"container {self.name} has no command that could write")
        return self._main.logs(follow)

    def stats(self) -> Stats:
        """What the container uses now, from the kernel's counters."""
        return stats_of(self._live())

    def exec(
        self,
        args: Args,
        *,
        input: str | bytes | None = None,
        timeout: float | timedelta | None = None,
        check: bool = False,
        text: bool = True,
        encoding: str = "utf-8",
        errors: str = "replace",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | int | None = None,
        stdout: Stream = PIPE,
        stderr: Stream = PIPE,
        max_output: int | str | None = "16M",
        limits: CgroupLimits | None = None,
        shell: bool = False,
    ) -> ExecResult:
        """Run a command to its end and say what became of it, as subprocess.run does.

        timeout: seconds until every process of the command is killed.  max_output: bytes per
        stream after which it is killed, with reason 'output'; None lifts the cap.  limits: for this
        command alone.  user: 'name', 'uid', 'name:group' or 'uid:gid'.

        Returns when the command itself ends; what it left running goes on.  Raises CommandTimeout,
        CommandFailed with check=True, CommandNotFound (127), CommandNotExecutable (126),
        WorkdirError, NotFound for a user, ValueError for malformed input, StateError.
        """
        call = Call(args, stdout, stderr, text, encoding, errors, input, timeout, max_output)
        what = Invocation.of(args, shell, env, workdir, user, limits)
        return call.run(self._awake(), what, check=check)

    def popen(
        self,
        args: Args,
        *,
        stdin: Stream = DEVNULL,
        stdout: Stream = PIPE,
        stderr: Stream = PIPE,
        pty: bool = False,
        text: bool = True,
        encoding: str = "utf-8",
        errors: str = "replace",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | int | None = None,
        limits: CgroupLimits | None = None,
        shell: bool = False,
        rows: int = 24,
        columns: int = 80,
    ) -> Process:
        """Start a command and go on; a `Process` with Popen's verbs.

        pty: a terminal of its own instead of pipes, `rows` by `columns`.  Raises as `exec` does.
        """
        what = Invocation.of(args, shell, env, workdir, user, limits)
        if text:
            check_text(encoding, errors)
        if pty:
            check_terminal(rows, columns)
        terminal = (rows, columns) if pty else None
        streams = (DEVNULL, DEVNULL, DEVNULL) if pty else (stdin, stdout, stderr)
        execution, ours = what.launch(self._awake(), streams, terminal)
        return Process(args, execution, ours, text=text, encoding=encoding, errors=errors)

    def zygote(self, imports: Sequence[str] = (), *, python: str | None = None) -> Zygote:
        """An interpreter inside that imports these modules once and is forked for each call."""
        from pycontain._objects.zygote import prepare

        return prepare(self, imports, python)

    def call(self, function: Callable[..., T], *args: Any, **options: Unpack[CallOptions]) -> T:
        """What the function returns, run in a fork of an interpreter inside: `Zygote.run` says how."""
        from pycontain._objects.zygote import default

        return default(self).call(function, *args, **options)

    def diff(self) -> list[Change]:
        """What the guest has added, changed and deleted below its root, in the order of paths.

        What is mounted does not count, nor do /etc/hosts, hostname and resolv.conf, which are the
        engine's.  Raises StateError when it does not run, UnsupportedError with `disk`.
        """
        from pycontain._objects.changes import diff

        return diff(self)

    def commit(
        self,
        reference: str | None = None,
        *,
        config: ContainerConfig | None = None,
        author: str = "",
        message: str = "",
    ) -> Image:
        """The image's layers and one of what `diff` tells, as an image of the store, named if asked.

        The processes are paused meanwhile, where this host can.  config: in place of the image's own.
        Raises StateError when it does not run, UnsupportedError with `disk`, InvalidReference.
        """
        from pycontain._objects.changes import commit

        return commit(self, reference, config, author, message)

    def export(self, target: str | os.PathLike[str] | IO[bytes]) -> None:
        """The whole root file system as an uncompressed tar, without what is mounted in it.

        Raises StateError when it does not run, ImageError.
        """
        from pycontain._objects.changes import export

        export(self, target)

    def __enter__(self) -> Container:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Container {self.name} {self.status} image={self.spec.image.name}>"


def _whole_command(image: Image, command: Args | Default | None) -> tuple[str, ...] | None:
    """What runs: the image's entrypoint before what was asked for, as docker has it."""
    if command is None:
        return None
    own = image.command if isinstance(command, Default) else specs.command(command)
    whole = (*image.entrypoint, *(own or ()))
    if not whole:
        raise ValueError(f"the image {image.name} has no command of its own")
    return whole


def _empty_volumes(image: Image, taken: Mapping[str, object]) -> list[str]:
    """Places that the image declares as volumes and has nothing at: what it has there is not covered."""
    from pycontain._images.defaults import is_empty_place

    return [
        place
        for place in image.volumes
        if specs.is_free(place, taken) and is_empty_place(image.directories, place)
    ]


def _check_layer(path: str) -> None:
    if not os.path.isdir(path):
        raise NotFound(f"the image's layer is no directory any more: {path}")
