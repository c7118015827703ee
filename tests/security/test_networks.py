"""N01 to N03, N05 to N07: reachability of the host, other networks and other containers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Container, Egress, Engine, Network, Security
from pycontain._networks import firewall
from tests.kernel.networks import _network_manager, _nothing_is_left, net, outside, root_only, world
from tests.kernel.test_ports import echo_here
from tests.support.inside import PORT, comes_to_reach, echo, is_cut_off, open_in, reach
from tests.support.world import World

__all__ = ["_network_manager", "_nothing_is_left", "net", "outside", "world"]

_REACH = """
import socket, sys
reached = []
for family, kind, where in (
    (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int(sys.argv[1]))),
    (socket.AF_INET, socket.SOCK_STREAM, (sys.argv[2], int(sys.argv[1]))),
    (socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80)),
    (socket.AF_INET6, socket.SOCK_STREAM, ("::1", int(sys.argv[1]))),
    (socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 80)),
):
    try:
        with socket.socket(family, kind) as one:
            one.settimeout(1)
            one.connect(where)
            reached.append(where)
    except OSError:
        pass
try:
    reached.append(socket.getaddrinfo("example.org", 80))
except socket.gaierror:
    pass
for family in (socket.AF_PACKET, socket.AF_VSOCK, 38, 44):
    try:
        socket.socket(family, socket.SOCK_RAW if family == socket.AF_PACKET else socket.SOCK_DGRAM)
        reached.append(family)
    except OSError:
        pass
print(len(reached), reached)
"""


def _own_address() -> str:
    """Return this host's address as other hosts see it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@contextlib.contextmanager
