"""A container's own command: its end, and the last of what it wrote."""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pycontain._kernel import native
from pycontain._runtime.exec import (
    Command,
    Environment,
    Execution,
    command_of,
    default_variables,
    returncode_of,
    start_failure,
)
from pycontain._runtime.start import Running, start
from pycontain._runtime.streams import DEVNULL, PIPE, STDOUT, Plumbing
from pycontain._runtime.users import Identity
from pycontain.errors import UnsupportedError

if TYPE_CHECKING:
    from pycontain._engine import Engine
    from pycontain._runtime.spec import ContainerSpec

_KEPT = 16 << 20
_CHUNK = 65536


class MainCommand:
    """The command that a container was made for, followed by a thread until it ends."""

    def __init__(self, running: Running, channel: int, output: int, execution: Execution | None) -> None:
        self.running = running
        self.returncode: int | None = None
        self._channel = channel
        self._output = output
        self._execution = execution
        self._chunks: collections.deque[bytes] = collections.deque()
        self._kept = 0
        self._first = 0
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._follow, name="pycontain-main", daemon=True)
        self._thread.start()

    @classmethod
    def beside_agent(cls, running: Running, argv: Sequence[str]) -> MainCommand:
        """Start the command by the agent.  Raises StartError and its kind when it cannot be executed."""
        command = command_of(running, tuple(argv), None, None, None)
        plumbing = Plumbing(DEVNULL, PIPE, STDOUT)
        try:
            execution = Execution.launch(running, command, plumbing.guest, None)
        except BaseException:
            plumbing.close()
            raise
        plumbing.close_guest()
        return cls(running, execution.channel, plumbing.ours[1], execution)

    @classmethod
    def as_init(cls, engine: Engine, spec: ContainerSpec) -> MainCommand:
        """Start a container whose PID 1 the command is.  Users are numbers then: no agent reads passwd."""
        command = _init_command(spec)
        plumbing = Plumbing(DEVNULL, PIPE, STDOUT)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            buffer = command.encode(1, 7, 0)
            guest = [null, plumbing.guest[1], plumbing.guest[1]]
            running = start(engine, spec, (buffer, guest))
        except BaseException:
            plumbing.close()
            raise
        finally:
            os.close(null)
        plumbing.close_guest()
        record = native.receive(running.control)
        if record is not None and record.kind == native.FAILED:
            plumbing.close()
            running.end()
            raise start_failure(command, record)
        return cls(running, running.exit_socket, plumbing.ours[1], None)

    def _follow(self) -> None:
        while chunk := os.read(self._output, _CHUNK):
            with self._changed:
                self._chunks.append(chunk)
                self._kept += len(chunk)
                while self._kept > _KEPT:
                    self._kept -= len(self._chunks.popleft())
                    self._first += 1
                self._changed.notify_all()
        os.close(self._output)
        self._hear_end()

    def _hear_end(self) -> None:
        failed: native.Record | None = None
        returncode = -9
        while True:
            try:
                record = native.receive(self._channel)
            except OSError:
                record = None
            if record is None:
                break
            if record.kind == native.FAILED:
                failed = record
            elif record.kind == native.EXITED:
                returncode = returncode_of(record.value)
                break
        if failed is not None:
            returncode = 127 if failed.errno == 2 else 126
        if self._execution is not None:
            self._execution.finish()
        with self._changed:
            self.returncode = returncode
            self._over = True
            self._changed.notify_all()

    def poll(self) -> int | None:
        """The return code, or None while it runs."""
        return self.returncode

    def join(self, timeout: float | None) -> bool:
        """Wait for the end; False at the timeout (seconds)."""
        with self._changed:
            return self._changed.wait_for(lambda: self._over, timeout)

    def close(self) -> int | None:
        """Wait for the thread, once the container ended."""
        self._thread.join()
        return self.returncode

    def signal(self, number: int) -> None:
        """Send a signal to the command."""
        import signal as signals

        if self._execution is not None:
            self._execution.signal(number)
        else:
            signals.pidfd_send_signal(self.running.pidfd, number)

    def logs(self, follow: bool) -> Iterator[bytes]:
        """Chunks that are kept; with follow, those that come until the end."""
        at = 0
        while True:
            with self._changed:
                while follow and not self._over and self._first + len(self._chunks) <= at:
                    self._changed.wait()
                at = max(at, self._first)
                ready = [
                    self._chunks[index - self._first] for index in range(at, self._first + len(self._chunks))
                ]
                at += len(ready)
                over = self._over
            yield from ready
            if not follow or (over and not ready):
                return


def _init_command(spec: ContainerSpec) -> Command:
    parts = (spec.user or "0").split(":")
    if not all(part.isdigit() for part in parts) or len(parts) > 2:
        raise UnsupportedError(
            f"the user {spec.user!r} with init=False", hint="give numbers: no agent reads the image's passwd"
        )
    uid, gid = int(parts[0]), int(parts[-1]) if len(parts) == 2 else 0
    identity = Identity(uid, gid, (), "/root" if uid == 0 else "/")
    assert spec.command is not None
    env = Environment.of(default_variables(spec, identity))
    return Command(spec.command, env, identity, spec.workdir)
