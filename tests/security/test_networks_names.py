"""L10: processor time of the caller used by queries to the name service."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import pytest

from pycontain import Container, Engine, Network
from pycontain._networks.container_networks import RESOLVER
from pycontain._networks.dns import budget
from tests.kernel.networks import _network_manager, _nothing_is_left, net
from tests.support.inside import open_in, resolve

__all__ = ["_network_manager", "_nothing_is_left", "net"]

_SILENCE = 0.5
_MANY = 200


def _answered(container: Container, name: str, kind: int, wanted: int) -> int:
    """Return how many back-to-back queries are answered before the service stops answering."""
    wire = dns.message.make_query(name, "A").to_wire()
    stream = kind == socket.SOCK_STREAM
    if stream:
        wire = len(wire).to_bytes(2, "big") + wire
    with open_in(container, kind) as mine:
        mine.settimeout(_SILENCE)
        mine.connect((RESOLVER, 53))
        for _ in range(wanted):
            mine.sendall(wire)
        count, data = 0, b""
        try:
            while count < wanted:
                came = mine.recv(65535)
                if not stream:
                    count += 1
                    continue
                data += came
                while len(data) >= 2 and len(data) >= (size := 2 + int.from_bytes(data[:2], "big")):
                    data, count = data[size:], count + 1
        except TimeoutError:
            pass
        return count


@pytest.mark.case("L10")
@pytest.mark.control("L10")
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_query_budget_delays_a_flooder(
    engine: Engine, kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client waits for its budget, others do not.  Control: without a budget it does not wait."""
    monkeypatch.setattr(budget, "SHARE", 0.0)
    monkeypatch.setattr(budget, "BURST", 0.001)
    with (
        Engine(tmp_path) as own,
        Network("pyc-own", internal=True, engine=own) as network,
        Container(network=network, engine=own) as one,
        Container(network=network, engine=own, name="pyc-other") as other,
    ):
        assert _answered(one, "pyc-other", kind, _MANY) < _MANY
        assert resolve(other, "pyc-other") == {other.address}
        monkeypatch.setattr(budget, "BURST", 3600.0)
        with Container(network=network, engine=own) as third:
            assert _answered(third, "pyc-other", kind, _MANY) == _MANY


@pytest.mark.case("L10")
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_delayed_queries_are_answered(net: Network, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "BURST", 0.002)
    with Container(network=net, name="pyc-other") as one:
        assert _answered(one, "pyc-other", kind, 150) == 150


_FLOOD = """
import socket, struct, sys
size = int(sys.argv[1])
records = b"".join(b"\\0" + struct.pack(">HHIH", at % 60000 + 300, 1, 0, 0) for at in range(size))
wire = struct.pack(">HHHHHH", 1, 0x100, 1, 0, 0, size) + b"\\1a\\0" + struct.pack(">HH", 1, 1) + records
mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
mine.setblocking(False)
print(flush=True)
while True:
    try:
        mine.sendto(wire, ("127.0.0.11", 53))
    except OSError:
        pass
"""
_CONNECT = """
import contextlib
import socket
import time
from collections.abc import Iterator
print(flush=True)
while True:
    try:
        socket.create_connection(("127.0.0.11", 53), 1)
    except OSError:
        pass
"""
_FLOODS = {"queries": (_FLOOD, "0"), "records": (_FLOOD, "5900"), "connections": (_CONNECT,)}


@contextlib.contextmanager
def _flooding(container: Container, flood: str) -> Iterator[None]:
    with container.popen(["python3", "-c", *_FLOODS[flood]]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.5)
        yield
        process.kill()


def _processor_time(engine: Engine, seconds: float) -> float:
    """Return the processor time of the name service's thread meanwhile."""
    thread = engine._session.network_manager.names._thread
    assert thread is not None
    clock = time.pthread_getcpuclockid(thread.ident or 0)
    before = time.clock_gettime(clock)
    time.sleep(seconds)
    return time.clock_gettime(clock) - before


@pytest.mark.case("A13")
@pytest.mark.parametrize("flood", list(_FLOODS))
def test_flood_of_one_container_leaves_the_others_their_names(
    engine: Engine, net: Network, flood: str
) -> None:
    with Container(network=net, name="pyc-flooder") as one, Container(network=net) as other:
        assert resolve(other, "pyc-flooder") == {one.address}
        with _flooding(one, flood):
            used = _processor_time(engine, 1.0)
            for _ in range(5):
                assert resolve(other, "pyc-flooder") == {one.address}
        print(f"\n{flood}: {used:.1%} of a processor")
        assert used < 0.5


@pytest.mark.control("A13")
def test_flood_without_a_budget_takes_a_processor(
    engine: Engine, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "BURST", 3600.0)
    with Container(network=net) as one, _flooding(one, "queries"):
        assert _processor_time(engine, 1.0) > 3 * budget.SHARE


@pytest.mark.case("A13")
def test_flooders_share_one_budget(engine: Engine, net: Network) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(_flooding(stack.enter_context(Container(network=net)), "queries"))
        used = _processor_time(engine, 1.0)
        print(f"\nfour flooders: {used:.1%} of a processor")
        assert used < 0.5
