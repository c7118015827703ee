"""Sockets and sysctls of another network namespace, by way of a launcher."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._kernel import native
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import RecordKind, RequestKind, structure
from pycontain.errors import StartError

if TYPE_CHECKING:
    from pycontain._kernel.launcher import Launcher

_COUNTS = structure("pc_network_request", "sockets values", without="request")
_SOCKET = structure("pc_socket", "domain type protocol backlog port address")


@frozen
class SocketSpec:
    """A socket to open, for IPv4 or netlink.

    Attributes:
        domain: Of socket(2).
        type: Of socket(2); the socket is close-on-exec in any case.
        protocol: Of socket(2).
        address: The address to bind to if there is a port.
        port: The port to bind to; 0 leaves the socket unbound.
        backlog: Of listen(2); 0 for a socket that does not listen.
    """

    domain: int
    type: int
    protocol: int = 0
    address: str = "0.0.0.0"
    port: int = 0
    backlog: int = 0

    def packed(self) -> bytes:
        """Encode as struct pc_socket."""
        return _SOCKET.pack(
            self.domain,
            self.type,
            self.protocol,
            self.backlog,
            socket.htons(self.port),
            int.from_bytes(socket.inet_aton(self.address), sys.byteorder),
        )


def open_sockets(
    launcher: Launcher, pidfd: int, wanted: Sequence[SocketSpec], settings: Mapping[str, str]
) -> list[int]:
    """Set sysctls in the network namespace of a process, then open sockets in it.

    Args:
        launcher: Enters the namespace.
        pidfd: The process, or -1 for the launcher's own namespace.
        wanted: The sockets.
        settings: `{path below /proc/sys/net: value}`; one that this kernel lacks is skipped.

    Returns:
        The descriptors, in the order of `wanted`.

    Raises:
        StartError: The kernel refused a socket or a setting.
        ConnectionError: The launcher has ended.
    """
    text = b"".join(f"{path}\0{value}\0".encode() for path, value in settings.items())
    body = b"".join([_COUNTS.pack(len(wanted), len(text)), *(one.packed() for one in wanted), text, b"\0"])
    opened: list[int] = []
    try:
        with launcher.receiving:
            launcher.receive_unanswered()
            native.send(launcher.socket, request(RequestKind.NETWORK, body), [pidfd] if pidfd >= 0 else [])
            record = _receive_all(launcher, opened)
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    if record.kind == RecordKind.FAILED:
        raise StartError(
            "the container's network namespace could not be set up",
            step=record.step_name,
            errno=record.errno,
        )
    return opened


def _receive_all(launcher: Launcher, opened: list[int]) -> native.Record:
    """Receive all answers in spite of interrupts: the next caller must not get the rest of them."""
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
            raise ConnectionResetError("the launcher has ended")
        if record.kind != RecordKind.OPENED:
            break
        opened.append(record.fd)
    if pending is not None:
        raise pending
    return record
