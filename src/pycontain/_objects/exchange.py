"""Streams of a running command as file objects, and `communicate` over them."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import termios
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import IO, Any

from pycontain._kernel.waiting import IN, OUT, cooperative, now, ready
from pycontain._model.sizes import parse_duration
from pycontain._objects.buffered import BufferedOutput

_CHUNK = 65536
_MANY = 1000
"""Number of parts of an output at which they are joined."""
_LONGEST = 86400.0
"""Maximum seconds of a single wait, since poll(2) and locks limit them; longer waits are repeated."""

LONGEST_LINE = 1 << 24
"""Maximum bytes or characters of a line if no size is given; longer lines are split."""


def deadline_of(timeout: float | timedelta | None) -> tuple[float, float | None]:
    """Return a timeout in seconds and its deadline on CLOCK_MONOTONIC, None without a timeout."""
    if timeout is None:
        return 0.0, None
    seconds = parse_duration(timeout)
    return seconds, now() + seconds


def left(deadline: float | None) -> float | None:
    """Return the seconds until a deadline, limited to a single wait; None without one."""
    return None if deadline is None else min(max(0.0, deadline - now()), _LONGEST)


class Output(io.RawIOBase):
    """Unbuffered output of a command, from a pipe or a terminal.

    While `idle` is True it behaves as at its end, so that the buffers above it can be drained without
    blocking.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.idle = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def readinto(self, buffer: Any) -> int:
        """Read as io.RawIOBase does; EIO of a terminal without another side counts as the end."""
        try:
            if not self.idle and (wait := cooperative()) is not None:
                wait({self._fd: IN}, None)
            return 0 if self.idle else os.readv(self._fd, [buffer])
        except OSError as error:
            if error.errno == errno.EIO:
                return 0
            raise

    def close(self) -> None:
        """Close the descriptor.  Idempotent."""
        if not self.closed:
            os.close(self._fd)
        super().close()

    def _dealloc_warn(self, source: object) -> None:
        warnings.warn(f"unclosed {source!r}", ResourceWarning, source=source, stacklevel=2)


class OutputExceeded(Exception):
    """A stream exceeded the maximum output."""


class TerminalInput(io.FileIO):
    """Input side of a terminal; its end needs a character, since its descriptor also carries the output."""

    hangs_up = False

    def close(self) -> None:
        """Send the end-of-file character if the terminal is in canonical mode, and close.  Idempotent."""
        if not self.closed and not self.hangs_up:
            with contextlib.suppress(OSError, termios.error):  # the other side is gone
                self._end_input()
        super().close()

    def _end_input(self) -> None:
        settings = termios.tcgetattr(self.fileno())
        if settings[3] & termios.ICANON and ready({self.fileno(): OUT}, 0):
            # Two: after an unfinished line, the first character only submits that line.
            os.write(self.fileno(), settings[6][termios.VEOF] * 2)


