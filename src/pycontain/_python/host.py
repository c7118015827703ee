"""Caller's side of function calls: a prepared interpreter in a container, and its forks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field

from pycontain._kernel import native
from pycontain._kernel.protocol import RecordKind
from pycontain._kernel.waiting import is_ready, now
from pycontain._python import ship
from pycontain._python.source import Source, printable
from pycontain._runtime.exec import Command, Execution
from pycontain._runtime.streams import PIPE, Plumbing
from pycontain.errors import CallError, StartError, StateError, UnsupportedError

if TYPE_CHECKING:
    from pycontain._cgroups.exec_cgroup import Counters
    from pycontain._model.limits import CgroupLimits
    from pycontain._runtime.running import Running

HEADER = struct.Struct("<QQ")
"""Two numbers before a call: maximum size of its answer, size of the call.
The same before an answer: whether a child accepted the call, size of the answer.
"""

ANSWER_ROOM = 1 << 28
"""Maximum size of an answer in bytes, whatever `max_output` is."""

_START_PATIENCE = 30.0
"""Seconds to wait for a fork; an interpreter that does not answer in time is replaced."""

_HELLO_PATIENCE = 10.0
"""Seconds to wait for the version of an interpreter if there is no deadline; imports have no maximum."""

_LONGEST_MESSAGE = 1 << 20
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class PreparationTimeout(Exception):
    """An interpreter was not prepared in time; the message is its output so far."""


class ChildLost(Exception):
    """A child has ended, or was not forked in time, before it accepted its call."""


@define(eq=False)
class Forked(Execution):
    """A running call; its processes end with it if a cgroup separates them from those of other calls."""

    zygote: Execution | None = None

    def _kill_by_agent(self) -> bool:
        if self.exec_cgroup is not None and self.exec_cgroup.killable:
            return False
        # Without a cgroup for each call, the interpreter and all of its forks have to be killed.
        assert self.zygote is not None
        self.zygote.kill()
        return True

    def finish(self) -> Counters:
        """Kill remaining processes, read the counters and release the exec cgroup.  Idempotent."""
        if (
            not self.ended
            and self.exec_cgroup is not None
            and self.exec_cgroup.killable
            and not self.running.ended
        ):
            with contextlib.suppress(OSError):  # the end of the container removes the cgroup
                if self.exec_cgroup.occupied:
                    self.exec_cgroup.kill()
        return super().finish()


@define(eq=False)
class Child:
    """A fork that waits for a call or runs one.

    Attributes:
        execution: The execution in the container.
        plumbing: Its streams.
        answer: Descriptor of the memory that receives the answer.
        started: Whether the child is in its cgroups.
    """

    execution: Forked
    plumbing: Plumbing
    answer: int
    started: bool = False

    def wait_started(self, seconds: float | None) -> None:
        """Wait until the child is in its cgroups.

        Raises:
            ChildLost: The child has ended or is late.
            StartError: The fork failed.
        """
        patience = _START_PATIENCE if seconds is None else min(seconds, _START_PATIENCE)
        try:
            record = native.receive(self.execution.channel, int(patience * 1000))
        except TimeoutError:
            raise ChildLost("late") from None
        except OSError as error:  # the guest sent a malformed record
            raise ChildLost("gone") from error
        if record is None or record.kind == RecordKind.EXITED:
            raise ChildLost("gone")
        if record.fd >= 0:
            os.close(record.fd)
        if record.kind == RecordKind.FAILED:
            hint = "raise the limit of processes (pids)" if record.errno == errno.EAGAIN else None
            raise StartError("cannot fork for a call", step="clone", errno=record.errno, hint=hint)
        exec_cgroup, group = self.execution.exec_cgroup, self.execution.running.group
        if exec_cgroup is not None and group is not None:
            group.activate(exec_cgroup)
            # Read the cgroup as well, since a guest can claim anything in its record.
            if not exec_cgroup.begin_anew() and exec_cgroup.killable:
                raise ChildLost("not in its cgroup")
        self.started = True

    def is_taken(self) -> bool:
        """Return whether the child accepted its call."""
        return bool(HEADER.unpack(os.pread(self.answer, HEADER.size, 0))[0])

    def read_answer(self, most: int) -> Source:
        """Return the answer; an empty one if there is none, or if it has more than `most` bytes."""
        _, size = HEADER.unpack(os.pread(self.answer, HEADER.size, 0))
        return Source(self.answer, HEADER.size, size if size <= most else 0)

    def close(self) -> None:
        """Close our ends of the streams, which ends a waiting child.  Idempotent."""
        self.plumbing.close()
        if self.answer >= 0:
            os.close(self.answer)
            self.answer = -1

    def abandon(self) -> None:
        """Kill the child and release its resources."""
        try:
            if not self.execution.ended:
                self.execution.kill()
                self.execution.finish()
        finally:
            self.close()

    def forget(self) -> None:
        """Close the descriptors only, after a fork of the caller."""
        self.close()
        if not self.execution.ended:
            self.execution.ended = True
            os.close(self.execution.channel)


@define(eq=False)
class Prepared:
    """An interpreter that has imported its modules and waits to be forked."""

    running: Running
    execution: Execution
    control: int
    next_child: Child | None = None
    closed: bool = False
    lock: threading.RLock = field(factory=threading.RLock)

    @classmethod
    def start(
        cls, running: Running, command: Command, imports: Sequence[str], deadline: float | None
    ) -> Prepared:
        """Start the interpreter and wait for its imports.

        Args:
            running: The container.
            command: The interpreter and its arguments.
            imports: Modules to import.
            deadline: Deadline on the clock of `waiting.now`, or None.

        Raises:
            CallError: An import failed, or the interpreter ended.
            PreparationTimeout: The deadline passed, or without one, no version arrived for 10 seconds.
            UnsupportedError: The interpreter has another version.
            StartError: The interpreter cannot be started.
            StateError: The container has ended.
        """
        code = ship.reader()
        ours, theirs = native.pair()
        errors, errors_inside = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        execution = None
        try:
            streams = (theirs, errors_inside, errors_inside)
            execution = Execution.launch(running, command, streams, None, quiet=True, idle=True)
            prepared = cls(running, execution, ours)
            for fd in (theirs, errors_inside):
                os.close(fd)
            theirs = errors_inside = -1
            _converse(prepared, imports, code, errors, deadline)
            with running.lock:
                running.dependents.append(prepared)
            if running.ended:
                raise StateError(f"container {running.spec.name} has ended")
            return prepared
        except BaseException:
            if execution is not None:
                execution.kill()
                execution.finish()
            os.close(ours)
            raise
        finally:
            for fd in (theirs, errors_inside, errors):
                if fd >= 0:
                    os.close(fd)

    @property
    def alive(self) -> bool:
        """Whether the interpreter is running; its socket gets readable only at its end."""
        with self.lock:
            if self.closed:
                return False
            return not is_ready(self.control, 0)

    @property
    def apart(self) -> bool:
        """Whether a cgroup separates the processes of one call from those of another."""
        return self.execution.exec_cgroup is not None and self.execution.exec_cgroup.killable

    def take(self, limits: CgroupLimits | None) -> Child:
        """Return the waiting child, or fork one.

        Raises:
            StateError: The container has ended.
            LimitError: A limit cannot be applied.
            UnsupportedError: The host does not support a limit.
        """
        with self.lock:
            if limits is None and self.next_child is not None:
                child, self.next_child = self.next_child, None
                return child
            return self._fork(limits)

    def fork_next(self) -> None:
        """Fork a child for the next call, or do nothing if that fails."""
        with self.lock:
            if self.next_child is None and self.alive:
                with contextlib.suppress(OSError, StateError):
                    self.next_child = self._fork(None)

    def _fork(self, limits: CgroupLimits | None) -> Child:
        if self.closed:
            raise StateError(f"container {self.running.spec.name} has ended")
        begun = time.perf_counter()
        group = self.running.group
        exec_cgroup = group.acquire(limits, idle=True) if group is not None else None
        fds: list[int] = []
        plumbing = None
        ours = theirs = answer = -1
        try:
            plumbing = Plumbing(PIPE, PIPE, PIPE)
            plumbing.give_to(self.running, self.execution.command.identity)
            answer = _answer_file()
            ours, theirs = native.pair()
            fds = exec_cgroup.open_own() if exec_cgroup is not None else []
            native.send(self.control, b"fork", [*plumbing.guest, answer, theirs, *fds])
        except BaseException as error:
            if plumbing is not None:
                plumbing.close()
            for fd in (ours, answer):
                if fd >= 0:
                    os.close(fd)
            if group is not None and exec_cgroup is not None:
                group.release(exec_cgroup)
            if isinstance(error, OSError) and self.running.dead:
                raise StateError(f"container {self.running.spec.name} has ended") from error
            raise
        finally:
            for fd in (theirs, *fds):
                if fd >= 0:
                    os.close(fd)
        plumbing.close_guest()
        command = self.execution.command
        call = Forked(self.running, command, 0, ours, exec_cgroup, begun, zygote=self.execution)
        call.stops = self.running.session.disk.stops(self.running)
        call.memory_stops = self.running.session.kernel_memory.stops(self.running)
        return Child(call, plumbing, answer)

    def discard(self) -> None:
        """End the interpreter and the waiting child.  Idempotent."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            os.close(self.control)
            next_child, self.next_child = self.next_child, None
            with self.running.lock:
                if self in self.running.dependents:
                    self.running.dependents.remove(self)
        self.execution.kill()
        if next_child is not None:
            next_child.abandon()
        self.execution.finish()

    def container_ended(self) -> None:
        """Close the descriptors after the end of the container."""
        with self.lock:
            if not self.closed:
                self.closed = True
                self.forget()

    def forget(self) -> None:
        """Close the descriptors only, after a fork of the caller."""
        control, self.control, self.closed = self.control, -1, True
        if control >= 0:
            os.close(control)
        if self.next_child is not None:
            self.next_child.forget()
            self.next_child = None
        if not self.execution.ended:
            self.execution.ended = True
            os.close(self.execution.channel)


