"""A command that runs beside its caller: Popen's verbs for a container."""

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
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from pycontain._kernel import native
from pycontain._kernel.protocol import RecordKind
from pycontain._kernel.waiting import is_ready
from pycontain._objects.buffered import BufferedOutput, Kept, empty_in_background
from pycontain._objects.exchange import (
    ByteLines,
    Exchange,
    OutputExceeded,
    TerminalInput,
    deadline_of,
    left,
    open_stream,
    shut,
    text_or_bytes,
)
from pycontain._runtime.exec import Execution, returncode_of
from pycontain._runtime.streams import decoder
from pycontain.errors import Args, StateError

if TYPE_CHECKING:
    from pycontain._cgroups.exec_cgroup import Counters
    from pycontain._model.process import Reason, Usage

_EMPTIED_WITHIN = 5.0
"""Seconds for the thread of buffered streams to see that they are at their end."""

_forgotten: collections.deque[Execution] = collections.deque()
"""Of processes that were dropped: a finalizer runs while any lock may be held, so it takes none."""


def check_text(encoding: str, errors: str) -> None:
    """Raise LookupError for what io.TextIOWrapper does not take, some of it late."""
    io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors).close()
    codecs.lookup_error(errors)


def check_terminal(rows: int, columns: int) -> None:
    """Raise ValueError for a size that no terminal can have."""
    for number in (rows, columns):
        if not 1 <= operator.index(number) <= 0xFFFF:
            raise ValueError(f"rows and columns must be between 1 and 65535, got {number}")


def signal_number(number: int) -> int:
    """The number as kill(2) takes it.  Raises ValueError where there is no such signal."""
    if not 0 <= operator.index(number) < signal.NSIG:
        raise ValueError(f"signal must be a signal number, got {number}")
    return int(number)


def deliver(execution: Execution, number: int) -> None:
    """Send a signal to a command; nothing where its container ended."""
    with contextlib.suppress(StateError, BrokenPipeError, ConnectionResetError):
        execution.signal(number)


def abandon(execution: Execution) -> None:
    """End a command that an exception came between, and let go of it."""
    if not execution.ended:
        try:
            execution.kill()
        finally:
            execution.finish()


def hear_started(execution: Execution) -> tuple[int, int]:
    """Wait until the command is executed; its pid, and its terminal or -1.

    Raises what its start failed with, StateError when the container ended before; it is over then.
    """
    terminal = told = -1
    try:
        record = native.receive(execution.channel)
        if record is not None and record.kind == RecordKind.OPENED:
            terminal = record.fd
            record = native.receive(execution.channel)
        if record is not None and record.kind == RecordKind.STARTED:
            pid, told = record.value, record.fd
            if (record := native.receive(told)) is None:
                return pid, terminal
        from pycontain._runtime.exec_errors import start_failure

        failure = record and start_failure(execution.command, record)
        # Its exec_cgroup is empty, and as good as new for the next, when the agent has reaped it.
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
        if told >= 0:
            os.close(told)


def _release_exec_cgroups() -> None:
    with contextlib.suppress(IndexError):  # another thread may take the last one
        while _forgotten:
            one = _forgotten.popleft()
            if one.exec_cgroup is not None and one.running.group is not None and not one.running.ended:
                # Not to be used again: nobody knows whether the command ended.
                one.running.group.release(one.exec_cgroup, reusable=False)


