"""Sockets and settings of a network namespace that this process is not in: asked of a launcher."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._kernel import native
from pycontain._kernel.plan import request
from pycontain.errors import StartError

if TYPE_CHECKING:
    from pycontain._kernel.launcher import Launcher

_COUNTS = struct.Struct("=II")
_SOCKET = struct.Struct("=HHHH2sH4s")


@frozen
class SocketSpec:
    """A socket as of socket(2); with a port it is bound, with a backlog it listens.  IPv4 alone."""

    domain: int
    type: int
    protocol: int = 0
    address: str = "0.0.0.0"
    port: int = 0
    backlog: int = 0

    def packed(self) -> bytes:
        """As network.h has it."""
        return _SOCKET.pack(
            self.domain,
            self.type,
            self.protocol,
            self.backlog,
            struct.pack(">H", self.port),
            0,
            socket.inet_aton(self.address),
        )


def open_sockets(
    launcher: Launcher, pidfd: int, wanted: Sequence[SocketSpec], settings: Mapping[str, str]
) -> list[int]:
    """fds of sockets in the network namespace of a process, after settings below /proc/sys/net were made.

    pidfd: the process, or -1 for the launcher's own namespace.  A setting that this kernel does not have
    is passed over.  Raises StartError; ConnectionError when the launcher is gone.
    """
    text = b"".join(f"{path}\0{value}\0".encode() for path, value in settings.items())
    body = b"".join([_COUNTS.pack(len(wanted), len(text)), *(one.packed() for one in wanted), text, b"\0"])
    opened: list[int] = []
    try:
        with launcher.listening:
            launcher.hear_owed()
            native.send(launcher.socket, request(native.NETWORK, body), [pidfd] if pidfd >= 0 else [])
            record = _hear(launcher, opened)
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    if record.kind == native.FAILED:
        raise StartError(
            "a network could not be set up from inside", step=record.step_name, errno=record.errno
        )
    return opened


def _hear(launcher: Launcher, opened: list[int]) -> native.Record:
    """All answers, whatever interrupts: the next one to ask must not hear the rest of them."""
    pending: BaseException | None = None
    while True:
        try:
            record = native.receive_uninterrupted(launcher.socket)
        except OSError:
            raise
        except BaseException as error:  # noqa: BLE001  it is raised below
            pending = error
            continue
        if record is None:
            raise ConnectionResetError("the launcher is gone")
        if record.kind != native.OPENED:
            break
        opened.append(record.fd)
    if pending is not None:
        raise pending
    return record
