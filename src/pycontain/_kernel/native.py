"""The C extension, typed, with errors raised as OSError."""

from __future__ import annotations

import os
from typing import Any

from attrs import frozen

from pycontain._kernel._ffi import ffi as _ffi
from pycontain._kernel._ffi import lib as _lib

ffi: Any = _ffi
lib: Any = _lib

READY, FAILED, STARTED, EXITED, GONE, OPENED = range(1, 7)
"""Kinds of records (protocol.h)."""

SPAWN, MAPS, REMOVE, SECURITY, EXEC, SIGNAL, KILL_TREE, KILL_ALL, OPEN = range(1, 10)
"""Kinds of requests (protocol.h)."""

PREPARE, RESTACK, NETWORK, RELAY, SYS, FDS = 10, 16, 17, 18, 19, 30
"""Requests to the launcher (protocol.h)."""

DRAIN = 19
"""Request to the agent (protocol.h)."""

MEASURE = 28
"""Request to the launcher (protocol.h)."""

IN_MEMFD, AFTER = 1, 2
"""Flags of requests (protocol.h)."""

MAX_INLINE = 120 * 1024
MAX_FDS = 240
"""Descriptors in one message: the kernel's SCM_MAX_FD is 253."""

_EINTR, _EAGAIN = -4, -11


@frozen
class Record:
    """An answer of launcher or agent; times in microseconds, memory in bytes."""

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
        """The control that failed, by the name that steps.h gives it."""
        return step_name(self.step)


def step_name(step: int) -> str:
    """The name of a control in steps.h."""
    name = lib.pcx_step_name(step)
    return ffi.string(name).decode() if name else f"step {step}"


def steps() -> list[str]:
    """Every control, in the order in which they happen."""
    names: list[str] = []
    while lib.pcx_step_name(len(names)):
        names.append(step_name(len(names)))
    return names


def checked(result: int, what: str | None = None) -> int:
    """The result of a native call; raises OSError for a negative errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def pair() -> tuple[int, int]:
    """A connected pair of close-on-exec message sockets."""
    ends = ffi.new("int[]", [-1, -1])
    try:
        checked(lib.pcx_pair(ends))
        return ends[0], ends[1]
    except BaseException:  # a signal handler's, when the pair was made
        for end in ends:
            if end >= 0:
                os.close(end)
        raise


def send(socket: int, message: bytes | bytearray, fds: list[int] | tuple[int, ...] = ()) -> None:
    """Send one message with fds.  Raises OSError; BrokenPipeError where nobody listens any more."""
    checked(lib.pcx_send(socket, ffi.from_buffer(message), len(message), fds or ffi.NULL, len(fds)))


def record_of(raw: Any, fd: int = -1) -> Record:
    """A record out of C's memory."""
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
    """The next record, or None at the end of the stream; signals are served while it waits.

    Raises TimeoutError when timeout_ms passed, and what a signal handler raises.
    """
    out = ffi.new("struct pc_record_fd *")
    while True:
        result = lib.pcx_receive(socket, out, timeout_ms)
        if result == 1:
            return record_of(out.record, out.fd)
        if result == 0:
            return None
        if result == _EAGAIN:
            raise TimeoutError
        if result != _EINTR:
            checked(result)


def receive_uninterrupted(socket: int) -> Record | None:
    """As `receive`, but what a signal handler raises comes after the answer, not instead of it."""
    out = ffi.new("struct pc_record_fd *")
    pending: BaseException | None = None
    while out.record.kind == 0:
        try:
            result = lib.pcx_receive(socket, out, -1)
            if result == 0:
                break
            if result not in (1, _EINTR):
                checked(result)
        except OSError:
            raise
        except BaseException as error:  # noqa: BLE001  it is raised below
            pending = error
    if pending is not None:
        if out.record.kind and out.fd >= 0:
            os.close(out.fd)
        raise pending
    return record_of(out.record, out.fd) if out.record.kind else None


def sealed(name: str, data: bytes) -> int:
    """An fd of memory whose content can no longer change."""
    return checked(lib.pcx_sealed_memory(name.encode(), data, len(data)))
