"""Lifecycle of a container: start, stop, pause, end; the base class of `Container`."""

from __future__ import annotations

import contextlib
import signal as signals
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, cast

from attrs import evolve

from pycontain._model.process import ExitStatus, Reason, Usage
from pycontain._model.sizes import parse_duration
from pycontain._objects.log import Selection, Since
from pycontain._objects.main_command import MainCommand
from pycontain._objects.options import volume_names
from pycontain._runtime import spec as specs
from pycontain._runtime.isolation import Isolation, isolation_of
from pycontain._runtime.network import LINKED, attach
from pycontain._runtime.running import KILLED, REMOVED, STOPPED, Cause, Running
from pycontain._runtime.signals import shielded
from pycontain._runtime.start import start
from pycontain._runtime.state import ContainerState, StateMachine
from pycontain._runtime.stats import Stats, stats_of
from pycontain.errors import Conflict, NotFound, StateError, UnsupportedError

if TYPE_CHECKING:
    from pycontain._objects.container import Container
    from pycontain._objects.engine import Engine
    from pycontain._objects.volume import Volume
    from pycontain._runtime.session import Session

    # Not at run time: jedi 0.20 completes nothing on a property whose annotation is a Literal.
    Status: TypeAlias = Literal["created", "starting", "running", "paused", "stopping", "exited", "removed"]


