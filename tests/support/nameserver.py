"""A scripted name server, and sockets that reach it in place of the ones in resolv.conf."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

import dns.message
import dns.rrset
from attrs import frozen

_DEADLINE = 20
"""Seconds after which a test that waits is lost."""


@frozen
class Asked:
    """One query as it came."""

    wire: bytes
    stream: bool
    sender: Any

    @property
    def message(self) -> dns.message.Message:
        return dns.message.from_wire(self.wire)


Respond = Callable[["Nameserver", Asked], list[bytes]]


def records(*lines: tuple[str, str, str], ttl: int = 60) -> Respond:
    """Return a rule that answers every query with these records: name, type, value."""

    def respond(_: Nameserver, asked: Asked) -> list[bytes]:
        response = dns.message.make_response(asked.message, recursion_available=True)
        response.answer = [
            dns.rrset.from_text(f"{name}.", ttl, "IN", kind, value) for name, kind, value in lines
        ]
        return [response.to_wire(max_size=65535)]

    return respond


def silent(_: Nameserver, asked: Asked) -> list[bytes]:
    """Send no answer."""
    return []


class Nameserver:
    """A name server on 127.0.0.1, by UDP and TCP on one port."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.asked: queue.Queue[Asked] = queue.Queue()
        self.udp, self.tcp = bound("127.0.0.1")
        self.address = self.udp.getsockname()
        self._stopped = False
        self._threads = [threading.Thread(target=one) for one in (self._datagrams, self._streams)]
        for thread in self._threads:
            thread.start()

    def next(self) -> Asked:
        """Return the next query that came."""
        return self.asked.get(timeout=_DEADLINE)

    def close(self) -> None:
        self._stopped = True
        with socket.socket(type=socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self.address)
        socket.create_connection(self.address).close()
        for thread in self._threads:
            thread.join()
        self.udp.close()
        self.tcp.close()

    def _datagrams(self) -> None:
        while True:
            wire, sender = self.udp.recvfrom(65535)
            if self._stopped:
                return
            asked = Asked(wire, False, sender)
            self.asked.put(asked)
            for answer in self.respond(self, asked):
                self.udp.sendto(answer, sender)

    def _streams(self) -> None:
        while True:
            connected, sender = self.tcp.accept()
            with connected, connected.makefile("rb") as file:
                if self._stopped:
                    return
                length = int.from_bytes(file.read(2), "big")
                asked = Asked(file.read(length), True, sender)
                self.asked.put(asked)
                for answer in self.respond(self, asked):
                    connected.sendall(len(answer).to_bytes(2, "big") + answer)
                file.read()  # the client has its answer


class Routes:
    """Opens sockets that come to the test's nameservers where they connect to those of resolv.conf."""

    def __init__(self, servers: dict[str, Any]) -> None:
        self.servers = servers
        self.opened = 0

    def open_socket(self, family: int, kind: int) -> socket.socket:
        servers = self.servers
        self.opened += 1

        class Redirected(socket.socket):
            def connect(self, address: Any) -> None:
                super().connect(servers[address[0]])

        return Redirected(family, kind)


def bound(host: str) -> tuple[socket.socket, socket.socket]:
    """Return a UDP socket, and a listening TCP socket at the same port."""
    while True:
        tcp = socket.create_server((host, 0), backlog=64)
        udp = socket.socket(type=socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
            continue
        return udp, tcp
