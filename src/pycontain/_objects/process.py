"""Process: a running command of a container, similar to subprocess.Popen."""

from __future__ import annotations

import codecs
import collections
import contextlib
import errno
import fcntl
import io
import operator
import os
import signal
import struct
import subprocess
import termios
import threading
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Generic, Self

from pycontain._kernel import native
from pycontain._kernel.protocol import RecordKind
from pycontain._kernel.waiting import is_ready
from pycontain._model.process import Chars
from pycontain._objects.buffered import BufferedOutput, StreamBuffer, empty_in_background
from pycontain._objects.exchange import (
    ByteLines,
    Exchange,
    OutputExceeded,
    TerminalInput,
    close_quietly,
    deadline_of,
    left,
    open_stream,
    text_or_bytes,
)
from pycontain._runtime.exec import Execution, returncode_of
from pycontain._runtime.log import debug_end
from pycontain._runtime.streams import decoder
from pycontain.errors import Args, StateError

if TYPE_CHECKING:
    from pycontain._cgroups.exec_cgroup import Counters
    from pycontain._model.process import Reason, Usage
    from pycontain._runtime.cancel import CancelToken

_EMPTIED_WITHIN = 5.0
"""Seconds to wait for the thread of buffered streams after the command has ended."""

_forgotten: collections.deque[Execution] = collections.deque()
"""Executions of garbage-collected processes; a finalizer must not take locks, so they are freed later."""


def check_text(encoding: str, errors: str) -> None:
    """Check an encoding and an error handler, which io.TextIOWrapper does partly on first use.

    Raises:
        LookupError: One of them does not exist.
    """
    io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors).close()
    codecs.lookup_error(errors)


def check_terminal(rows: int, columns: int) -> None:
    """Check the size of a terminal.

    Raises:
        ValueError: A number is out of range.
    """
    for number in (rows, columns):
        if not 1 <= operator.index(number) <= 0xFFFF:
            raise ValueError(f"rows and columns must be between 1 and 65535, got {number}")


def signal_number(number: int) -> int:
    """Return a signal as an int.

    Raises:
        ValueError: The signal does not exist.
    """
    if not 0 <= operator.index(number) < signal.NSIG:
        raise ValueError(f"signal must be a signal number, got {number}")
    return int(number)


def deliver(execution: Execution, number: int) -> None:
    """Send a signal to a command, or do nothing if its container has ended."""
    with contextlib.suppress(StateError, BrokenPipeError, ConnectionResetError):
        execution.signal(number)


def abandon(execution: Execution) -> None:
    """Kill a command and release its resources, after an exception during its start."""
    if not execution.ended:
        try:
            execution.kill()
        finally:
            execution.finish()


def wait_executed(execution: Execution) -> tuple[int, int]:
    """Wait until the command is executed, and return its pid and its terminal or -1.

    The execution is finished if this raises.

    Raises:
        StartError: The command cannot be executed.
        StateError: The container ended before.
    """
    terminal = exec_pipe = -1
    try:
        record = native.receive(execution.channel)
        if record is not None and record.kind == RecordKind.OPENED:
            terminal = record.fd
            record = native.receive(execution.channel)
        if record is not None and record.kind == RecordKind.STARTED:
            pid, exec_pipe = record.value, record.fd
            if (record := native.receive(exec_pipe)) is None:
                return pid, terminal
        from pycontain._runtime.exec_errors import start_failure

        failure = record and start_failure(execution.command, record)
        # The exec cgroup can be reused once the agent has reaped the command.
        while failure and record is not None and record.kind != RecordKind.EXITED:
            record = native.receive(execution.channel)
        execution.finish()
        raise failure or StateError("the container ended before the command started")
    except BaseException:
        if terminal >= 0:
            os.close(terminal)
        abandon(execution)
        raise
    finally:
        if exec_pipe >= 0:
            os.close(exec_pipe)


def _release_exec_cgroups() -> None:
    with contextlib.suppress(IndexError):  # another thread may take the last one
        while _forgotten:
            one = _forgotten.popleft()
            if one.exec_cgroup is not None and one.running.group is not None and not one.running.ended:
                # It is unknown whether the command has ended, so the cgroup must not be reused.
                one.running.group.release(one.exec_cgroup, reusable=False)


