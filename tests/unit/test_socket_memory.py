"""Memory of the sockets of a network namespace: this process's own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from pycontain._kernel import socket_memory


@pytest.fixture
def diag() -> Iterator[socket.socket]:
    """A socket of sock_diag in this namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket_memory.SOCK_DIAG) as diag:
        try:
            socket_memory.tcp(diag)
        except OSError:
            pytest.skip("this kernel has no tcp_diag")
        yield diag


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connections_that_were_not_accepted_are_seen(
    diag: socket.socket, family: socket.AddressFamily, address: str
) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((address, 0))
        except OSError:
            pytest.skip("this namespace has no such address")
        listener.listen(200)
        before, unowned = socket_memory.tcp(diag)
        clients = [socket.create_connection(listener.getsockname()[:2]) for _ in range(100)]
        for client in clients:
            client.send(b"x" * 10_000)
        after, then = socket_memory.tcp(diag)
        accepted = [listener.accept()[0] for _ in range(100)]
        _, at_last = socket_memory.tcp(diag)
        for one in (*clients, *accepted):
            one.close()
    assert then - unowned >= 100 * socket_memory.UNACCEPTED
    assert after - before >= 1_000_000
    assert at_last - unowned < 50 * socket_memory.UNACCEPTED


def test_receive_queues_are_seen_by_kind() -> None:
    countable, uncountable = socket_memory.queued(os.getpid())
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route,
    ):
        udp.bind(("127.0.0.1", 0))
        for _ in range(5):
            udp.sendto(bytes(10_000), udp.getsockname())
        route.bind((0, 0))
        for number in range(20):
            # RTM_GETLINK, as a dump: answers that are not read stay queued.
            route.send((32).to_bytes(4, "little") + b"\x12\x00\x01\x03" + bytes([number]) + bytes(23))
        more = socket_memory.queued(os.getpid())
    assert more[0] - countable >= 50_000
    assert more[1] > uncountable


def test_sockets_are_counted() -> None:
    before, _ = socket_memory.count_sockets(os.getpid())
    pairs = [socket.socketpair() for _ in range(20)]
    after, _ = socket_memory.count_sockets(os.getpid())
    for pair in pairs:
        for one in pair:
            one.close()
    assert after - before >= 40


def test_a_process_that_ended_has_no_sockets() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(OSError, match="No such file"):
        socket_memory.count_sockets(pid)
