"""The name service with threads: clients are added and dropped while it answers."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import pytest

from pycontain._networks.dns import loop, streams
from pycontain._networks.dns.service import NameService
from pycontain._networks.dns.zone import Client, Entry, Zone
from tests.support.nameserver import bound

_DEADLINE = 20


@pytest.fixture
def service(tmp_path: Path) -> Iterator[NameService]:
    service = NameService(resolv_conf=str(tmp_path / "none"))
    with contextlib.closing(service):
        yield service


def _client(zone: Zone) -> Client:
    client = Client(Entry(("own",), ("10.0.0.4",)), upstream=False)
    client.join(zone)
    return client


def _serve(service: NameService, client: Client) -> tuple[int, tuple[int, int]]:
    udp, tcp = bound("127.0.0.1")
    port = udp.getsockname()[1]
    fds = udp.detach(), tcp.detach()
    service.serve(client, *fds)
    return port, fds


def _ask(port: int) -> str:
    query = dns.message.make_query("web", "A")
    return str(dns.query.udp(query, "127.0.0.1", _DEADLINE, port, ignore_errors=True).answer[0][0])


@pytest.fixture
def zone() -> Zone:
    zone = Zone("inner")
    zone.put("1", Entry(("web",), ("10.0.0.2",)))
    return zone


def test_clients_come_and_go_while_others_are_answered(service: NameService, zone: Zone) -> None:
    """Sockets of clients are never confused, and a client that floods does not starve others."""
    flooded, _ = _serve(service, _client(zone))
    steady, _ = _serve(service, _client(zone))
    over = threading.Event()
    wire = dns.message.make_query("web", "A").to_wire()

    def flood() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", flooded))
            while not over.is_set():
                sock.send(wire)

    flooding = threading.Thread(target=flood)
    flooding.start()
    failed: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(100):
                client = _client(zone)
                port, _ = _serve(service, client)
                with socket.create_connection(("127.0.0.1", port)) as held:
                    held.sendall(b"\0")
                    assert _ask(port) == "10.0.0.2"
                    service.drop(client)
                    held.settimeout(_DEADLINE)
                    with contextlib.suppress(ConnectionError):
                        assert held.recv(1) == b""
        except BaseException as error:  # noqa: BLE001  it is asserted below
            failed.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    flooding.join()
    assert failed == []
    assert _ask(steady) == "10.0.0.2"
    assert list(service.errors) == []


def test_a_client_dropped_before_the_thread_is_ready(service: NameService, zone: Zone) -> None:
    """Sockets of a dropped client are closed at once, and the remaining clients are answered."""
    gone, stays = _client(zone), _client(zone)
    with service._lock:  # which the thread wants before it begins
        _, fds = _serve(service, gone)
        port, _ = _serve(service, stays)
        service.drop(gone)
        for fd in fds:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(fd)
    assert _ask(port) == "10.0.0.2"
    assert list(service.errors) == []


def test_unwatchable_fd_stays_with_the_caller(
    service: NameService, zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = _serve(service, _client(zone))
    assert _ask(first) == "10.0.0.2"  # the thread is there
    client = _client(zone)
    udp, tcp = bound("127.0.0.1")
    port = udp.getsockname()[1]

    def fail(self: object, *args: object) -> None:
        raise OSError(28, "no more watches")

    with monkeypatch.context() as patched:
        patched.setattr(loop.ClientState, "__init__", fail)
        with pytest.raises(OSError, match="watches"):
            service.serve(client, udp.fileno(), tcp.fileno())
    service.serve(client, udp.detach(), tcp.detach())
    assert _ask(port) == "10.0.0.2"


@pytest.mark.parametrize(("kind", "name"), [(streams.Listener, "close"), (loop.Loop, "unwatch")])
def test_a_drop_that_was_interrupted_is_done_again(
    service: NameService, zone: Zone, monkeypatch: pytest.MonkeyPatch, kind: type, name: str
) -> None:
    client = _client(zone)
    port, fds = _serve(service, client)
    assert _ask(port) == "10.0.0.2"
    done = getattr(kind, name)

    def interrupted(*args: object) -> None:
        done(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(kind, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            service.drop(client)
    service.drop(client)
    for fd in fds:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    assert list(service.errors) == []
