"""A container's own command: its end, its usage, and the last of what it wrote."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import termios
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve

from pycontain._cgroups.exec_cgroup import Counters
from pycontain._kernel import native
from pycontain._kernel.protocol import RecordKind
from pycontain._kernel.waiting import IN, ready
from pycontain._model.process import Reason, Usage
from pycontain._model.user import is_number
from pycontain._objects.log import OutputLog
from pycontain._objects.process import abandon, deliver, signal_number, wait_executed
from pycontain._runtime.exec import (
    Command,
    Environment,
    Execution,
    command_of,
    default_variables,
    reason_of,
    returncode_of,
    usage_of,
)
from pycontain._runtime.running import Running
from pycontain._runtime.start import start
from pycontain._runtime.streams import DEVNULL, PIPE, Plumbing
from pycontain._runtime.users import Identity
from pycontain.errors import StateError, UnsupportedError

if TYPE_CHECKING:
    from pycontain._runtime.session import Session
    from pycontain._runtime.spec import ContainerSpec

_CHUNK = 65536
_LAST_ID = (1 << 32) - 2
_LAST_WORDS = 10.0
"""Seconds within which the record of the command's end must come once PID 1 is dead."""
_COUNTED_WITHIN = 1.0
"""Seconds in which the thread that ends the container has read its counters."""


