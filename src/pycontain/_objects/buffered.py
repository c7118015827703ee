"""Buffered output of a command: a thread reads it into bounded memory, so the command never blocks."""

from __future__ import annotations

import array
import collections
import contextlib
import fcntl
import io
import os
import termios
import threading
import time
from typing import Any

from pycontain._kernel.waiting import IN, ready

_CHUNK = 65536
_SMALL = 4096
"""Size in bytes below which the next chunk is appended to a chunk."""
_PAUSE = 0.002
"""Seconds between two discarded chunks, to limit the processor time for commands with much output."""


class StreamBuffer:
    """Unread bytes of one stream, at most `limit`; the oldest are dropped first.

    Args:
        fd: Our end of the pipe, which the reader thread closes.
        limit: Maximum number of bytes, or None.
    """

    def __init__(self, fd: int, limit: int | None) -> None:
        self.fd = fd
        self.dropped = 0
        self.claimed = False
        self.closed = False
        self.discarding = False
        self.over = False
        self._limit = limit
        self._chunks: collections.deque[bytes] = collections.deque()
        self._size = 0
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        os.set_blocking(fd, False)

    @property
    def wanted(self) -> bool:
        """Whether the reader thread should continue to read."""
        return not (self.claimed or self.closed)

    def fetch(self) -> bool:
        """Read available bytes; return False at the end.  Called by the reader thread only."""
        with self._mutex:
            if not self.wanted:
                return False
            try:
                chunk = os.read(self.fd, _CHUNK)
            except BlockingIOError:
                return True
            if chunk:
                self._keep(chunk)
            return bool(chunk)

    def _keep(self, chunk: bytes) -> None:
        if not self.discarding:
            if self._chunks and len(self._chunks[-1]) < _SMALL:
                self._chunks[-1] += chunk  # a bytes object of a single byte takes fifty
            else:
                self._chunks.append(chunk)
            self._size += len(chunk)
        else:
            self.dropped += len(chunk)
        while self._limit is not None and self._size > self._limit:
            over = self._size - self._limit
            first = self._chunks.popleft()
            if over < len(first):
                self._chunks.appendleft(first[over:])
            cut = min(over, len(first))
            self._size -= cut
            self.dropped += cut
        self._changed.notify_all()

    @property
    def full(self) -> bool:
        """Whether the next chunk causes bytes to be dropped."""
        return self.discarding or (self._limit is not None and self._size >= self._limit)

    def finish(self) -> None:
        """Close the descriptor, at the end of the stream or when another reader has taken over."""
        with self._mutex:
            fd, self.fd = self.fd, -1
            self.over = True
            self._changed.notify_all()
        if fd >= 0:
            os.close(fd)

    def take(self, most: int, *, wait: bool) -> bytes:
        """Return up to `most` bytes; b'' at the end, or if there are none and `wait` is False."""
        with self._mutex:
            while wait and not self._chunks and not self.over and not self.closed:
                self._changed.wait()
            if not self._chunks:
                return b""
            first = self._chunks.popleft()
            if len(first) > most:
                self._chunks.appendleft(first[most:])
                first = first[:most]
            self._size -= len(first)
            return first

    def claim(self) -> int:
        """Take the pipe from the reader thread; return a descriptor for the caller, or -1 at the end."""
        with self._mutex:
            self.claimed = True
            # The thread may be waiting for self.fd, so its number must not be reused yet.
            return os.dup(self.fd) if self.fd >= 0 else -1

    def close(self) -> None:
        """Stop reading, so that a later write of the command raises SIGPIPE."""
        self.closed = True
        with self._mutex:
            self._changed.notify_all()


class BufferedOutput(io.RawIOBase):
    """Raw stream over the kept bytes.

    It has no descriptor to wait for; pass PIPE to `popen` for one.  While `idle` is True it behaves as at its
    end when no bytes are kept.
    """

    def __init__(self, kept: StreamBuffer) -> None:
        self.kept = kept
        self.idle = False
        self._claimed: int | None = None
        self._dropped = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def claim(self) -> None:
        """Read from the pipe itself from now on, as `communicate` does."""
        if self._claimed is None and not self.closed:
            self._claimed = self.kept.claim()

    def fileno(self) -> int:
        """Return the descriptor of a claimed stream.

        Raises:
            io.UnsupportedOperation: The stream is not claimed.
        """
        if self._claimed is None:
            raise io.UnsupportedOperation(
                "a buffered stream has no descriptor (hint: pass stdout=PIPE to popen)"
            )
        return self._claimed

    def readinto(self, buffer: Any) -> int:
        """Copy kept bytes, waiting for some if there are none."""
        claimed = self._claimed
        data = self.kept.take(len(buffer), wait=not self.idle and claimed is None)
        if not data and claimed is not None and claimed >= 0 and not self.idle:
            return os.readv(claimed, [buffer])
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the stream.  Idempotent.

        If the caller closed it, a later write of the command raises SIGPIPE.  If it was garbage collected,
        further output is discarded, so that a server without a handle continues.
        """
        if not self.closed:
            if self._dropped:
                self.kept.discarding = True  # no lock, since finalizers run while locks are held
            else:
                self.kept.close()
            claimed, self._claimed = self._claimed, -1
            if claimed is not None and claimed >= 0:
                os.close(claimed)
        super().close()

    def _dealloc_warn(self, source: object) -> None:
        self._dropped = True


def empty_in_background(kept: list[StreamBuffer], ended: int) -> threading.Thread:
    """Start the thread that reads streams until their last writer is gone or the container has ended.

    Args:
        kept: The streams.
        ended: A pidfd of PID 1, which the thread closes.
    """
    target = threading.Thread(target=_empty, args=(tuple(kept), ended), name="pycontain-output", daemon=True)
    try:
        target.start()
    except BaseException:
        os.close(ended)
        raise
    return target


def _empty(kept: tuple[StreamBuffer, ...], ended: int) -> None:
    left = {one.fd: one for one in kept}
    try:
        while left:
            found = ready(dict.fromkeys((*left, ended), IN))
            over = ended in found
            for fd in list(left) if over else found:
                one = left[fd]
                # A forked child of the caller may hold a pipe open, so the end of PID 1 ends all streams.
                while (alive := one.fetch()) and over and _has_data(fd):
                    continue
                if over or not alive:
                    one.finish()
                    del left[fd]
            if any(one.full for one in left.values()):
                time.sleep(_PAUSE)
    finally:
        for one in left.values():
            one.finish()
        with contextlib.suppress(OSError):
            os.close(ended)


def _has_data(fd: int) -> bool:
    with contextlib.suppress(OSError):
        there = array.array("i", [0])
        fcntl.ioctl(fd, termios.FIONREAD, there)
        return there[0] > 0
    return False
