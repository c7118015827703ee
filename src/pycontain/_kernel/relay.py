"""The process that carries the connections of published ports, and how to tell it which."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Sequence

from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import request

_ADD, _DROP = 1, 2
_COMMAND = struct.Struct("=4I16s2sH2I")
_ANSWER = struct.Struct("=Ii")
_GONE = "the relay is gone"


class Relay:
    """A relay for the ports of one engine: a child of a launcher, with which it ends.

    Many threads may ask, one after the other.  A command raises ConnectionError once the relay is gone, and
    every connection that it carried with it.
    """

    def __init__(self, fd: int, pid: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._serial = 0
        self.pid = pid

    @classmethod
    def start(cls, launcher: Launcher) -> Relay:
        """Have one started, without rights by the time this returns.  Raises OSError."""
        ours, theirs = native.pair()
        try:
            with launcher.listening:
                launcher.hear_owed()
                native.send(launcher.socket, request(native.RELAY), [theirs])
                record = native.receive_uninterrupted(launcher.socket)
            if record is None:
                raise ConnectionResetError("the launcher is gone")
            if record.kind != native.STARTED:
                raise OSError(record.errno, os.strerror(record.errno), "relay")
            os.close(theirs)
            theirs = -1
            relay = cls(ours, record.value)
            relay.drop(0)  # it answers when it has given up what it could
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
        """Carry what comes by the listeners to the address and port, until `drop(number)`.

        listeners: fds, still the caller's to close, of TCP sockets that listen or UDP sockets that are bound;
        they no longer block.  address: IPv4 or IPv6, of a link-local one with its zone.  patience: seconds
        after which a silent UDP session ends; 0 is 90.  Raises OSError: listeners before the one that failed
        are served then.
        """
        host = ipaddress.ip_address(address)
        family, scope = socket.AF_INET, 0
        if isinstance(host, ipaddress.IPv6Address):
            family = socket.AF_INET6
            zone = host.scope_id
            scope = int(zone) if zone and zone.isdecimal() else socket.if_nametoindex(zone) if zone else 0
        where = (family, host.packed, port.to_bytes(2, "big"), patience, scope)
        for listener in listeners:
            self._ask(_ADD, number, protocol, where, [listener])

    def drop(self, number: int) -> None:
        """Close the listeners of this number and what came by them.  It is done when this returns."""
        self._ask(_DROP, number, 0, (0, b"", b"", 0, 0), [])

    def close(self) -> None:
        """End the relay and every connection that it carries.  Idempotent."""
        with self._lock:
            self.forget()

    def forget(self) -> None:
        """In a forked child: close the fd alone; a thread that the child does not have may hold the lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _ask(
        self, kind: int, number: int, protocol: int, where: tuple[int, bytes, bytes, int, int], fds: list[int]
    ) -> None:
        family, address, port, patience, scope = where
        with self._lock:
            if self._fd < 0:
                raise ConnectionResetError(_GONE)
            # An interrupt may have left an answer that nobody has read.
            self._serial = serial = (self._serial + 1) & 0xFFFFFFFF
            command = _COMMAND.pack(kind, number, protocol, family, address, port, patience, scope, serial)
            native.send(self._fd, command, fds)
            errno = self._hear(serial)
        if errno:
            raise OSError(errno, os.strerror(errno), "relay")

    def _hear(self, serial: int) -> int:
        while True:
            data = os.read(self._fd, _ANSWER.size)
            if len(data) != _ANSWER.size:
                raise ConnectionResetError(_GONE)
            heard, errno = _ANSWER.unpack(data)
            if heard == serial:
                return int(errno)
