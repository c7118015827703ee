"""Standard streams of a command, read and written in C until its end (ext/pump.c)."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

from attrs import frozen

from pycontain._kernel import native
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import RequestKind
from pycontain._kernel.waiting import IN, OUT, Wait, cooperative, now_ns
from pycontain._model.sizes import shown
from pycontain._runtime.cancel import TaskWatch
from pycontain._runtime.signals import shielded
from pycontain.errors import StateError

if TYPE_CHECKING:
    from pycontain._runtime.exec import Execution
    from pycontain._runtime.lent import Carrier
    from pycontain._runtime.running import Running
    from pycontain._runtime.users import Identity

PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
BUFFER = -4
"""For `popen`: a pipe that a thread reads into bounded memory, so that the command never waits."""


@frozen
class Descriptor:
    """A stream of the caller whose descriptor itself is passed to the command, with all of its rights.

    `popen(["tool"], stdout=Descriptor(file))`.  Other files, pipes, sockets and terminals are carried
    through a pipe, because the command could truncate a file, open it anew, or read from a terminal's
    output.  Use this for a program that must have a terminal or seek, and that may do all of that.

    Args:
        stream: A file object, or the number of an open descriptor.
    """

    stream: int | IO[Any]


Stream: TypeAlias = int | IO[Any] | Descriptor | None
Ending: TypeAlias = Literal["exit", "timeout", "output", "cancelled"]

_NAMES = ("stdin", "stdout", "stderr")

_UNLIMITED = (1 << 63) - 1
_ATTACHED_WITHIN = 20_000_000
"""Nanoseconds in which an event loop attaches its future to submitted work."""
_LAST_WORDS = 5_000_000_000
"""Nanoseconds to wait for the exit record of a killed process tree."""


class Plumbing:
    """Pipes of one command.

    Args:
        stdin: PIPE, DEVNULL, a file, a descriptor, a `Descriptor`, or None for the caller's own stream.
        stdout: The same, or BUFFER.
        stderr: The same as `stdout`, or STDOUT.

    Raises:
        ValueError: A stream is not open, or not for this direction.
        TypeError: A value is no stream.
        PathIsDirectory: A descriptor is one of a directory.

    Attributes:
        guest: Descriptors for the agent: stdin, stdout and stderr, -1 for /dev/null.
        ours: The other ends of pipes, or -1.
    """

    def __init__(self, stdin: Stream, stdout: Stream, stderr: Stream) -> None:
        self.guest = [-1, -1, -1]
        self.ours = [-1, -1, -1]
        self._made: list[int] = []
        self._lent: Carrier | None = None
        try:
            self._connect(0, stdin)
            self._connect(1, stdout)
            if stderr == STDOUT or _is_same_file(stdout, stderr):
                self.guest[2] = self.guest[1]
            else:
                self._connect(2, stderr)
        except BaseException:
            self.close()
            raise

    def _connect(self, number: int, stream: Stream) -> None:
        if stream == PIPE or (stream == BUFFER and number > 0):
            read, write = os.pipe2(os.O_CLOEXEC)
            ours, guest = (write, read) if number == 0 else (read, write)
            self.ours[number], self.guest[number] = ours, guest
            self._made.append(guest)
        elif stream == DEVNULL:
            return
        elif stream == STDOUT:
            raise ValueError(f"{_NAMES[number]} must not be STDOUT, which is for stderr")
        elif stream == BUFFER:
            raise ValueError(f"{_NAMES[number]} must not be BUFFER, which is for stdout and stderr of popen")
        elif isinstance(stream, Descriptor):
            self.guest[number] = _descriptor(number, stream.stream)
        else:
            self._lend(number, number if stream is None else _descriptor(number, stream))

    def _lend(self, number: int, fd: int) -> None:
        from pycontain._runtime.lent import Carrier, check

        check(number, fd)
        self._lent = self._lent or Carrier()
        self.guest[number] = (self._lent.output if number else self._lent.input)(fd)
        self._made.append(self.guest[number])

    def hand_over(self, execution: Execution) -> None:
        """Close the ends of a command that has started, and begin to copy its lent streams."""
        self.close_guest()
        if self._lent is not None:
            execution.lent, self._lent = self._lent, None
            execution.lent.start()

    def give_to(self, running: Running, identity: Identity) -> None:
        """Give the pipes to the user of the command, so that it can open /dev/stdout and the like."""
        if running.block is None:
            return
        for fd in self._made:
            # If the kernel refuses, the streams work, only not by name.
            with contextlib.suppress(OSError):
                os.fchown(fd, running.block + identity.uid, running.block + identity.gid)

    def close_guest(self) -> None:
        """Close the ends that were sent; an open one would hide the end of a stream."""
        while self._made:
            os.close(self._made.pop())

    def close(self) -> None:
        """Close all descriptors.  Idempotent."""
        self.close_guest()
        if self._lent is not None:
            self._lent.close()
        for number, fd in enumerate(self.ours):
            if fd >= 0:
                os.close(fd)
                self.ours[number] = -1


def _descriptor(number: int, stream: int | IO[Any]) -> int:
    name = _NAMES[number]
    try:
        fd = _number(stream)
    except AttributeError:
        raise TypeError(
            f"{name} must be a file, a descriptor, PIPE or DEVNULL, got {shown(stream)}"
        ) from None
    try:
        os.fstat(fd)
    except OSError:
        raise ValueError(f"{name} must be an open descriptor, got {shown(stream)}") from None
    return fd


def _number(stream: int | IO[Any]) -> int:
    return stream if isinstance(stream, int) else stream.fileno()


def _is_same_file(stdout: Stream, stderr: Stream) -> bool:
    """Return whether both are the same lent stream, whose parts must keep their order."""
    lent = [one for one in (stdout, stderr) if one not in (PIPE, STDOUT, DEVNULL, BUFFER, None)]
    if len(lent) < 2 or any(isinstance(one, Descriptor) for one in lent):
        return False
    return _number(lent[0]) == _number(lent[1])  # type: ignore[arg-type]


class Pump:
    """Input and output of one command until its end, its deadline, or the cap of its output.

    Args:
        execution: The command.
        plumbing: Its pipes, which the pump takes over.
        data: Its standard input.
        timeout: Seconds until it is killed.
        cap: Bytes of each output after which it is killed.
    """

    def __init__(
        self, execution: Execution, plumbing: Plumbing, data: bytes, timeout: float | None, cap: int | None
    ) -> None:
        self._execution = execution
        self._data = native.ffi.from_buffer(data)
        self._raw = native.ffi.new("struct pcx_pump *")
        self._watch: TaskWatch | None = None
        raw = self._raw
        raw.channel = execution.channel
        raw.fds, plumbing.ours = plumbing.ours, [-1, -1, -1]
        if data and raw.fds[0] >= 0:
            os.set_blocking(raw.fds[0], False)
        raw.input, raw.input_size = self._data, len(data)
        raw.limit = _UNLIMITED if cap is None else cap
        if timeout is not None:
            raw.deadline = now_ns() + max(1, int(timeout * 1e9))

    def run(self, *, kill_orphans: bool = False) -> Ending:
        """Read and write until the end of the command, and return the kind of its end.

        Args:
            kill_orphans: Whether to kill processes that the command left running.  Otherwise they go on, and
                the agent discards their output.  After a timeout and the like no process is left in any case.

        Raises:
            ContainerEnded: The container ended meanwhile.
        """
        result = self._first_turn()
        execution = self._execution
        if result == 0:
            if kill_orphans:
                execution.kill()
            elif self._raw.writers:
                self._hand_over()
            return "exit"
        if result not in (-errno.ETIMEDOUT, -errno.EMSGSIZE):
            if not execution.cancelled:
                raise execution.running.ended_error()
            execution.kill()
            self._raw.ended = 1  # its channel was shut down, so no record comes
            self._turn()
            return "cancelled"
        execution.kill()
        self._raw.deadline = now_ns() + _LAST_WORDS
        if result == -errno.EMSGSIZE:
            self._close_outputs()
        if not execution.running.frozen:  # a frozen agent sends no record
            self._turn()
        return "timeout" if result == -errno.ETIMEDOUT else "output"

    def __enter__(self) -> Pump:
        execution = self._execution
        execution.thread = threading.get_ident()
        execution.running.active.add(execution)
        # The library of a greenlet cancels it in the wait, and no thread may be started for it.
        if execution.thread != threading.main_thread().ident and cooperative() is None:
            # Without a watch, Ctrl-C ends only the main thread, and the command of this thread goes on.
            with contextlib.suppress(OSError):
                execution.running.session.interrupts.watch()
            self._watch = TaskWatch(execution)
            self._watch.attach()
        return self

    def _first_turn(self) -> int:
        """Run the pump, and look a second time for the asyncio task that waits for this thread."""
        if self._watch is None or not self._watch.pending:
            return self._turn()
        deadline, soon = self._raw.deadline, now_ns() + _ATTACHED_WITHIN
        if 0 < deadline <= soon:
            return self._turn()
        self._raw.deadline = soon
        result = self._turn()
        self._raw.deadline = deadline
        if result != -errno.ETIMEDOUT:
            return result
        self._watch.attach()
        return self._turn()

    def _hand_over(self) -> None:
        fds = [fd for fd in self._raw.fds[1:3] if fd >= 0]
        running = self._execution.running
        with contextlib.suppress(OSError, StateError):  # the processes end with the container
            control = running.acquire_control()
            try:
                native.send(control, request(RequestKind.DRAIN), fds)
            finally:
                running.release_control()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the buffers and pipes; after an exception kill the command first."""
        try:
            if kind is not None:
                shielded(self._abandon)
        finally:
            self._execution.running.active.discard(self._execution)
            native.lib.pcx_pump_free(self._raw)

    def _abandon(self) -> None:
        self._execution.kill()
        self._execution.finish()

    def _turn(self) -> int:
        if (wait := cooperative()) is not None:
            return self._turn_with(wait)
        while True:
            result = int(native.lib.pcx_pump(self._raw))
            if result != -errno.EINTR:
                return result

    def _turn_with(self, wait: Wait) -> int:
        """Run the pump without waiting in C; the hub of the greenlet library waits."""
        raw, deadline = self._raw, self._raw.deadline
        while True:
            raw.deadline = 1  # in the past, so that C does not wait
            result = int(native.lib.pcx_pump(raw))
            raw.deadline = deadline
            left = None if deadline == 0 else (deadline - now_ns()) / 1e9
            if result not in (-errno.EINTR, -errno.ETIMEDOUT) or (left is not None and left <= 0):
                return result
            wanted = {fd: IN for fd in (raw.fds[1], raw.fds[2], raw.channel) if fd >= 0}
            if raw.fds[0] >= 0:
                wanted[raw.fds[0]] = OUT
            wait(wanted, left)

    def _close_outputs(self) -> None:
        for number in (1, 2):
            if self._raw.fds[number] >= 0:
                os.close(self._raw.fds[number])
                self._raw.fds[number] = -1

    @property
    def record(self) -> native.Record | None:
        """Return the exit record of the command, None without one."""
        return native.record_of(self._raw.record) if self._raw.record.kind else None

    def output(self, number: int) -> bytes:
        """Return the output of stdout (1) or stderr (2)."""
        at = number - 1
        return bytes(native.ffi.buffer(self._raw.data[at], self._raw.size[at])) if self._raw.size[at] else b""


def decoder(text: bool, encoding: str, errors: str) -> Callable[[bytes | None], str | bytes | None]:
    """Return a function that converts captured bytes, with newlines as in subprocess.

    Args:
        text: Whether it returns text.
        encoding: Name of the encoding.
        errors: Name of the error handler.

    Raises:
        LookupError: Python does not know the encoding or the error handler.
    """
    if not text:
        return lambda data: data
    codecs.lookup(encoding)
    codecs.lookup_error(errors)

    def decode(data: bytes | None) -> str | None:
        if data is None:
            return None
        result = data.decode(encoding, errors)
        return result.replace("\r\n", "\n").replace("\r", "\n") if "\r" in result else result

    return decode