class ByteLines(io.BufferedReader):
    """Buffered binary stream with a maximum line length, because a guest may never end a line."""

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the next line, of at most `LONGEST_LINE` bytes if no size is given."""
        return super().readline(LONGEST_LINE if size is None or size < 0 else size)


class TextLines(io.TextIOWrapper):
    """Text stream with a maximum line length."""

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        """Return the next line, of at most `LONGEST_LINE` characters if no size is given."""
        return super().readline(LONGEST_LINE if size < 0 else size)


def open_stream(fd: int, reading: bool, codec: tuple[str, str] | None) -> IO[Any]:
    """Return a file object over our end of a stream: text with (encoding, errors), else binary."""
    # Unbuffered or write-through, so that input for a prompt does not stay in a buffer.
    buffering = 0 if codec is None else -1
    binary: Any = ByteLines(Output(fd)) if reading else open(fd, "wb", buffering)  # noqa: SIM115
    return text_or_bytes(binary, codec)


def text_or_bytes(binary: Any, codec: tuple[str, str] | None) -> IO[Any]:
    """Return the binary stream, or a text stream over it with (encoding, errors)."""
    return binary if codec is None else TextLines(binary, *codec, None, True, True)


def close_quietly(stream: IO[Any]) -> None:
    """Close a stream and ignore errors of its other side."""
    with contextlib.suppress(OSError):  # buffered input has no reader any more
        stream.close()


def read_ahead(stream: IO[Any]) -> list[bytes]:
    """Return the bytes in the buffers of a stream, which reads of its descriptor would miss."""
    if stream.closed:
        return []
    buffered: Any = getattr(stream, "buffer", stream)
    raw: Output | BufferedOutput = buffered.raw
    if isinstance(raw, BufferedOutput):
        raw.claim()
    raw.idle = True
    try:
        held = stream.read()
    finally:
        raw.idle = False
    if isinstance(held, str):
        held = held.encode(stream.encoding, stream.errors)  # type: ignore[attr-defined]
    return [held] if held else []


class Exchange:
    """State of a `communicate`, which can be resumed without a loss after timeouts and interrupts.

    Each read or write and its bookkeeping happen in one C call, so no signal handler runs between them.
    """

    def __init__(
        self,
        stdin: IO[Any] | None,
        outputs: Iterable[IO[Any] | None],
        terminal: bool,
        data: Any,
        cap: int | None,
    ) -> None:
        self._stdin = stdin
        self._cap = cap
        self._terminal = terminal
        self._data = memoryview(data).cast("B")
        self._sent = [0]
        self._parts = {one: read_ahead(one) for one in outputs if one is not None}
        self._sizes = {one: sum(map(len, parts)) for one, parts in self._parts.items()}
        self._whole = dict.fromkeys(self._parts, 0)  # how many parts are joined ones

    def read(self, stream: IO[Any] | None) -> bytes | None:
        """Return the output of a stream so far, or None without a stream."""
        return None if stream is None else b"".join(self._parts[stream])[: self._cap]

    def run(self, deadline: float | None) -> bool:
        """Transfer data until all streams are at their end; return False at the deadline."""
        with self._open_streams() as work:
            waiting = {stream.fileno(): stream for stream in work}
            while waiting:
                wanted = {fd: IN if stream in self._parts else OUT for fd, stream in waiting.items()}
                for fd in ready(wanted, left(deadline)):
                    if work[waiting[fd]]():
                        close_quietly(waiting.pop(fd))
                if waiting and left(deadline) == 0:
                    return False
        return True

    @contextlib.contextmanager
    def _open_streams(self) -> Iterator[dict[IO[Any], Callable[[], bool]]]:
        """Yield the open streams, set to non-blocking, each with the function that transfers its data."""
        work: dict[IO[Any], Callable[[], bool]] = {}
        if self._stdin is not None and not self._stdin.closed:
            work[self._stdin] = self._feed
        for stream in self._parts:
            if not stream.closed and stream.fileno() >= 0:
                work[stream] = functools.partial(self._fetch, stream)
        try:
            for stream in work:
                os.set_blocking(stream.fileno(), False)
            yield work
        finally:
            for stream in work:
                if not stream.closed:
                    os.set_blocking(stream.fileno(), True)

    def _feed(self) -> bool:
        """Write input; return True when all is written or the reader is gone."""
        assert self._stdin is not None
        self._sent = [sum(self._sent)]
        chunk = self._data[self._sent[0] : self._sent[0] + _CHUNK]
        try:
            self._stdin.flush()
            if chunk:
                self._sent.extend(map(os.write, (self._stdin.fileno(),), (chunk,)))
        except BlockingIOError:
            # A terminal without another side accepts no input and reports no error.
            return self._terminal and all(stream.closed for stream in self._parts)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return True
        return sum(self._sent) == len(self._data)

    def _fetch(self, stream: IO[Any]) -> bool:
        """Read available output; return True at the end."""
        parts = self._parts[stream]
        try:
            parts.extend(map(os.read, (stream.fileno(),), (_CHUNK,)))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return True
        self._sizes[stream] += len(parts[-1])
        if self._cap is not None and self._sizes[stream] > self._cap:
            raise OutputExceeded
        if not parts[-1]:
            return True
        whole = self._whole[stream]
        if len(parts) - whole >= _MANY:
            # A command may write single bytes, and a bytes object takes fifty.
            parts[whole:] = [b"".join(parts[whole:])]
            self._whole[stream] = whole + 1
        return False
