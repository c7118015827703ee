"""Sockets in a container's network namespace, opened by the test, to check reachability without a program."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import dns.message
import dns.rcode
import dns.rdatatype

from pycontain import Container
from pycontain._kernel.netns import SocketSpec
from pycontain._networks.container_networks import RESOLVER

PORT = 7000
_PATIENCE = 5.0
_SILENCE = 0.3
"""Seconds after which nothing is taken to come any more."""


def open_in(
    container: Container, kind: int, family: int = socket.AF_INET, protocol: int = 0
) -> socket.socket:
    """Return a socket of the container's namespace."""
    running = container._live()
    netns = container._engine._session.network_manager.netns
    (fd,) = netns.within(running.pidfd, [SocketSpec(family, kind, protocol)], {})
    return socket.socket(fileno=fd)


@contextlib.contextmanager
def echo(container: Container, family: int = socket.AF_INET) -> Iterator[None]:
    """Answer TCP and UDP at PORT with the peer's address and data."""
    tcp = open_in(container, socket.SOCK_STREAM, family)
    udp = open_in(container, socket.SOCK_DGRAM, family)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind(("", PORT))
    udp.bind(("", PORT))
    tcp.listen(64)
    with answering(tcp, udp):
        yield


@contextlib.contextmanager
def answering(tcp: socket.socket, udp: socket.socket) -> Iterator[None]:
    """Answer on these two sockets, and close them at the end."""
    threads = [threading.Thread(target=_accept, args=(tcp,)), threading.Thread(target=_answer, args=(udp,))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for one in (tcp, udp):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        tcp.close()
        udp.close()


def _accept(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, peer = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_PATIENCE)
                connection.sendall(f"{peer[0]} ".encode() + connection.recv(64))


def _answer(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, peer = server.recvfrom(64)
            if not peer:
                return
            server.sendto(f"{peer[0]} ".encode() + data, peer)


def ask(connected: socket.socket, patience: float) -> str:
    """Return the answer of an echo: the source address that it saw.  Raises OSError."""
    connected.settimeout(patience)
    connected.send(b"hello")
    address, _, said = connected.recv(128).decode().partition(" ")
    assert said == "hello"
    return address


def reach(
    container: Container, address: str, *, udp: bool = False, port: int = PORT, patience: float = _PATIENCE
) -> str | None:
    """Return the container's address as an echo sees it, or None without an answer."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    with open_in(container, kind, family) as mine:
        mine.settimeout(patience)
        try:
            mine.connect((address, port))
            return ask(mine, patience)
        except OSError:
            return None


def reaches(container: Container, address: str) -> bool:
    """Return whether TCP and UDP pass."""
    return all(reach(container, address, udp=udp) is not None for udp in (False, True))


def is_cut_off(container: Container, address: str, *, port: int = PORT) -> bool:
    """Return whether neither TCP nor UDP passes within a short wait."""
    return not any(reach(container, address, udp=udp, port=port, patience=_SILENCE) for udp in (False, True))


def comes_to_reach(container: Container, address: str) -> bool:
    """Wait for `reaches`, until failed entries of the kernel's neighbour table have expired."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if reach(container, address, patience=_SILENCE) is not None:
            return reaches(container, address)
    return False


def query(container: Container, name: str, kind: str = "A", *, tcp: bool = False) -> dns.message.Message:
    """Return the name service's answer."""
    asked = dns.message.make_query(name, kind)
    with open_in(container, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as mine:
        mine.settimeout(_PATIENCE)
        mine.connect((RESOLVER, 53))
        wire = asked.to_wire()
        mine.sendall(len(wire).to_bytes(2, "big") + wire if tcp else wire)
        data = mine.recv(65535)
        while tcp and (len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big")):
            data += mine.recv(65535)
    return dns.message.from_wire(data[2:] if tcp else data)


def resolve(container: Container, name: str, kind: str = "A", *, tcp: bool = False) -> set[str] | str:
    """Return the addresses of a name, or the response code."""
    answer = query(container, name, kind, tcp=tcp)
    if answer.rcode() != dns.rcode.NOERROR:
        return dns.rcode.to_text(answer.rcode())
    wanted = dns.rdatatype.from_text(kind)
    return {item.to_text() for one in answer.answer if one.rdtype == wanted for item in one}