def _answer_file() -> int:
    """Return a memfd of a fixed size; seals keep a guest from growing it or shrinking it during a read."""
    fd = os.memfd_create("pycontain-answer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, HEADER.size + ANSWER_ROOM)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _converse(
    prepared: Prepared, imports: Sequence[str], code: bytes, errors: int, deadline: float | None
) -> None:
    """Receive the version of the interpreter, send the imports, and wait for them."""
    soon = now() + _HELLO_PATIENCE if deadline is None else deadline
    hello = _receive(prepared, errors, soon)
    _check_version(hello)
    shipped = native.sealed("pycontain-reader", code)
    try:
        native.send(prepared.control, json.dumps({"imports": list(imports)}).encode(), [shipped])
    finally:
        os.close(shipped)
    answer = _receive(prepared, errors, deadline)
    error = answer.get("error")
    if isinstance(error, list) and len(error) == 3 and all(isinstance(part, str) for part in error):
        kind, message, trace = map(printable, error)
        raise CallError(kind, message, trace)
    if answer != {"ready": True}:
        raise CallError("ProtocolError", "the interpreter sent an unexpected message")


def _receive(prepared: Prepared, errors: int, deadline: float | None) -> dict[str, Any]:
    """Return the next message of the interpreter.

    Raises:
        PreparationTimeout: The deadline passed.
        CallError: The interpreter ended.
        StartError: The interpreter cannot be started.
    """
    if not is_ready(prepared.control, None if deadline is None else max(0.0, deadline - now())):
        raise PreparationTimeout(_words(errors))
    try:
        text = os.read(prepared.control, _LONGEST_MESSAGE)
    except ConnectionResetError:
        text = b""
    if not text:
        _raise_end(prepared, errors)
    try:
        message = json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        message = None
    return message if isinstance(message, dict) else {}


