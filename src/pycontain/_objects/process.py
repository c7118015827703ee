"""A command that runs beside its caller: Popen's verbs for a container."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from pycontain._kernel import native
from pycontain._runtime.exec import Execution, returncode_of, start_failure
from pycontain.errors import StateError

if TYPE_CHECKING:
    from pycontain._cgroups.leaf import Counters
    from pycontain._model.process import Reason, Usage


class _Terminal(io.RawIOBase):
    """The master of a terminal: EIO, which says that nobody holds the other side, is the end of the file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def readable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def readinto(self, buffer: Any) -> int:
        """As io.RawIOBase has it."""
        try:
            return os.readv(self._fd, [buffer])
        except OSError as error:
            if error.errno == errno.EIO:
                return 0
            raise

    def close(self) -> None:
        """Close the descriptor.  Idempotent."""
        if not self.closed:
            os.close(self._fd)
        super().close()


class Process:
    """A running command, with the verbs and streams of subprocess.Popen.

    stdin, stdout, stderr are file objects where PIPE was asked for; with `pty=True` stdin and
    stdout are both the terminal.  pid is the number inside the container.  After `wait`,
    `reason` and `usage` explain the end as on ExecResult.
    """

    def __init__(
        self,
        args: str | Sequence[str],
        execution: Execution,
        ours: list[int],
        *,
        text: bool,
        encoding: str,
        errors: str,
    ) -> None:
        self.args = args
        self.returncode: int | None = None
        self.reason: Reason | None = None
        self.usage: Usage | None = None
        self._execution = execution
        self._text = text
        self._lock = threading.Lock()
        self._record: native.Record | None = None
        self._terminal = -1
        self.pid = 0
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self._hear_started(ours)

        def wrap(fd: int, mode: str) -> IO[Any]:
            if self._terminal >= 0 and mode == "rb":
                binary: Any = io.BufferedReader(_Terminal(fd))
            else:
                binary = open(fd, mode, buffering=-1 if mode == "rb" or text else 0)  # noqa: SIM115
            if not text:
                return binary  # type: ignore[no-any-return]
            # Written through: a line sent to a prompt must not wait in a buffer of ours.
            return io.TextIOWrapper(
                binary, encoding=encoding, errors=errors, write_through=True, line_buffering=True
            )

        if self._terminal >= 0:
            ours = [os.dup(self._terminal), os.dup(self._terminal), -1]
        if ours[0] >= 0:
            self.stdin = wrap(ours[0], "wb")
        if ours[1] >= 0:
            self.stdout = wrap(ours[1], "rb")
        if ours[2] >= 0:
            self.stderr = wrap(ours[2], "rb")

    def _hear_started(self, ours: list[int]) -> None:
        record = native.receive(self._execution.channel)
        if record is not None and record.kind == native.STARTED:
            self.pid = record.value
            self._terminal = record.fd
            return
        self._execution.finish()
        for fd in ours:
            if fd >= 0:
                os.close(fd)
        if record is None:
            raise StateError("the container ended before the command started")
        raise start_failure(self._execution.command, record)

    def _listen(self, timeout: float | None) -> bool:
        """Wait for the exit record; False at the timeout."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._record is None:
            left = -1 if deadline is None else max(0, int((deadline - time.monotonic()) * 1000 + 0.999))
            try:
                record = native.receive(self._execution.channel, left)
            except TimeoutError:
                return False
            if record is None:
                self._end(-signal.SIGKILL, None)
                return True
            if record.kind in (native.FAILED, native.EXITED):
                self._record = record
        if self._record.kind == native.FAILED:
            self._execution.finish()
            self.returncode = 127 if self._record.errno == 2 else 126
            self.reason = "exit"
            raise start_failure(self._execution.command, self._record)
        self._end(returncode_of(self._record.value), self._record)
        return True

    def _end(self, returncode: int, record: native.Record | None) -> None:
        execution = self._execution
        counters: Counters = execution.finish()
        self.returncode = returncode
        self.usage = execution.usage(record, counters)
        self.reason = execution.reason(returncode, counters)

    def poll(self) -> int | None:
        """The return code, or None while it runs."""
        with self._lock:
            if self.returncode is None:
                self._listen(0)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the return code.  Raises subprocess.TimeoutExpired."""
        with self._lock:
            if self.returncode is None and not self._listen(timeout):
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            assert self.returncode is not None
            return self.returncode

    def communicate(self, input: str | bytes | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Send input, read both streams to their end, and wait.  Raises subprocess.TimeoutExpired."""
        results: list[Any] = [None, None]
        readers = []
        for at, stream in enumerate((self.stdout, self.stderr)):
            if stream is not None:
                readers.append(threading.Thread(target=self._drain, args=(stream, results, at), daemon=True))
                readers[-1].start()
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                if input:
                    self.stdin.write(input)
            if self._terminal < 0:
                with contextlib.suppress(BrokenPipeError):
                    self.stdin.close()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return results[0], results[1]

    def _drain(self, stream: IO[Any], results: list[Any], at: int) -> None:
        parts = []
        while chunk := stream.read(65536):
            parts.append(chunk)
        results[at] = ("" if self._text else b"").join(parts)

    def send_signal(self, number: int) -> None:
        """Send a signal to the command itself; nothing happens once it ended."""
        if self.poll() is None:
            self._execution.signal(number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL for the command and for every process that it started."""
        if self.poll() is None:
            self._execution.kill()

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size (TIOCSWINSZ).  Raises StateError without a terminal."""
        if self._terminal < 0:
            raise StateError("the command has no terminal: start it with pty=True")
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Close our ends of the streams."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self.kill()
            if self.stdin is not None and self._terminal < 0:
                with contextlib.suppress(BrokenPipeError):
                    self.stdin.close()
            self.wait()
        finally:
            self.close()

    def __repr__(self) -> str:
        return f"<Process pid={self.pid} returncode={self.returncode} args={self.args!r}>"