class Lifecycle:
    """Methods of a container that start, stop and observe it."""

    id: str
    spec: specs.ContainerSpec
    _engine: Engine
    _session: Session
    _anonymous: Sequence[Volume] = ()

    def _adopt(self, engine: Engine) -> None:
        self._engine, self._session, self._state = engine, engine._session, StateMachine()
        self._session.check_open()

    def _begin(self, spec: specs.ContainerSpec) -> None:
        self.spec = self._session.warm.reserve(spec, self._whole)
        self.id = self.spec.id
        self._volumes = volume_names(spec.mounts)
        if self._volumes:
            self._session.leases.lease_volumes(self._whole, self._volumes)
        self._running: Running | None = None
        self._main: MainCommand | None = None
        self._timer: threading.Timer | None = None
        self._timings: Mapping[str, float] | None = None
        self._cause: Cause | None = None

    @classmethod
    def _of(cls, spec: specs.ContainerSpec, engine: Engine) -> Self:
        """Return a container with the checked options of another one."""
        new = cls.__new__(cls)
        new._adopt(engine)
        engine._session.leases.lease_image(spec.image, new._whole)
        new._begin(spec)
        return new

    @property
    def _whole(self) -> Container:
        return cast("Container", self)

    @property
    def name(self) -> str:
        """Name of the container."""
        return self.spec.name

    @property
    def status(self) -> Status:
        """State of the container, one of 'created', 'starting', 'running', 'paused', 'stopping', 'exited'
        and 'removed'.
        """
        state = self._state.current
        if state in (ContainerState.RUNNING, ContainerState.PAUSED, ContainerState.STOPPING):
            main, running = self._main, self._running
            if (main is not None and main.poll() is not None) or running is None or running.dead:
                state = ContainerState.EXITED
        return state.value

    @property
    def pid(self) -> int:
        """Process id of PID 1 on the host.

        Raises:
            StateError: The container is not running.
        """
        return self._live().pid

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds by phase of the last start.

        Raises:
            StateError: The container was never started.
        """
        if self._timings is None:
            raise StateError(f"container {self.name} was never started")
        return self._timings

    @property
    def isolation(self) -> Isolation:
        """Restrictions that are in force, and those that this host does not support.

        Raises:
            StateError: The container is not running.
        """
        return isolation_of(self._live())

    def _live(self) -> Running:
        if self._running is None or self._running.ended:
            raise StateError(f"container {self.name} is not running")
        return self._running

    def _awake(self) -> Running:
        running = self._live()
        if self._state.current is ContainerState.PAUSED:
            raise StateError(f"container {self.name} is paused", hint="call unpause() first")
        return running

    def start(self) -> Self:
        """Start the container, and its command if it has one.

        Raises:
            StartError: A step failed; no process of the container is left.
            StateError: The container is running or removed.
            Conflict: Another live container of the engine has its name.
        """
        begun = False
        try:
            with self._state.lock:
                self._check_startable()
                begun = True
                self._start()
        except BaseException:
            # Python does not call __exit__ when __enter__ was interrupted.
            if begun:
                shielded(self._end)
            raise
        return self

    def _check_startable(self) -> None:
        if self._state.current is ContainerState.REMOVED:
            raise StateError(f"container {self.name} is removed")
        if self._running is not None:
            if not self._running.ended:
                raise StateError(f"container {self.name} is already running")
            self._end()  # the engine has ended it
        self._session.check_open()

    def _start(self) -> None:
        if self._state.current is ContainerState.EXITED:
            self._session.cleanup.settle()  # releases the names of the last run
        self._session.registry.claim(self.spec)
        if self._volumes:
            from pycontain._objects.copyup import copy_up

            copy_up(self._whole)
        self._state.change(ContainerState.STARTING)
        self._cause = None
        if self.spec.init:
            self._running = start(self._session, self.spec)
        else:
            self._main = MainCommand.as_init(self._session, self.spec)
            self._running = self._main.running
        self._timings = self._running.timings
        self._running.handle = self._whole
        network_spec = self.spec.network_spec
        if network_spec.kind == LINKED:
            attach(self._running, network_spec.attachments, network_spec.ports)
        if self.spec.init and self.spec.command is not None:
            self._main = MainCommand.beside_agent(self._running, self.spec.command)
        if self.spec.lifetime is not None:
            cause = Cause("timeout", f"its lifetime of {self.spec.lifetime:g} s passed")
            self._timer = threading.Timer(self.spec.lifetime, self._end, (cause,))
            self._timer.daemon = True
            self._timer.start()
        self._state.change(ContainerState.RUNNING)

    def _end(self, cause: Cause = REMOVED) -> None:
        with self._state.lock:
            timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            # Under the lock, so that a concurrent call returns only when the container has ended.
            running = self._running or self._session.registry.get(self.id)
            if running is not None:
                self._state.change(ContainerState.STOPPING)
                networks = running.networks
                running.end(cause)
                self._cause = running.cause
                if networks is not None and self.spec.network_spec.kind == LINKED:
                    network_spec = self.spec.network_spec.kept(*networks.used())
                    self.spec = evolve(self.spec, network_spec=network_spec)
            self._running = None
            if self._state.current in (ContainerState.STARTING, ContainerState.STOPPING):
                self._state.change(ContainerState.EXITED)
            self._session.registry.release(self.spec)

    def remove(self) -> None:
        """Kill all processes of the container and delete its files.  Idempotent."""
        try:
            with self._state.lock:
                self._end()
                self._state.change(ContainerState.REMOVED)
        except BaseException:
            shielded(self._end)
            raise
        main = self._main
        if main is not None:
            main.close()
        self._session.leases.release_image(self._whole)
        if self._volumes and not self._session.closed:
            self._session.leases.release_volumes(self.id)
            for one in self._anonymous:
                with contextlib.suppress(Conflict, NotFound):  # a fork has it
                    one.remove()
        if self.spec.image.sealed and not self._session.closed:
            self._session.leases.prune()
            self._session.leases.sweep_snapshot_layers()

    def stop(self, timeout: float | timedelta | None = None) -> None:
        """Send the image's stop signal, or SIGTERM, to the command, and end the container after a timeout.

        Args:
            timeout: Seconds between the signal and SIGKILL; the container's `stop_timeout` by default.

        Raises:
            StateError: The container is not running.
        """
        seconds = self.spec.stop_timeout if timeout is None else parse_duration(timeout)
        main = self._main
        self._live()
        if main is not None and main.poll() is None:
            main.signal(self.spec.image.stop_signal or signals.SIGTERM)
            main.join(seconds)
        self._end(STOPPED)
        if main is not None:
            main.close()

    def kill(self, signal: int = signals.SIGKILL) -> None:
        """Send a signal to the command; SIGKILL ends the whole container.

        Args:
            signal: Number of the signal.

        Raises:
            StateError: The container is not running or has no command.
            ValueError: The signal does not exist.
        """
        if signal == signals.SIGKILL:
            self._end(KILLED)
            if self._main is not None:
                self._main.join(10)
            return
        self._live()
        if self._main is None:
            raise StateError(f"container {self.name} has no command to signal")
        self._main.signal(signal)

    def pause(self) -> None:
        """Freeze all processes.

        Raises:
            StateError: The container is not running.
            UnsupportedError: The host has no cgroup that can be frozen.
        """
        self._freeze(True)

    def unpause(self) -> None:
        """Resume all processes.

        Raises:
            StateError: The container is not running.
        """
        self._freeze(False)

    def _freeze(self, frozen: bool) -> None:
        with self._state.lock:
            running = self._live()
            group = running.group
            if group is None or not group.freezable:
                raise UnsupportedError("pausing", hint="delegate a cgroup v2 subtree to this user")
            group.freeze(frozen)
            running.frozen = frozen
            self._state.change(ContainerState.PAUSED if frozen else ContainerState.RUNNING)

    @property
    def returncode(self) -> int | None:
        """Return code of the container's command, negative for a signal; None while it runs."""
        return None if self._main is None else self._main.returncode

    @property
    def reason(self) -> Reason | None:
        """Reason for the end of the container's command, as in ExecResult; None while it runs.

        'timeout' when its lifetime passed, 'cancelled' when it was stopped by force or removed or its engine
        was closed.  Without a command it is the reason of the container's end.
        """
        if self._main is not None:
            return self._main.reason
        running = self._running
        if self._cause is None and running is not None and running.dead:
            return running.why_ended().reason
        return None if self._cause is None else self._cause.reason

    @property
    def usage(self) -> Usage | None:
        """Resources that the container's command used; None while it runs.  See also `stats`."""
        return None if self._main is None else self._main.usage

    def wait(self, timeout: float | timedelta | None = None) -> ExitStatus:
        """Wait until the container's command has ended.

        Args:
            timeout: Maximum number of seconds, or None.

        Returns:
            The return code, an int with the attributes `reason` and `usage`.

        Raises:
            subprocess.TimeoutExpired: The timeout passed.
            StateError: The container has no command or was not started.
        """
        if self._main is None:
            what = "has no command to wait for" if self.spec.command is None else "was not started"
            raise StateError(f"container {self.name} {what}")
        seconds = None if timeout is None else parse_duration(timeout)
        if not self._main.join(seconds):
            assert seconds is not None
            raise subprocess.TimeoutExpired(list(self.spec.command or ()), seconds)
        self._end()
        main = self._main
        assert main.returncode is not None
        assert main.reason is not None
        assert main.usage is not None
        return ExitStatus(main.returncode, main.reason, main.usage)

    def restart(self, timeout: float | timedelta | None = None) -> Self:
        """Stop the container and start it again with a new root file system.

        Args:
            timeout: As in `stop`.

        Raises:
            StartError: The container cannot be started.
        """
        if self._running is not None:
            self.stop(timeout)
        return self.start()

    def logs(
        self,
        follow: bool = False,
        *,
        stdout: bool = True,
        stderr: bool = True,
        since: Since = None,
        tail: int | None = None,
        timestamps: bool = False,
    ) -> Iterator[bytes]:
        """Iterate over the output of the container's command, in order of arrival.

        The last 16 MiB are kept; `logs_dropped` counts the bytes before them.

        Args:
            follow: Continue until the command has ended and no process can write any more, or the container
                ends.
            stdout: Include standard output.
            stderr: Include standard error.
            since: Only output from then on: seconds since the epoch, a datetime, or a timedelta before now.
            tail: Only this number of lines at the end of the kept output.
            timestamps: Put the time of arrival before each line, in UTC as in RFC 3339.

        Raises:
            StateError: The container has no command.
            ValueError: An argument is malformed.
            TypeError: An argument has the wrong type.
        """
        if self._main is None:
            raise StateError(f"container {self.name} has no command to log")
        selection = Selection.of(stdout, stderr, since, tail, timestamps)
        return self._main.log.read(selection, follow)

    @property
    def logs_dropped(self) -> int:
        """Bytes of output that `logs` no longer has."""
        return 0 if self._main is None else self._main.log.dropped

    def stats(self) -> Stats:
        """Return the current resource usage of the container, from counters of the kernel.

        Raises:
            StateError: The container is not running.
            UnsupportedError: The host has no cgroup for the container.
        """
        return stats_of(self._live())

    def _repr_html_(self) -> str:
        from pycontain._model.html import table

        command = "" if self.spec.command is None else str(list(self.spec.command))
        rows = [
            ("name", self.name),
            ("id", self.id[:12]),
            ("status", self.status),
            ("image", self.spec.image.name),
        ]
        return table([*rows, ("command", command)] if command else rows)
