"""A container's own command: its end, and the last of what it wrote."""

from __future__ import annotations

import array
import collections
import contextlib
import fcntl
import itertools
import os
import signal
import termios
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pycontain._kernel import native
from pycontain._kernel.waiting import IN, ready
from pycontain._objects.process import abandon, deliver, hear_started, signal_number
from pycontain._runtime.exec import (
    Command,
    Environment,
    Execution,
    command_of,
    default_variables,
    returncode_of,
    start_failure,
)
from pycontain._runtime.running import Running
from pycontain._runtime.start import start
from pycontain._runtime.streams import DEVNULL, PIPE, STDOUT, Plumbing
from pycontain._runtime.users import Identity
from pycontain.errors import UnsupportedError

if TYPE_CHECKING:
    from pycontain._engine import Engine
    from pycontain._runtime.spec import ContainerSpec

_KEPT = 16 << 20
_CHUNK = 65536
_SMALL = 4096
"""Bytes of a chunk below which the next one is added to it."""
_LAST_ID = (1 << 32) - 2
_LAST_WORDS = 10.0
"""Milliseconds within which the end of the command must be told once PID 1 is dead."""


class MainCommand:
    """The command that a container was made for, followed by a thread until its output ends too."""

    def __init__(self, running: Running, channel: int, output: int, execution: Execution | None) -> None:
        """Takes over `channel`, `output` and the execution, even where it raises."""
        self.running = running
        self.returncode: int | None = None
        self._channel = channel
        self._output = output
        self._execution = execution
        self._alive = -1
        self._chunks: collections.deque[bytes] = collections.deque()
        self._kept = 0
        self._first = 0
        # Taken by itself: a handler's exception in the condition's own __enter__ would leave it locked.
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._over = False
        self._thread = threading.Thread(target=self._follow, name="pycontain-main", daemon=True)
        try:
            # Of our own: the container's is closed when others find it dead.
            self._alive = os.dup(running.pidfd)
            self._thread.start()
        except (OSError, RuntimeError):  # no more fds, no more threads
            self._end(-signal.SIGKILL)
            self._close()
            raise

    @classmethod
    def beside_agent(cls, running: Running, argv: Sequence[str]) -> MainCommand:
        """Start the command by the agent.  Raises StartError and its kind when it cannot be executed."""
        command = command_of(running, tuple(argv), None, None, None)
        plumbing = Plumbing(DEVNULL, PIPE, STDOUT)
        execution: Execution | None = None
        try:
            plumbing.give_to(running, command.identity)
            execution = Execution.launch(running, command, plumbing.guest, None)
            plumbing.close_guest()
            hear_started(execution)
        except BaseException:
            plumbing.close()
            if execution is not None:
                abandon(execution)
            raise
        return cls(running, execution.channel, plumbing.ours[1], execution)

    @classmethod
    def as_init(cls, engine: Engine, spec: ContainerSpec) -> MainCommand:
        """Start a container whose PID 1 the command is.  Users are numbers then: no agent reads passwd."""
        command = _init_command(spec)
        plumbing = Plumbing(DEVNULL, PIPE, STDOUT)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        running: Running | None = None
        try:
            guest = [null, plumbing.guest[1], plumbing.guest[1]]
            running = start(engine, spec, (command.encode(1, 7, 0), guest))
            plumbing.give_to(running, command.identity)
            plumbing.close_guest()
            record = native.receive(running.control)
            if record is not None and record.kind == native.FAILED:
                raise start_failure(command, record)
            channel = os.dup(running.exit_socket)
            output, plumbing.ours[1] = plumbing.ours[1], -1
            return cls(running, channel, output, None)
        except BaseException:
            plumbing.close()
            if running is not None:
                running.end()
            raise
        finally:
            os.close(null)

    def _follow(self) -> None:
        """Until the command ended and nobody can write any more, whichever comes first.

        A command may close its output before it ends, and leave processes that go on to write; a
        child that the caller forked may hold the output open, so that it ends with PID 1 at the latest.
        """
        waiting = {self._channel, self._output, self._alive}
        try:
            while waiting - {self._alive}:
                found = set(
                    ready(dict.fromkeys(waiting, IN), None if self._alive in waiting else _LAST_WORDS)
                )
                if not found:
                    break
                # First what poll saw in the pipe: the others take what is there, and it would block then.
                done = {self._output} if self._output in found and not self._read(_CHUNK) else set()
                if self._channel in found and self._hear():
                    done.add(self._channel)
                if self._alive in found:
                    self._drain()
                    done |= {self._alive, self._output}
                waiting -= done
        finally:
            self._end(-signal.SIGKILL)
            self._close()

    def _read(self, most: int) -> int:
        """Keep what is there; 0 at the end of the output."""
        chunk = os.read(self._output, most)
        if chunk:
            with self._mutex:
                if self._chunks and len(self._chunks[-1]) < _SMALL:
                    self._chunks[-1] += chunk  # an object for each byte takes fifty
                else:
                    self._chunks.append(chunk)
                self._kept += len(chunk)
                while self._kept > _KEPT:
                    self._kept -= len(self._chunks.popleft())
                    self._first += 1
                self._changed.notify_all()
        return len(chunk)

    def _drain(self) -> None:
        """Keep what is in the pipe by now, and no more: who writes on must not hold the end back."""
        there = array.array("i", [0])
        fcntl.ioctl(self._output, termios.FIONREAD, there)
        left = there[0]
        while left > 0 and (got := self._read(min(left, _CHUNK))):
            left -= got

    def _hear(self) -> bool:
        """The next record of the channel; True after the last."""
        record = native.receive(self._channel)
        if record is not None and record.kind != native.EXITED:
            return False
        self._drain()
        self._end(-signal.SIGKILL if record is None else returncode_of(record.value))
        return True

    def _end(self, returncode: int) -> None:
        """The command ended; the first to say so is right."""
        if self.returncode is not None:
            return
        with contextlib.suppress(OSError):  # the container ends meanwhile, and its leaf with it
            if self._execution is not None:
                self._execution.finish()
            else:
                os.close(self._channel)
        with self._mutex:
            self.returncode = returncode
            self._changed.notify_all()

    def _close(self) -> None:
        for fd in (self._output, self._alive):
            if fd >= 0:
                os.close(fd)
        with self._mutex:
            self._over = True
            self._changed.notify_all()

    def poll(self) -> int | None:
        """The return code, or None while it runs."""
        return self.returncode

    def join(self, timeout: float | None) -> bool:
        """Wait for the command's end; False at the timeout (seconds)."""
        seconds = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        with self._mutex:
            return self._changed.wait_for(lambda: self.returncode is not None, seconds)

    def close(self) -> int | None:
        """Wait for the thread, once the container ended."""
        self._thread.join()
        return self.returncode

    def signal(self, number: int) -> None:
        """Send a signal to the command; nothing happens once it ended.  Raises ValueError."""
        checked = signal_number(number)
        if self.returncode is not None:
            return
        if self._execution is not None:
            deliver(self._execution, checked)
        elif not self.running.ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.running.pidfd, checked)

    def _is_beyond(self, at: int, done: int) -> bool:
        """Tell whether there is more than `done` bytes of the chunk of this number; the mutex is held."""
        last = self._first + len(self._chunks) - 1
        return at < last or (at == last and len(self._chunks[-1]) > done)

    def logs(self, follow: bool) -> Iterator[bytes]:
        """Chunks that are kept; with follow, those that come until the end."""
        at = done = 0
        while True:
            with self._mutex:
                while follow and not self._over and not self._is_beyond(at, done):
                    self._changed.wait()
                if at < self._first:
                    at, done = self._first, 0
                ready = list(itertools.islice(self._chunks, at - self._first, None))
                over = self._over
            if ready:
                ready[0], at, done = ready[0][done:], at + len(ready) - 1, len(ready[-1])
                ready = [one for one in ready if one]
            yield from ready
            if not follow or (over and not ready):
                return


def _init_user(user: str | None) -> tuple[int, int]:
    if user in (None, "", "0", "root"):
        return 0, 0
    parts = str(user).split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UnsupportedError(
            f"the user {user!r} with init=False",
            hint="give 'uid:gid' in numbers: no agent reads the image's passwd and group",
        )
    uid, gid = int(parts[0]), int(parts[1])
    if max(uid, gid) > _LAST_ID:
        raise ValueError(f"ids are at most {_LAST_ID}: {user}")
    return uid, gid


def _init_command(spec: ContainerSpec) -> Command:
    uid, gid = _init_user(spec.user)
    identity = Identity(uid, gid, (), "/root" if uid == 0 else "/")
    assert spec.command is not None
    env = Environment.of(default_variables(spec, identity))
    return Command(spec.command, env, identity, spec.workdir)
