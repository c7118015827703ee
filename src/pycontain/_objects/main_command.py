"""Main command of a container: output, end and resource usage."""

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
"""Seconds to wait for the record of the command's end after PID 1 has died."""
_COUNTED_WITHIN = 1.0
"""Seconds to wait for the thread that ends the container to read its counters."""


class MainCommand:
    """Command that a container was created for, followed by a thread until its output has ended too."""

    def __init__(
        self, running: Running, channel: int, outputs: tuple[int, int], execution: Execution | None
    ) -> None:
        """Take ownership of `channel`, `outputs` and the execution, even if this raises."""
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
        # Acquired directly: an exception of a signal handler in Condition.__enter__ would leave it locked.
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._thread = threading.Thread(target=self._follow, name="pycontain-main", daemon=True)
        try:
            # A duplicate: the container's pidfd is closed as soon as another thread finds it dead.
            self._alive = os.dup(running.pidfd)
            running.before_cleanup = self._count
            self._thread.start()
        except (OSError, RuntimeError):  # no more fds, no more threads
            self._end(None)
            self._close()
            raise

    @classmethod
    def beside_agent(cls, running: Running, argv: Sequence[str]) -> MainCommand:
        """Start the command by the agent.

        Raises:
            StartError: The command cannot be executed.
        """
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
        """Start a container with the command as PID 1; users must be numeric, since no agent reads passwd."""
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
        """Read output until the command has ended and all writers are gone, or PID 1 has died.

        A command may close its output before it ends, or leave processes that write on.  A forked child of
        the caller may hold the output open, so the end of PID 1 counts too.
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
        """Process ready descriptors, and return those at their end."""
        # Read the ready pipes first, since the steps below drain them without a check for the end.
        done = {fd for fd in self._outputs if fd in found and not self._read(fd, _CHUNK)}
        if self._channel in found and self._receive():
            done.add(self._channel)
        if self._alive in found:
            self._drain()
            done |= {self._alive, *self._outputs}
        return done

    def _read(self, fd: int, most: int) -> int:
        """Store available output; return 0 at the end and -1 if there is none."""
        try:
            chunk = os.read(fd, most)
        except BlockingIOError:  # the command has read from its own pipe after poll(2)
            return -1
        if chunk:
            self.log.add(self._outputs[fd], chunk)
        return len(chunk)

    def _drain(self) -> None:
        """Store the bytes that are in the pipes now; later ones must not delay the end."""
        for fd in self._outputs:
            there = array.array("i", [0])
            fcntl.ioctl(fd, termios.FIONREAD, there)
            left = there[0]
            while left > 0 and (got := self._read(fd, min(left, _CHUNK))) > 0:
                left -= got

    def _receive(self) -> bool:
        """Process the next record of the channel; return True after the last one."""
        record = native.receive(self._channel)
        if record is not None and record.kind != RecordKind.EXITED:
            return False
        self._drain()
        self._end(record)
        return True

    def _count(self) -> None:
        """Read the counters before the cgroups are removed; called by the thread that ends the container."""
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
        # cgroup v1 counts the processes of the whole container, including the agent.
        if (
            own.processes is None
            and whole.processes is not None
            and group.was_exclusive(self._execution.exec_cgroup)
        ):
            own = evolve(own, processes=whole.processes - 1)
        return own

    def _end(self, record: native.Record | None) -> None:
        """Record the end of the command; only the first call has an effect."""
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
        with contextlib.suppress(OSError):  # a concurrent end of the container removes the exec cgroup
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
        # Ending a container kills PID 1 and thereby the command, so its reason is the container's.

        if record is None or (
            self._execution is None and self.running.cause is not None and returncode == -signal.SIGKILL
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
        """Return the return code, or None while the command runs."""
        return self.returncode

    def join(self, timeout: float | None) -> bool:
        """Wait for the end of the command; return False after `timeout` seconds."""
        seconds = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        with self._mutex:
            return self._changed.wait_for(lambda: self.returncode is not None, seconds)

    def close(self) -> int | None:
        """Wait for the thread, after the container has ended."""
        self._thread.join()
        return self.returncode

    def signal(self, number: int) -> None:
        """Send a signal to the command, or do nothing if it has ended.

        Raises:
            ValueError: The signal does not exist.
        """
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