class MainCommand:
    """The command that a container was made for, followed by a thread until its output ends too."""

    def __init__(
        self, running: Running, channel: int, outputs: tuple[int, int], execution: Execution | None
    ) -> None:
        """Takes over `channel`, `outputs` and the execution, even where it raises."""
        self.running = running
        self.returncode: int | None = None
        self.reason: Reason | None = None
        self.usage: Usage | None = None
        self.log = OutputLog()
        self._channel = channel
        self._outputs = {outputs[0]: 1, outputs[1]: 2}
        self._execution = execution
        self._begun = time.perf_counter()
        for fd in outputs:
            os.set_blocking(fd, False)
        self._alive = -1
        self._last: Counters | None = None
        self._counted = threading.Event()
        # Taken by itself: a handler's exception in the condition's own __enter__ would leave it locked.
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._thread = threading.Thread(target=self._follow, name="pycontain-main", daemon=True)
        try:
            # Of our own: the container's is closed when others find it dead.
            self._alive = os.dup(running.pidfd)
            running.before_cleanup = self._count
            self._thread.start()
        except (OSError, RuntimeError):  # no more fds, no more threads
            self._end(None)
            self._close()
            raise

    @classmethod
    def beside_agent(cls, running: Running, argv: Sequence[str]) -> MainCommand:
        """Start the command by the agent.  Raises StartError and its kind when it cannot be executed."""
        command = command_of(running, tuple(argv), None, None, None)
        plumbing = Plumbing(DEVNULL, PIPE, PIPE)
        execution: Execution | None = None
        try:
            plumbing.give_to(running, command.identity)
            execution = Execution.launch(running, command, plumbing.guest, None)
            plumbing.close_guest()
            wait_executed(execution)
        except BaseException:
            plumbing.close()
            if execution is not None:
                abandon(execution)
            raise
        return cls(running, execution.channel, (plumbing.ours[1], plumbing.ours[2]), execution)

    @classmethod
    def as_init(cls, session: Session, spec: ContainerSpec) -> MainCommand:
        """Start a container whose PID 1 the command is.  Users are numbers then: no agent reads passwd."""
        command = _init_command(spec)
        plumbing = Plumbing(DEVNULL, PIPE, PIPE)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        running: Running | None = None
        try:
            guest = [null, plumbing.guest[1], plumbing.guest[2]]
            running = start(session, spec, (command.encode(1, 7, 0), guest))
            plumbing.give_to(running, command.identity)
            plumbing.close_guest()
            record = native.receive(running.control)
            if record is not None and record.kind == RecordKind.FAILED:
                from pycontain._runtime.exec_errors import start_failure

                raise start_failure(command, record)
            channel = os.dup(running.exit_socket)
            outputs = plumbing.ours[1], plumbing.ours[2]
            plumbing.ours = [-1, -1, -1]
            return cls(running, channel, outputs, None)
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
        waiting = {self._channel, *self._outputs, self._alive}
        try:
            while waiting - {self._alive}:
                found = set(
                    ready(dict.fromkeys(waiting, IN), None if self._alive in waiting else _LAST_WORDS)
                )
                if not found:
                    break
                done = self._serve(found & waiting)
                waiting -= done
        finally:
            self._end(None)
            self._close()

    def _serve(self, found: set[int]) -> set[int]:
        """Take what is there; the descriptors that nothing more comes from."""
        # First what poll saw in the pipes: the others take what is there.
        done = {fd for fd in self._outputs if fd in found and not self._read(fd, _CHUNK)}
        if self._channel in found and self._hear():
            done.add(self._channel)
        if self._alive in found:
            self._drain()
            done |= {self._alive, *self._outputs}
        return done

    def _read(self, fd: int, most: int) -> int:
        """Keep what is there; 0 at the end of the output, -1 where nothing is there."""
        try:
            chunk = os.read(fd, most)
        except BlockingIOError:  # the command read from its own pipe what poll saw
            return -1
        if chunk:
            self.log.add(self._outputs[fd], chunk)
        return len(chunk)

    def _drain(self) -> None:
        """Keep what is in the pipes by now, and no more: who writes on must not hold the end back."""
        for fd in self._outputs:
            there = array.array("i", [0])
            fcntl.ioctl(fd, termios.FIONREAD, there)
            left = there[0]
            while left > 0 and (got := self._read(fd, min(left, _CHUNK))) > 0:
                left -= got

    def _hear(self) -> bool:
        """The next record of the channel; True after the last."""
        record = native.receive(self._channel)
        if record is not None and record.kind != RecordKind.EXITED:
            return False
        self._drain()
        self._end(record)
        return True

    def _count(self) -> None:
        """Read the counters before the container's cgroups are removed.  By the thread that ends it."""
        try:
            self._last = self._counters()
        except OSError:  # removed already
            self._last = Counters()
        self._counted.set()

    def _counters(self) -> Counters:
        group = self.running.group
        if group is None:
            return Counters()
        whole = group.counters()
        if self._execution is None or self._execution.exec_cgroup is None:
            return whole
        own = self._execution.exec_cgroup.counters()
        # cgroup v1 counts processes for the container as a whole: the agent is one of them.
        if (
            own.processes is None
            and whole.processes is not None
            and group.was_exclusive(self._execution.exec_cgroup)
        ):
            own = evolve(own, processes=whole.processes - 1)
        return own

    def _end(self, record: native.Record | None) -> None:
        """The command ended; the first to say so is right."""
        if self.returncode is not None:
            return
        if self.running.ended:
            self._counted.wait(_COUNTED_WITHIN)
            counters = self._last or Counters()
        else:
            self._count()
            counters = self._last or Counters()
        returncode = -signal.SIGKILL if record is None else returncode_of(record.value)
        usage = usage_of(self._begun, record, counters)
        reason = self._reason(record, returncode, counters, usage)
        with contextlib.suppress(OSError):  # the container ends meanwhile, and its exec cgroup with it
            if self._execution is not None:
                self._execution.finish()
            else:
                os.close(self._channel)
        with self._mutex:
            self.reason, self.usage, self.returncode = reason, usage, returncode
            self._changed.notify_all()

    def _reason(
        self, record: native.Record | None, returncode: int, counters: Counters, usage: Usage
    ) -> Reason:
        if counters.oom_kills and returncode:
            return "oom"
        # Who ends a container kills its PID 1, and with it the command.
        if record is None or (
            self._execution is None and self.running.ended and returncode == -signal.SIGKILL
        ):
            return self.running.why_ended().reason
        if self._execution is not None:
            with contextlib.suppress(OSError, StateError):
                return self._execution.reason(returncode, counters, usage)
        return reason_of(self.running.spec, returncode, counters, usage)

    def _close(self) -> None:
        for fd in (*self._outputs, self._alive):
            if fd >= 0:
                os.close(fd)
        self.log.close()

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


def _init_user(user: str | None) -> tuple[int, int]:
    if user in (None, "", "0", "root"):
        return 0, 0
    parts = str(user).split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UnsupportedError(
            f"the user {user!r} with init=False",
            hint="pass 'uid:gid' in numbers, since no agent looks names up",
        )
    uid, gid = int(parts[0]), int(parts[1])
    if max(uid, gid) > _LAST_ID:
        raise ValueError(f"a user or group id must be at most {_LAST_ID}, got {user}")
    return uid, gid


def _init_groups(given: Sequence[str]) -> tuple[int, ...]:
    named = [one for one in given if not is_number(one)]
    if named:
        raise UnsupportedError(
            f"the group {named[0]!r} with init=False",
            hint="pass numeric ids in group_add, since no agent looks names up",
        )
    return tuple(map(int, given))


def _init_command(spec: ContainerSpec) -> Command:
    uid, gid = _init_user(spec.user)
    identity = Identity(uid, gid, _init_groups(spec.group_add), "/root" if uid == 0 else "/")
    assert spec.command is not None
    env = Environment.of(default_variables(spec, identity))
    return Command(spec.command, env, identity, spec.workdir)