class Process:
    """A running command, with the verbs and streams of subprocess.Popen.

    stdin, stdout, stderr are file objects where PIPE or BUFFER was asked for; with `pty=True` stdin and
    stdout are both the terminal, and closing stdin sends its end-of-file character.  pid is the number
    inside the container.  After `wait`, `reason` and `usage` explain the end as on ExecResult.
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
    ) -> None:
        self.args = args
        self.returncode: int | None = None
        self.reason: Reason | None = None
        self.usage: Usage | None = None
        self.pid = 0
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self._execution = execution
        self.thread = threading.get_ident()
        self._codec = (encoding, errors) if text else None
        self._buffered = tuple(buffered)
        self._kept: list[Kept] = []
        self._emptier: threading.Thread | None = None
        self._input: TerminalInput | None = None
        self._cap = max_output
        self._timer: threading.Timer | None = None
        self._killed_for: Reason | None = None
        self._terminal = -1
        self._exchange: Exchange | None = None
        self._heard = native.ffi.new("struct pc_record_fd *")
        self._listening = threading.Lock()
        # Held by who kills and by who gives the exec cgroup back: the next command in it is not to be hit.
        self._ending = threading.RLock()
        _release_exec_cgroups()
        try:
            # First: a supervisor that has no child yet has nothing that could be killed below.
            self.pid, self._terminal = hear_started(execution)
            if text:
                check_text(encoding, errors)
            if execution.command.terminal is not None:
                check_terminal(*execution.command.terminal)
            self._open_streams(ours)
        except BaseException:
            abandon(execution)
            self.close()
            for fd in ours:
                if fd >= 0:
                    os.close(fd)
            raise
        self._whole = True
        execution.running.processes.add(self)
        if timeout is not None:
            self._timer = threading.Timer(timeout, self._kill_for, ("timeout",))
            self._timer.daemon = True
            self._timer.start()

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
            # Of its own: the container's is closed when others find it dead.
            self._emptier = empty_in_background(self._kept, self._execution.running.share_pidfd())
        self.stdin, self.stdout, self.stderr = opened

    def _open_stream(self, fd: int, number: int) -> IO[Any]:
        if number == 0 and self._terminal >= 0:
            self._input = TerminalInput(fd, "wb")
            return text_or_bytes(self._input, self._codec)
        if not self._buffered[number]:
            return open_stream(fd, number > 0, self._codec)
        kept = Kept(fd, self._cap)
        self._kept.append(kept)
        return text_or_bytes(ByteLines(BufferedOutput(kept)), self._codec)

    @property
    def dropped(self) -> int:
        """Bytes of buffered streams that were dropped, because they were not read in time."""
        return sum(one.dropped for one in self._kept)

    def _listen(self, seconds: float | None) -> None:
        """Hear the end if it comes within `seconds`."""
        if self.returncode is not None:
            return
        if self._execution.running.forgotten:  # the record of its end is for the parent
            raise StateError(f"process {self.pid} belongs to the parent of this forked process")
        channel, heard = self._execution.channel, self._heard
        # A record stands in C's memory at once: what a signal handler raises does not lose it.
        if heard.record.kind != RecordKind.EXITED:
            if not is_ready(channel, seconds):
                return
            result = native.lib.pcx_receive(channel, heard, 0)
            if result == 0:
                self._end(-signal.SIGKILL, None)
            elif result not in (1, -errno.EAGAIN, -errno.EINTR):
                native.checked(result)
        if heard.record.kind == RecordKind.EXITED:
            record = native.record_of(heard.record)
            self._end(returncode_of(record.value), record)

    def _end(self, returncode: int, record: native.Record | None) -> None:
        execution = self._execution
        with self._ending:
            counters: Counters = execution.finish()
            self.usage = execution.usage(record, counters)
            try:
                self.reason = execution.reason(returncode, counters, self.usage)
            except (OSError, StateError):  # the container ended, and tells nothing more
                self.reason = "signal" if returncode < 0 else "exit"
            if record is None and not execution.cancelled:
                self.reason = execution.running.why_ended().reason
            if self._killed_for is not None and returncode < 0:
                self.reason = self._killed_for
            if self._timer is not None:
                self._timer.cancel()
            execution.running.processes.discard(self)
            self.returncode = returncode

    def _join(self, deadline: float | None) -> bool:
        """Wait for the end; False at the deadline."""
        while self.returncode is None:
            patience = left(deadline)
            if self._listening.acquire(timeout=-1 if patience is None else patience):
                try:
                    self._listen(left(deadline))
                finally:
                    self._listening.release()
            if self.returncode is None and left(deadline) == 0:
                return False
        return True

    def poll(self) -> int | None:
        """The return code, or None while it runs, or while another thread is about to hear of its end."""
        if self.returncode is None and self._listening.acquire(blocking=False):
            try:
                self._listen(0)
            finally:
                self._listening.release()
        return self.returncode

    def wait(self, timeout: float | timedelta | None = None) -> int:
        """Wait for the end; the return code.  Raises subprocess.TimeoutExpired."""
        seconds, deadline = deadline_of(timeout)
        if not self._join(deadline):
            raise subprocess.TimeoutExpired(self.args, seconds)
        assert self.returncode is not None
        return self.returncode

    def communicate(
        self, input: str | bytes | None = None, timeout: float | timedelta | None = None
    ) -> tuple[Any, Any]:
        """Send input, read both streams to their end, wait, and close the streams.

        Where a stream exceeds `max_output`, the command is killed with reason 'output', and its first bytes
        are returned.  Raises subprocess.TimeoutExpired with the bytes that came so far; called again it goes
        on from there, and nothing is lost.  Raises TypeError for input that is not what the streams carry.
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
            self._emptier.join(_EMPTIED_WITHIN)  # every writer is gone, and so is its work
        decode = decoder(self._codec is not None, *(self._codec or ("", "")))
        return decode(out), decode(err)

    def _encoded(self, data: str | bytes | None) -> Any:
        if data is not None and isinstance(data, str) != (self._codec is not None):
            wanted = "bytes" if self._codec is None else "str"
            raise TypeError(f"input must be {wanted}, got {type(data).__name__} (hint: see `text` of popen)")
        return data.encode(*(self._codec or ())) if isinstance(data, str) else data or b""

    def send_signal(self, number: int) -> None:
        """Send a signal to the command itself; nothing happens once it ended.  Raises ValueError."""
        checked = signal_number(number)
        if self.poll() is None:
            deliver(self._execution, checked)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL for the command and for every process that it started."""
        if self.poll() is None:
            with self._ending:
                if not self._execution.ended:
                    self._execution.kill()

    def cancel(self) -> None:
        """SIGKILL for the command and every process that it started, with reason 'cancelled'."""
        self._kill_for("cancelled")

    def _kill_for(self, reason: Reason) -> None:
        with contextlib.suppress(StateError), self._ending:
            if not self._execution.ended:
                self._killed_for = self._killed_for or reason
                self._execution.kill()

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size (TIOCSWINSZ).  Raises StateError without a terminal, ValueError."""
        check_terminal(rows, columns)
        if self._terminal < 0:
            raise StateError("the command has no open terminal", hint="start it with pty=True")
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Close our ends of the streams, which hangs a terminal up.  Idempotent."""
        if self._input is not None:
            self._input.hangs_up = True
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                shut(stream)
        self._close_terminal()

    def _close_terminal(self) -> None:
        fd, self._terminal = self._terminal, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None and not self._execution.running.forgotten:
                self.kill()
            # As Popen: a command that writes what nobody reads would not end.  A terminal's would get SIGHUP.
            if self._terminal < 0:
                self.close()
            if not self._execution.running.forgotten:
                self.wait()
        finally:
            self.close()

    def __del__(self) -> None:
        # The streams may be in use without this object, and close themselves.
        if not self._whole:
            return
        execution = self._execution
        self._close_terminal()
        if not execution.ended:
            execution.ended = True
            os.close(execution.channel)
            if not execution.running.ended:  # nor forgotten, as in a forked child
                _forgotten.append(execution)
                text = f"process {self.pid} is still running"
                warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<Process pid={self.pid} returncode={self.returncode} args={self.args!r}>"