class Process(Generic[Chars]):
    """A running command, with the methods and streams of subprocess.Popen.

    With `pty=True`, `stdin` and `stdout` are both the terminal, and closing `stdin` sends its end-of-file
    character.

    Attributes:
        args: The command.
        pid: Process id in the container.
        stdin: Binary or text file for PIPE or a terminal, else None.
        stdout: Binary or text file for PIPE, BUFFER or a terminal, else None.
        stderr: Binary or text file for PIPE or BUFFER, else None.
    """

    _whole = False

    def __init__(
        self,
        args: Args,
        execution: Execution,
        ours: list[int],
        *,
        text: bool,
        encoding: str,
        errors: str,
        buffered: Sequence[bool] = (False, False, False),
        timeout: float | None = None,
        max_output: int | None = None,
        kill_orphans: bool = False,
        cancel: CancelToken | None = None,
    ) -> None:
        self.args = args
        self.returncode: int | None = None
        self.reason: Reason | None = None
        self.usage: Usage | None = None
        self.pid = 0
        self.stdin: IO[Chars] | None = None
        self.stdout: IO[Chars] | None = None
        self.stderr: IO[Chars] | None = None
        self._execution = execution
        self.thread = threading.get_ident()
        self._codec = (encoding, errors) if text else None
        self._buffered = tuple(buffered)
        self._kept: list[StreamBuffer] = []
        self._emptier: threading.Thread | None = None
        self._input: TerminalInput | None = None
        self._cap = max_output
        self._kill_orphans = kill_orphans
        self._timer: threading.Timer | None = None
        self._killed_for: Reason | None = None
        self._terminal = -1
        self._exchange: Exchange | None = None
        self._end_record = native.ffi.new("struct pc_record_fd *")
        self._receiving = threading.Lock()
        # Serializes kill() with the reuse of the exec cgroup, so a late kill cannot hit the next command.
        self._ending = threading.RLock()
        _release_exec_cgroups()
        self._wait_and_open(ours)
        self._whole = True
        execution.running.processes.add(self)
        if timeout is not None:
            self._timer = threading.Timer(timeout, self._kill_for, ("timeout",))
            self._timer.daemon = True
            self._timer.start()
        if cancel is not None:
            cancel.add(self)

    def _wait_and_open(self, ours: list[int]) -> None:
        """Wait until the command is executed and open the streams, or end it and close `ours`."""
        try:
            # Wait first: before its fork, the supervisor has no child that an error below could kill.
            self.pid, self._terminal = wait_executed(self._execution)
            if self._codec is not None:
                check_text(*self._codec)
            if self._execution.command.terminal is not None:
                check_terminal(*self._execution.command.terminal)
            self._open_streams(ours)
        except BaseException:
            abandon(self._execution)
            self.close()
            for fd in ours:
                if fd >= 0:
                    os.close(fd)
            raise

    def _open_streams(self, ours: list[int]) -> None:
        if self._terminal >= 0:
            ours[0] = os.dup(self._terminal)
            ours[1] = os.dup(self._terminal)
        opened: list[IO[Any] | None] = [None, None, None]
        for number, fd in enumerate(ours):
            if fd >= 0:
                opened[number] = self._open_stream(fd, number)
                ours[number] = -1
        if self._kept:
            # A duplicate: the container's pidfd is closed as soon as another thread finds it dead.
            self._emptier = empty_in_background(self._kept, self._execution.running.share_pidfd())
        self.stdin, self.stdout, self.stderr = opened

    def _open_stream(self, fd: int, number: int) -> IO[Any]:
        if number == 0 and self._terminal >= 0:
            self._input = TerminalInput(fd, "wb")
            return text_or_bytes(self._input, self._codec)
        if not self._buffered[number]:
            return open_stream(fd, number > 0, self._codec)
        kept = StreamBuffer(fd, self._cap)
        self._kept.append(kept)
        return text_or_bytes(ByteLines(BufferedOutput(kept)), self._codec)

    @property
    def dropped(self) -> int:
        """Bytes of buffered streams that were discarded because they were not read in time."""
        return sum(one.dropped for one in self._kept)

    def _receive(self, seconds: float | None) -> None:
        """Wait up to `seconds` for the record of the command's end, and process it."""
        if self.returncode is not None:
            return
        if self._execution.running.forgotten:  # the record of its end is for the parent
            raise StateError(f"process {self.pid} belongs to the parent of this forked process")
        channel, found = self._execution.channel, self._end_record
        # The record is written to C memory, so an exception of a signal handler does not lose it.
        if found.record.kind != RecordKind.EXITED:
            if not is_ready(channel, seconds):
                return
            result = native.lib.pcx_receive(channel, found, 0)
            if result == 0:
                self._end(-signal.SIGKILL, None)
            elif result not in (1, -errno.EAGAIN, -errno.EINTR):
                native.checked(result)
        if found.record.kind == RecordKind.EXITED:
            record = native.record_of(found.record)
            self._end(returncode_of(record.value), record)

    def _end(self, returncode: int, record: native.Record | None) -> None:
        execution = self._execution
        with self._ending:
            if self._kill_orphans:
                with contextlib.suppress(StateError):
                    execution.kill()
            counters: Counters = execution.finish()
            self.usage = execution.usage(record, counters)
            try:
                self.reason = execution.reason(returncode, counters, self.usage)
            except (OSError, StateError):  # the container ended, and its counters with it
                self.reason = "signal" if returncode < 0 else "exit"
            if record is None and not execution.cancelled:
                self.reason = execution.running.why_ended().reason
            if self._killed_for is not None and returncode < 0:
                self.reason = self._killed_for
            if self._timer is not None:
                self._timer.cancel()
            execution.running.processes.discard(self)
            debug_end(execution, returncode, self.reason)
            self.returncode = returncode

    def _join(self, deadline: float | None) -> bool:
        """Wait for the end of the command; return False at the deadline."""
        while self.returncode is None:
            patience = left(deadline)
            if self._receiving.acquire(timeout=-1 if patience is None else patience):
                try:
                    self._receive(left(deadline))
                finally:
                    self._receiving.release()
            if self.returncode is None and left(deadline) == 0:
                return False
        return True

    def poll(self) -> int | None:
        """Return the return code, or None while the command runs or another thread is reading its end."""
        if self.returncode is None and self._receiving.acquire(blocking=False):
            try:
                self._receive(0)
            finally:
                self._receiving.release()
        return self.returncode

    def wait(self, timeout: float | timedelta | None = None) -> int:
        """Wait until the command has ended and return the return code.

        Args:
            timeout: Maximum number of seconds, or None.

        Raises:
            subprocess.TimeoutExpired: The timeout passed.
        """
        seconds, deadline = deadline_of(timeout)
        if not self._join(deadline):
            raise subprocess.TimeoutExpired(self.args, seconds)
        assert self.returncode is not None
        return self.returncode

    def communicate(
        self, input: Chars | None = None, timeout: float | timedelta | None = None
    ) -> tuple[Chars, Chars]:
        """Send input, read both streams to the end, wait for the command, and close the streams.

        Args:
            input: Text or bytes for standard input.
            timeout: Maximum number of seconds, or None.

        Returns:
            Standard output and standard error, None for each stream that is not captured.  If a stream
            exceeds `max_output`, the command is killed with reason 'output', and the first bytes are
            returned.

        Raises:
            subprocess.TimeoutExpired: The timeout passed; the error has the output so far, and a further call
                continues without a loss.
            TypeError: The input is text for binary streams, or bytes for text streams.
        """
        seconds, deadline = deadline_of(timeout)
        data = self._encoded(input)
        if self._exchange is None:
            outputs = self.stdout, self.stderr
            self._exchange = Exchange(self.stdin, outputs, self._terminal >= 0, data, self._cap)
        elif input:
            raise ValueError("input must not be given again: communicate continues with the first one")
        try:
            done = self._exchange.run(deadline) and self._join(deadline)
        except OutputExceeded:
            self._kill_for("output")
            done = self._join(deadline)
        out, err = self._exchange.read(self.stdout), self._exchange.read(self.stderr)
        if not done:
            raise subprocess.TimeoutExpired(self.args, seconds, out or None, err or None)
        self.close()
        if self._emptier is not None:
            self._emptier.join(_EMPTIED_WITHIN)  # ends soon: every writer is gone
        decode: Callable[[bytes | None], Any] = decoder(self._codec is not None, *(self._codec or ("", "")))
        return decode(out), decode(err)

    def _encoded(self, data: str | bytes | None) -> Any:
        if data is not None and isinstance(data, str) != (self._codec is not None):
            wanted = "bytes" if self._codec is None else "str"
            raise TypeError(f"input must be {wanted}, got {type(data).__name__} (hint: see `text` of popen)")
        return data.encode(*(self._codec or ())) if isinstance(data, str) else data or b""

    def send_signal(self, number: int) -> None:
        """Send a signal to the command, or do nothing if it has ended.

        Args:
            number: Number of the signal.

        Raises:
            ValueError: The signal does not exist.
        """
        checked = signal_number(number)
        if self.poll() is None:
            deliver(self._execution, checked)

    def terminate(self) -> None:
        """Send SIGTERM to the command."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the command and to all processes that it started."""
        if self.poll() is None:
            with self._ending:
                if not self._execution.ended:
                    self._execution.kill()

    def cancel(self) -> None:
        """Kill the command and all processes that it started, with reason 'cancelled'."""
        self._kill_for("cancelled")

    def _kill_for(self, reason: Reason) -> None:
        with contextlib.suppress(StateError), self._ending:
            if not self._execution.ended:
                self._killed_for = self._killed_for or reason
                self._execution.kill()

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal (TIOCSWINSZ).

        Args:
            rows: Height.
            columns: Width.

        Raises:
            StateError: The command has no terminal.
            ValueError: The size is out of range.
        """
        check_terminal(rows, columns)
        if self._terminal < 0:
            raise StateError("the command has no open terminal", hint="start it with pty=True")
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Close the streams, which hangs up a terminal.  Idempotent."""
        if self._input is not None:
            self._input.hangs_up = True
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                close_quietly(stream)
        self._close_terminal()

    def _close_terminal(self) -> None:
        fd, self._terminal = self._terminal, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None and not self._execution.running.forgotten:
                self.kill()
            # As Popen does: a command with a full pipe would not end.  Closing a terminal would send SIGHUP.
            if self._terminal < 0:
                self.close()
            if not self._execution.running.forgotten:
                self.wait()
        finally:
            self.close()

    def __del__(self) -> None:
        # Leave the streams open: they may be in use without this object and close themselves.
        if not self._whole:
            return
        execution = self._execution
        self._close_terminal()
        if not execution.ended:
            execution.ended = True
            os.close(execution.channel)
            if not execution.running.ended:  # in a forked child, it belongs to the parent
                _forgotten.append(execution)
                text = f"process {self.pid} is still running"
                warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<Process pid={self.pid} returncode={self.returncode} args={self.args!r}>"