def _raise_end(prepared: Prepared, errors: int) -> None:
    execution = prepared.execution
    try:
        record = native.receive(execution.channel, 5000)
    except TimeoutError:
        record = None
    if record is not None and record.kind == RecordKind.FAILED:
        from pycontain._runtime.exec_errors import start_failure

        raise start_failure(execution.command, record)
    if prepared.running.dead:
        raise StateError(f"container {prepared.running.spec.name} has ended")
    status = "" if record is None else f" (status {os.waitstatus_to_exitcode(record.value)})"
    raise CallError("EOFError", f"the interpreter ended before it was prepared{status}", _words(errors))


def _words(errors: int) -> str:
    try:
        return printable(os.read(errors, 1 << 16).decode("utf-8", "replace"))
    except OSError:
        return ""


def _check_version(hello: dict[str, Any]) -> None:
    import importlib.util
    import sys

    ours = sys.implementation.name, importlib.util.MAGIC_NUMBER.hex()
    if (hello.get("implementation"), hello.get("magic")) != ours:
        name, version = (printable(str(hello.get(key)))[:40] for key in ("implementation", "version"))
        mine = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
        raise UnsupportedError(
            f"calls from {mine} into {name} {version}",
            hint="pass `python` of the same minor version, since functions are sent as code",
        )
