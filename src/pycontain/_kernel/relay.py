"""The relay: a process that carries the connections of published ports."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import Sequence

from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import RecordKind, RelayKind, RequestKind, structure

_COMMAND = structure("pc_relay_command", "kind id protocol family address port patience scope serial")
_ANSWER = structure("pc_relay_answer", "serial error")
_GONE = "the relay has ended"


class Relay:
    """A relay for the ports of one engine: a child of a launcher, with which it ends.

    Threads may use it at the same time; their commands are served one after the other.  When the relay has
    ended, its connections are closed and every command raises ConnectionError.
    """

    def __init__(self, fd: int, pid: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._serial = 0
        self.pid = pid

    @classmethod
    def start(cls, launcher: Launcher) -> Relay:
        """Start a relay; it has dropped its rights when this returns.  Raises OSError."""
        ours, theirs = native.pair()
        try:
            with launcher.receiving:
                launcher.receive_unanswered()
                native.send(launcher.socket, request(RequestKind.RELAY), [theirs])
                record = native.receive_uninterrupted(launcher.socket)
            if record is None:
                raise ConnectionResetError("the launcher has ended")
            if record.kind != RecordKind.STARTED:
                raise OSError(record.errno, os.strerror(record.errno), "relay")
            os.close(theirs)
            theirs = -1
            relay = cls(ours, record.value)
            relay.drop(0)  # answered only after the relay has dropped its rights
            return relay
        except BaseException:
            os.close(ours)
            raise
        finally:
            if theirs >= 0:
                os.close(theirs)

    def serve(
        self,
        number: int,
        protocol: int,
        listeners: Sequence[int],
        address: str,
        port: int,
        *,
        patience: int = 0,
    ) -> None:
        """Carry the connections of listeners to an address and port, until `drop(number)`.

        Args:
            number: A number for `drop`; many listeners may have one.
            protocol: IPPROTO_TCP or IPPROTO_UDP.
            listeners: Listening TCP sockets or bound UDP sockets.  The descriptors remain the caller's; the
                sockets become non-blocking.
            address: IPv4 or IPv6; a link-local one with its zone.
            port: The port behind.
            patience: Seconds after which a silent UDP session ends; 0 is 90.

        Raises:
            OSError: A listener was refused; those before it are served.
        """
        host = ipaddress.ip_address(address)
        family, scope = socket.AF_INET, 0
        if isinstance(host, ipaddress.IPv6Address):
            family = socket.AF_INET6
            zone = host.scope_id
            scope = int(zone) if zone and zone.isdecimal() else socket.if_nametoindex(zone) if zone else 0
        where = (family, host.packed, socket.htons(port), patience, scope)
        for listener in listeners:
            self._ask(RelayKind.ADD, number, protocol, where, [listener])

    def drop(self, number: int) -> None:
        """Close the listeners of a number and their connections before this returns."""
        self._ask(RelayKind.DROP, number, 0, (0, b"", 0, 0, 0), [])

    def close(self) -> None:
        """End the relay and its connections.  Idempotent."""
        with self._lock:
            self.forget()

    def forget(self) -> None:
        """Close the descriptor only, in a forked child, where a thread that is gone may hold the lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _ask(
        self, kind: int, number: int, protocol: int, where: tuple[int, bytes, int, int, int], fds: list[int]
    ) -> None:
        family, address, port, patience, scope = where
        with self._lock:
            if self._fd < 0:
                raise ConnectionResetError(_GONE)
            # The serial separates this command's answer from one that an interrupted caller left unread.
            self._serial = serial = (self._serial + 1) & 0xFFFFFFFF
            command = _COMMAND.pack(kind, number, protocol, family, address, port, patience, scope, serial)
            native.send(self._fd, command, fds)
            errno = self._receive(serial)
        if errno:
            raise OSError(errno, os.strerror(errno), "relay")

    def _receive(self, serial: int) -> int:
        while True:
            data = os.read(self._fd, _ANSWER.size)
            if len(data) != _ANSWER.size:
                raise ConnectionResetError(_GONE)
            received, errno = _ANSWER.unpack(data)
            if received == serial:
                return int(errno)
