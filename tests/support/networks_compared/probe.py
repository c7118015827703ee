"""Probes from the network namespace of any process: both sides are measured by the same sockets."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator

import dns.message
import dns.rcode

from tests.support.inside import answering, ask

PORT = 7000
PATIENCE = 1.0
"""Seconds after which nothing is taken to come any more."""
_SETTLED = 10.0
NO_ANSWER, REFUSED, UNREACHABLE = "no answer", "refused", "unreachable"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def socket_in(pid: int, kind: int, family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
    """Return a socket in the namespace of a process, opened by a temporary thread."""
    made: list[socket.socket | OSError] = []

    def enter() -> None:
        try:
            with open(f"/proc/{pid}/ns/net") as there:
                if _libc.setns(there.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            made.append(socket.socket(family, kind, protocol))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    (found,) = made
    if isinstance(found, OSError):
        raise found
    return found


@contextlib.contextmanager
def echo(pid: int, *, port: int = PORT, address: str = "", family: int = socket.AF_INET) -> Iterator[None]:
    """Answer TCP and UDP there with the peer's address and data."""
    tcp = socket_in(pid, socket.SOCK_STREAM, family)
    udp = socket_in(pid, socket.SOCK_DGRAM, family)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind((address, port))
    udp.bind((address, port))
    tcp.listen(64)
    with answering(tcp, udp):
        yield


def connected(pid: int, address: str, port: int, *, udp: bool = False) -> socket.socket:
    """Connect, send and return the answer.  Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    mine = socket_in(pid, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM, family)
    try:
        mine.settimeout(PATIENCE)
        mine.connect((address, port))
    except OSError:
        mine.close()
        raise
    return mine


def reach(pid: int, address: str, port: int = PORT, *, udp: bool = False) -> str:
    """Return the address that an echo sees, or a word for the error."""
    try:
        with connected(pid, address, port, udp=udp) as mine:
            return ask(mine, PATIENCE)
    except OSError as error:
        return failure(error)


def comes_to_reach(pid: int, address: str, port: int, *, udp: bool) -> str:
    """Wait for `reach` until both addresses are usable: IPv6 first checks for duplicates (RFC 4862)."""
    deadline = time.monotonic() + _SETTLED
    while True:
        try:
            found = reach(pid, address, port, udp=udp)
        except OSError as error:
            found = f"{error}"
        if ":" in found or time.monotonic() > deadline:
            return found


def failure(error: OSError) -> str:
    """Return one word for an error."""
    if isinstance(error, TimeoutError):
        return NO_ANSWER
    if isinstance(error, ConnectionRefusedError | ConnectionResetError):
        return REFUSED
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES):
        return UNREACHABLE
    raise error


def ping(pid: int, address: str) -> str:
    """Ping by an unprivileged ICMP socket, which needs a group in net.ipv4.ping_group_range, for root too."""
    try:
        with socket_in(pid, socket.SOCK_DGRAM, protocol=socket.IPPROTO_ICMP) as mine:
            mine.settimeout(PATIENCE)
            mine.connect((address, 0))
            mine.send(b"\x08\0\0\0\0\0\0\1")
            mine.recv(64)
    except OSError as error:
        return failure(error)
    return "answers"


def query(pid: int, server: str, name: str, kind: str = "A") -> str:
    """Query a name server and return the code and the number of records of its answer."""
    asked = dns.message.make_query(name, kind)
    try:
        with connected(pid, server, 53, udp=True) as mine:
            mine.send(asked.to_wire())
            answer = dns.message.from_wire(mine.recv(65535))
    except OSError as error:
        return failure(error)
    return f"{dns.rcode.to_text(answer.rcode())}, {sum(len(one) for one in answer.answer)} records"
