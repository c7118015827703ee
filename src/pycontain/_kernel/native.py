"""Typed access to the C extension, with errors raised as OSError."""

from __future__ import annotations

import errno as errno_codes
import os
from typing import Any

from attrs import frozen

from pycontain._kernel._ffi import ffi as _ffi
from pycontain._kernel._ffi import lib as _lib
from pycontain._kernel.protocol import step_name

ffi: Any = _ffi
lib: Any = _lib


@frozen
class Record:
    """An answer of launcher or agent (struct pc_record).

    Attributes:
        kind: Of RecordKind.
        step: The control that failed, as a number of steps.h.
        errno: The error of that control, 0 without one.
        op: The operation of the plan that failed, or -1; the stage of a launcher's start.
        value: A pid or a wait status, by kind.
        flags: By kind.
        cpu_user: Microseconds.
        cpu_system: Microseconds.
        peak_rss: Bytes.
        read: Bytes read from block devices.
        written: Bytes written to block devices.
        fd: The descriptor that came with the record, or -1.
    """

    kind: int
    step: int
    errno: int
    op: int
    value: int
    flags: int
    cpu_user: int
    cpu_system: int
    peak_rss: int
    read: int
    written: int
    fd: int = -1

    @property
    def step_name(self) -> str:
        """Return the name of the failed control (steps.h)."""
        return step_name(self.step)


def checked(result: int, what: str | None = None) -> int:
    """Return the result of a native call.  Raises OSError for a negative errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def pair() -> tuple[int, int]:
    """Return a connected pair of SOCK_SEQPACKET sockets, close-on-exec.  Raises OSError."""
    ends = ffi.new("int[]", [-1, -1])
    try:
        checked(lib.pcx_pair(ends))
        return ends[0], ends[1]
    except BaseException:  # a signal handler may raise after the pair was made
        for end in ends:
            if end >= 0:
                os.close(end)
        raise


def send(socket: int, message: bytes | bytearray, fds: list[int] | tuple[int, ...] = ()) -> None:
    """Send one message with descriptors.  Raises OSError; BrokenPipeError if the other end is closed."""
    checked(lib.pcx_send(socket, ffi.from_buffer(message), len(message), fds or ffi.NULL, len(fds)))


def record_of(raw: Any, fd: int = -1) -> Record:
    """Copy a record out of memory of the extension."""
    return Record(
        raw.kind,
        raw.step,
        raw.error,
        raw.op,
        raw.value,
        raw.flags,
        raw.cpu_user,
        raw.cpu_system,
        raw.peak_rss,
        raw.read,
        raw.written,
        fd,
    )


def receive(socket: int, timeout_ms: int = -1) -> Record | None:
    """Wait for the next record; signal handlers run meanwhile and may raise.

    Args:
        socket: A SOCK_SEQPACKET socket.
        timeout_ms: Milliseconds, or -1 for no timeout.

    Returns:
        The record, or None at the end of the stream.

    Raises:
        TimeoutError: No record came in time.
        OSError: The socket failed, or the message was no record.
    """
    out = ffi.new("struct pc_record_fd *")
    while True:
        result = lib.pcx_receive(socket, out, timeout_ms)
        if result == 1:
            return record_of(out.record, out.fd)
        if result == 0:
            return None
        if result == -errno_codes.EAGAIN:
            raise TimeoutError
        if result != -errno_codes.EINTR:
            checked(result)


def receive_uninterrupted(socket: int) -> Record | None:
    """Wait as `receive` does, but raise an exception of a signal handler only after the answer.

    The next caller would otherwise receive an answer that is not its own.
    """
    out = ffi.new("struct pc_record_fd *")
    pending: BaseException | None = None
    while out.record.kind == 0:
        try:
            result = lib.pcx_receive(socket, out, -1)
            if result == 0:
                break
            if result not in (1, -errno_codes.EINTR):
                checked(result)
        except OSError:
            raise
        except BaseException as error:  # noqa: BLE001  raised below
            pending = error
    if pending is not None:
        if out.record.kind and out.fd >= 0:
            os.close(out.fd)
        raise pending
    return record_of(out.record, out.fd) if out.record.kind else None


def sealed(name: str, data: bytes) -> int:
    """Return a memfd with this content, sealed so that it can no longer change.  Raises OSError."""
    return checked(lib.pcx_sealed_memory(name.encode(), data, len(data)))