def _host_service() -> Iterator[int]:
    with socket.create_server(("0.0.0.0", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.mark.case("N01")
def test_without_a_network_nothing_is_reached() -> None:
    with _host_service() as port, Container() as one:
        output = one.exec(["python3", "-c", _REACH, str(port), _own_address()], check=True).stdout
    assert output == "0 []\n"


@pytest.mark.control("N01")
def test_on_the_hosts_network_the_host_is_reached() -> None:
    with _host_service() as port, Container(network="host") as one:
        output = one.exec(["python3", "-c", _REACH, str(port), _own_address()], check=True).stdout
    assert int(output.split()[0]) >= 2


_UNIX = """
import socket, sys
for path in (b"\\0" + sys.argv[1].encode(), sys.argv[2].encode()):
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(path)
        print("reached")
    except OSError:
        print("not")
"""


@contextlib.contextmanager
def _unix_services(directory: Path) -> Iterator[tuple[str, str]]:
    name, path = f"pyc-{os.getpid()}", str(directory / "socket")
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
        abstract.bind(b"\0" + name.encode())
        named.bind(path)
        os.chmod(path, 0o777)
        abstract.listen()
        named.listen()
        yield name, path


@pytest.mark.case("N02")
@pytest.mark.parametrize("kind", ["none", "net", "host"])
def test_sockets_of_the_host_are_out_of_reach(
    kind: str, net: Network, tmp_path: Path, engine: Engine
) -> None:
    if kind == "host" and not engine._session.features.landlock:
        pytest.skip("on the host's network only Landlock blocks abstract sockets")
    with _unix_services(tmp_path) as (name, path), Container(network=net if kind == "net" else kind) as one:
        output = one.exec(["python3", "-c", _UNIX, name, path], check=True).stdout
    assert output.split() == ["not", "not"]


@pytest.mark.control("N02")
def test_an_abstract_socket_is_reached_without_landlock(tmp_path: Path) -> None:
    weak = Security.SANDBOX.evolve(landlock=False)
    with _unix_services(tmp_path) as (name, path), Container(network="host", security=weak) as one:
        output = one.exec(["python3", "-c", _UNIX, name, path], check=True).stdout
    assert output.split() == ["reached", "not"]


def _endpoints() -> set[str]:
    """Return names of sockets on this host."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return {line.split(None, 7)[7] for line in lines if len(line.split(None, 7)) == 8}


@pytest.mark.case("N02")
def test_the_engine_has_no_endpoint_with_a_name(net: Network, tmp_path: Path) -> None:
    before = _endpoints()
    with Engine(tmp_path) as engine, Network("pyc-own", internal=True, engine=engine) as own:
        engine._session.network_manager.relay()
        with Container(network=own, engine=engine) as one:
            one.exec(["true"])
            new = {name for name in _endpoints() - before if "pyc" in name or str(tmp_path) in name}
    assert new == set()


@pytest.mark.control("N02")
def test_named_endpoint_would_be_detected(tmp_path: Path) -> None:
    before = _endpoints()
    with _unix_services(tmp_path) as (name, _):
        assert any(name in one for one in _endpoints() - before)


@contextlib.contextmanager
def _metadata(world: World) -> Iterator[str]:
    """Provide a service at the metadata address of clouds."""
    address = "169.254.169.254"
    route = ["ip", "route", "replace", f"{address}/32", "dev", world.link]
    subprocess.run(route, check=True)
    world.run("ip", "addr", "add", f"{address}/32", "dev", "eth0")
    try:
        yield address
    finally:
        subprocess.run(["ip", "route", "del", f"{address}/32", "dev", world.link], check=False)


def _host_reaches(address: str, port: int = PORT) -> bool:
    with socket.create_connection((address, port), timeout=5) as one:
        one.send(b"hello")
        return bool(one.recv(64))


@pytest.mark.xdist_group("world")
@pytest.mark.case("N03")
def test_host_and_metadata_are_out_of_reach(outside: Network, world: World) -> None:
    with (
        world.serve(),
        _metadata(world) as metadata,
        Network("pyc-in", internal=True) as inner,
        Egress.allow(f"{world.address}:7000") as egress,
        Container(network=outside) as one,
        Container(network=inner) as two,
        Container(network=egress) as three,
    ):
        assert _host_reaches(metadata)
        assert reach(one, world.address) == reach(three, world.address) == world.host
        gateways = [one_net.gateway for one_net in (outside, inner)]
        with contextlib.ExitStack() as services:
            for address in ("127.0.0.1", world.host, *gateways):
                services.enter_context(echo_here(address))
            for asking in (one, two, three):
                for address in (metadata, world.host, *gateways):
                    assert is_cut_off(asking, address), (asking.spec.network, address)
                assert reach(asking, "127.0.0.1", patience=0.3) is None
        assert is_cut_off(two, world.address)
    link = f"/proc/sys/net/ipv4/conf/{world.link}/route_localnet"
    assert Path(link).exists() is False or Path(link).read_text() == "0\n"


@pytest.mark.xdist_group("world")
@pytest.mark.control("N03")
def test_without_the_rule_metadata_is_reached(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall, "METADATA", ())
    with (
        Engine(tmp_path) as engine,
        Network("pyc-weak", host_access=True, engine=engine) as weak,
        world.serve(),
        _metadata(world) as metadata,
        Container(network=weak, engine=engine) as one,
        echo_here(weak.gateway),
    ):
        assert reach(one, metadata) is not None
        assert reach(one, weak.gateway) == one.address


def _frame(to: bytes, own: bytes, source: str, target: str, port: int) -> bytes:
    """Return a UDP datagram on Ethernet, without a checksum of its own."""
    udp = (4242).to_bytes(2, "big") + port.to_bytes(2, "big") + (13).to_bytes(2, "big") + b"\0\0" + b"spoof"
    head = bytearray(b"\x45\0" + (20 + len(udp)).to_bytes(2, "big") + b"\0\1\0\0\x40\x11\0\0")
    head += socket.inet_aton(source) + socket.inet_aton(target)
    total = sum(int.from_bytes(head[at : at + 2], "big") for at in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    head[10:12] = (0xFFFF - ((total & 0xFFFF) + (total >> 16))).to_bytes(2, "big")
    return to + own + b"\x08\x00" + bytes(head) + udp


def _spoofed(network: Network, one: Container, target: str, listen: str) -> bool:
    """Return whether a frame for `target`, sent onto the bridge, reaches the host's socket at `listen`."""
    inspected = network.inspect()
    described = inspected["containers"][one.id]  # type: ignore[index]
    own = bytes.fromhex(described["mac"].replace(":", ""))
    gateway = b"\x02\x50" + socket.inet_aton(network.gateway)
    assert one.address is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((listen, 0))
        server.settimeout(0.5)
        port = server.getsockname()[1]
        with open_in(one, socket.SOCK_RAW, socket.AF_PACKET) as raw:
            raw.bind(("eth0", 0x0800))
            raw.send(_frame(gateway, own, one.address, target, port))
        try:
            return server.recv(16) == b"spoof"
        except TimeoutError:
            return False


@pytest.mark.case("N03")
@pytest.mark.parametrize("everywhere", [False, True])
def test_loopback_is_not_spoofed(engine: Engine, everywhere: bool) -> None:
    """CVE-2020-8558: loopback of the host is unreachable even with route_localnet on all interfaces."""
    root_only(engine)
    with Network("pyc-spoof", host_access=True) as network, Container(network=network) as one:
        setting = Path(f"/proc/sys/net/ipv4/conf/{network.inspect()['link']}/route_localnet")
        assert setting.read_text() == "0\n"
        setting.write_text(str(int(everywhere)))
        assert not _spoofed(network, one, "127.0.0.1", "127.0.0.1")


@pytest.mark.control("N03")
def test_frame_arrives_without_the_guard(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root_only(engine)
    monkeypatch.setattr(firewall, "_LOOPBACK", b"\xff")
    with (
        Engine(tmp_path) as weak,
        Network("pyc-spoof", host_access=True, engine=weak) as network,
        Container(network=network, engine=weak) as one,
    ):
        assert _spoofed(network, one, network.gateway, network.gateway)
        assert not _spoofed(network, one, "127.0.0.1", "127.0.0.1")
        Path(f"/proc/sys/net/ipv4/conf/{network.inspect()['link']}/route_localnet").write_text("1")
        assert _spoofed(network, one, "127.0.0.1", "127.0.0.1")


@pytest.mark.xdist_group("world")
@pytest.mark.case("N05")
def test_published_on_loopback_is_not_for_others(outside: Network, world: World) -> None:
    with Container(network=outside, ports={PORT: ("127.0.0.1", None)}) as one, echo(one):
        assert "refused" in world.connect(world.host, one.port(PORT))
        world.run("ip", "route", "add", "127.0.0.0/8", "via", world.host, "table", "main")
        assert _host_reaches("127.0.0.1", one.port(PORT))


@pytest.mark.xdist_group("world")
@pytest.mark.control("N05")
def test_published_on_all_addresses_is(outside: Network, world: World) -> None:
    with Container(network=outside, ports={PORT: None}) as one, echo(one):
        assert world.connect(world.host, one.port(PORT)) == world.address


_FLUSH = """
import subprocess, sys
for link in (["ip", "link", "set", "lo", "up"],):
    subprocess.run(link, check=True)
from pycontain import Container, Network
from tests.support.inside import echo, is_cut_off, reach
subprocess.run(["nft", "add", "table", "inet", "stranger"], check=True)
with Network("pyc-a") as a, Network("pyc-b") as b:
    with Container(network=a) as one, Container(network=b) as two, Container(network=a) as near, echo(one):
        def output():
            own = "pycontain-" in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
            stranger = "stranger" in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
            return is_cut_off(two, one.address), reach(near, one.address) == near.address, own, stranger
        print(output())
        subprocess.run(["nft", "flush", "ruleset"], check=False)
        for tool in ("iptables", "ip6tables"):
            for table in ("filter", "nat"):
                subprocess.run([tool, "-t", table, "-F"], check=False, capture_output=True)
        print(output())
"""


@pytest.mark.case("N05")
@pytest.mark.control("N05")
def test_ruleset_flush_removes_unowned_tables(engine: Engine, tmp_path: Path) -> None:
    """Control: a foreign table is deleted, and isolation still holds."""
    root_only(engine)
    if shutil.which("nft") is None:
        pytest.skip("no nft")
    environment = {**os.environ, "PYCONTAIN_ROOT": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["unshare", "-n", sys.executable, "-c", _FLUSH]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["(True, True, True, True)", "(True, True, True, False)"], done.stderr


def _six(container: Container) -> str:
    command = ["sh", "-c", "cat /proc/net/if_inet6; grep -v ' lo$' /proc/net/ipv6_route || true"]
    return str(container.exec(command, check=True).stdout).replace(" lo\n", "")


@pytest.mark.case("N06")
def test_no_ipv6_means_none(net: Network, engine: Engine) -> None:
    with Container(network=net) as one, Container(network=net) as two:
        for container in (one, two):
            assert "eth0" not in _six(container)
            with (
                open_in(container, socket.SOCK_DGRAM, socket.AF_INET6) as probe,
                pytest.raises(OSError, match=r"\S"),
            ):
                probe.sendto(b"x", ("ff02::1%eth0", 9))
        if engine._session.features.privileged:
            listing = Path("/proc/net/if_inet6").read_text()
            described = net.inspect()
            links = [described["link"], *(one["link"] for one in described["containers"].values())]  # type: ignore[attr-defined]
            assert not [link for link in links if str(link) in listing]


@pytest.mark.control("N06")
def test_ipv6_addresses_on_request() -> None:
    with Network("pyc-six", internal=True, ipv6=True) as six, Container(network=six) as one:
        assert "eth0" in _six(one)
        with open_in(one, socket.SOCK_DGRAM, socket.AF_INET6) as probe:
            assert probe.sendto(b"x", (f"{six.subnet6}".replace("/64", "1"), 9)) == 1


def _large(container: Container, address: str) -> bool:
    """Return whether a fragmented datagram is answered."""
    with open_in(container, socket.SOCK_DGRAM) as mine:
        mine.settimeout(0.3)
        try:
            mine.connect((address, PORT + 1))
            mine.send(b"x" * 9000)
            return len(mine.recv(9000)) == 9000
        except OSError:
            return False


def _ping(container: Container, address: str) -> bool:
    with open_in(container, socket.SOCK_DGRAM, protocol=1) as mine:
        mine.settimeout(0.3)
        try:
            mine.connect((address, 0))
            mine.send(bytes([8, 0, 0, 0, 0, 0, 0, 1]))
            return mine.recv(64)[0] == 0
        except OSError:
            return False


@contextlib.contextmanager
def _large_echo(container: Container) -> Iterator[None]:
    with open_in(container, socket.SOCK_DGRAM) as server:
        server.bind(("", PORT + 1))
        server.settimeout(0.05)
        over = threading.Event()

        def answer() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    data, peer = server.recvfrom(9000)
                    server.sendto(data, peer)

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        over.set()
        thread.join()


def _every_way(asking: Container, address: str) -> list[bool]:
    return [not is_cut_off(asking, address), _large(asking, address), _ping(asking, address)]


@pytest.mark.case("N07")
@pytest.mark.control("N07")
@pytest.mark.parametrize("internal", [True, False])
def test_between_networks_there_is_no_path(engine: Engine, internal: bool, tmp_path: Path) -> None:
    """Control: within one network every way passes."""
    if not internal:
        root_only(engine)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        other_engine = enter(Engine(tmp_path)) if engine._session.features.privileged else engine
        networks = [
            enter(Network("pyc-a", internal=internal)),
            enter(Network("pyc-b", internal=internal)),
            enter(Network("pyc-c", internal=internal, engine=other_engine)),
        ]
        engines = [engine, engine, other_engine]
        listening = [
            enter(Container(network=one, engine=own)) for one, own in zip(networks, engines, strict=True)
        ]
        asking = [
            enter(Container(network=one, engine=own)) for one, own in zip(networks, engines, strict=True)
        ]
        for one in listening:
            enter(echo(one))
            enter(_large_echo(one))
        for at, one in enumerate(asking):
            for to, target in enumerate(listening):
                assert target.address is not None
                if at == to:
                    assert comes_to_reach(one, target.address)
                assert _every_way(one, target.address) == [at == to] * 3, (at, to)
