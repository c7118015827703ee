"""Published ports: from this host, from outside, from containers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain import (
    Conflict,
    Container,
    Egress,
    Endpoint,
    Engine,
    Image,
    Network,
    NotFound,
    UnsupportedError,
    Volume,
)
from pycontain._objects import copyup
from pycontain._runtime.users import open_inside
from tests.kernel.networks import _network_manager, _nothing_is_left, net, outside, world
from tests.support.inside import PORT, ask, echo, is_cut_off, open_in, reach, resolve
from tests.support.world import World

__all__ = ["_network_manager", "_nothing_is_left", "net", "outside", "world"]


def _connect(address: str, port: int, *, udp: bool = False) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as mine:
        mine.settimeout(5)
        mine.connect((address, port))
        return ask(mine, 5)


def test_published_on_a_free_and_a_fixed_port(outside: Network) -> None:
    with Container(network=outside, ports={PORT: None, f"{PORT}/udp": None}) as one, echo(one):
        port = one.port(PORT)
        assert _connect("127.0.0.1", port) == outside.gateway
        assert _connect("127.0.0.1", one.port(f"{PORT}/udp"), udp=True) == outside.gateway
        if os.path.exists("/proc/net/if_inet6"):
            assert _connect("::1", port) == outside.gateway
        with pytest.raises(NotFound):
            one.port(81)
        other = Container(network=outside, ports={80: port})
        with pytest.raises(Conflict, match=str(port)):
            other.start()
        assert other.status != "running"
        other.remove()
    with Container(network=outside, ports={PORT: port}) as one, echo(one):
        assert one.port(PORT) == port
        assert _connect("127.0.0.1", port)
    with pytest.raises(ConnectionRefusedError):
        _connect("127.0.0.1", port)


def test_bound_to_one_address(outside: Network) -> None:
    with Container(network=outside, ports={PORT: ("127.0.0.2", None)}) as one, echo(one):
        assert _connect("127.0.0.2", one.port(PORT))
        with pytest.raises(ConnectionRefusedError):
            _connect("127.0.0.1", one.port(PORT))
    refused = Container(network=outside, ports={PORT: ("203.0.113.77", None)})
    with pytest.raises(ValueError, match="must be one of this host"):
        refused.start()
    refused.remove()


def test_ranges(outside: Network) -> None:
    with Container(network=outside, ports={"8000-8003": None}) as one:
        assert len({one.port(at) for at in range(8000, 8004)}) == 4


def test_ports_require_an_external_network(engine: Engine) -> None:
    with Network("pyc-in", internal=True) as inner:
        for network in ("none", "host", inner):
            with pytest.raises(ValueError, match="port"):
                Container(network=network, ports={80: None})


def test_ports_follow_the_network(outside: Network) -> None:
    with (
        Network("pyc-second") as second,
        Container(network=[outside, second], ports={PORT: None}) as one,
        echo(one),
    ):
        port = one.port(PORT)
        assert _connect("127.0.0.1", port) == outside.gateway
        outside.disconnect(one)
        assert one.port(PORT) == port
        assert _connect("127.0.0.1", port) == second.gateway


@pytest.mark.xdist_group("world")
def test_published_port_is_reachable_from_another_container(
    engine: Engine, outside: Network, world: World
) -> None:
    with (
        Network("pyc-second") as second,
        Container(network=outside, ports={PORT: None}) as one,
        Container(network=second) as other,
        Container(network=outside) as same,
        echo(one),
    ):
        assert one.address is not None
        port = one.port(PORT)
        assert is_cut_off(other, one.address)
        for asking in (other, same, one):
            assert reach(asking, world.host, port=port) is not None


@pytest.mark.xdist_group("world")
def test_from_outside(outside: Network, world: World) -> None:
    with (
        Container(network=outside, ports={PORT: None}) as one,
        Container(network=outside, ports={PORT: ("127.0.0.1", None)}) as hidden,
        echo(one),
        echo(hidden),
    ):
        assert one.address is not None
        assert world.connect(world.host, one.port(PORT)) == world.address
        assert "refused" in world.connect(world.host, hidden.port(PORT))
        world.run("ip", "route", "add", outside.subnet, "via", world.host)
        assert "timed out" in world.connect(one.address, PORT)


@pytest.mark.xdist_group("world")
def test_to_the_outside(outside: Network, world: World) -> None:
    with world.serve(), Network("pyc-in", internal=True) as inner:
        with Container(network=outside) as one, Container(network=inner) as kept:
            assert reach(one, world.address) == world.host
            assert is_cut_off(kept, world.address)
            _give_routes(kept, inner, world)
            assert is_cut_off(kept, world.address)
            assert is_cut_off(one, outside.gateway)
            with echo_here(outside.gateway):
                assert is_cut_off(one, outside.gateway)
        with (
            Network("pyc-hosted", host_access=True) as hosted,
            Container(network=hosted) as one,
            echo_here(hosted.gateway),
        ):
            assert reach(one, hosted.gateway) == one.address


def _give_routes(container: Container, network: Network, world: World) -> None:
    """Add routes in both directions, so that a missing route is not what isolates an internal network."""
    if os.geteuid() == 0:
        there = ["nsenter", "-t", str(container.pid), "-n", "ip", "route", "add", "default"]
        subprocess.run([*there, "via", network.gateway], check=True)
        assert world.run("ip", "route", "add", network.subnet, "via", world.host).returncode == 0


@contextlib.contextmanager
def echo_here(address: str) -> Iterator[None]:
    """Provide a service of this host."""
    import threading

    from tests.support.inside import _accept

    server = socket.create_server((address, PORT))
    thread = threading.Thread(target=_accept, args=(server,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


@pytest.mark.xdist_group("world")
def test_egress_allows_named_targets(engine: Engine, world: World) -> None:
    egress = Egress.allow(f"{world.address}:7000")
    with egress, world.serve(), Container(network=egress) as one, Container(network=egress) as two, echo(two):
        assert two.address is not None
        assert reach(one, world.address) == world.host
        assert is_cut_off(one, world.address, port=7001)
        assert is_cut_off(one, two.address)
        assert resolve(one, "pycontain.example") == "REFUSED"
        attempts = {(found.target, found.port, found.protocol) for found in egress.refused}
        assert {("pycontain.example", 0, "dns"), (world.address, 7001, "tcp")} <= attempts

        with open_in(one, socket.SOCK_STREAM) as kept:
            kept.settimeout(2)
            kept.connect((world.address, PORT))
            egress.revoke(f"{world.address}:7000")
            with pytest.raises((ConnectionError, TimeoutError)):
                ask(kept, 2)
        assert is_cut_off(one, world.address)
        egress.permit("203.0.113.0/24")
        assert is_cut_off(one, world.address)
        egress.permit("198.18.0.0/15")
        assert reach(one, world.address) == world.host
        with pytest.raises(ValueError, match="must be one that this Egress allows"):
            egress.revoke("10.0.0.0/8")


def _names_of_programs() -> list[str]:
    """Return the names of this user's pasta and slirp4netns processes."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                with open(f"/proc/{pid}/comm") as file:
                    found.append(file.read().strip())
    return [name for name in found if name.startswith(("pasta", "slirp4netns"))]


@pytest.mark.parametrize("program", ["pasta", "slirp4netns"])
def test_rootless_uplink(engine: Engine, program: str, tmp_path: Path) -> None:
    """The uplink reaches other hosts, obeys an Egress, and ends with its owner, killed or not."""
    beyond = os.environ.get("PYC_WORLD")
    path = shutil.which(program)
    if engine._session.features.privileged or beyond is None or path is None:
        pytest.skip("needs a rootless engine, an outside host made by root, and the program")
    (tmp_path / program).symlink_to(path)
    code = """
import os, sys
from pycontain import Container, Egress, Network
connect = "import socket, sys; s = socket.create_connection((sys.argv[1], 7000), 2); s.send(b'x'); s.recv(9)"
with Network("pyc-out") as net, Container(network=net) as one:
    print(one.exec(["python3", "-c", connect, sys.argv[1]]).returncode)
with Egress.allow(f"{sys.argv[1]}:7000") as egress, Container(network=egress) as one:
    print(one.exec(["python3", "-c", connect, sys.argv[1]]).returncode)
    egress.revoke(f"{sys.argv[1]}:7000")
    print(one.exec(["python3", "-c", connect, sys.argv[1]]).returncode, flush=True)
    os.kill(os.getpid(), 9)
"""
    before = _names_of_programs()
    done = subprocess.run(
        [sys.executable, "-c", code, beyond],
        env={**os.environ, "PATH": f"{tmp_path}:/nowhere", "PYCONTAIN_ROOT": str(tmp_path / "root")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["0", "0", "1"], done.stderr
    deadline = time.monotonic() + 10
    while _names_of_programs() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _names_of_programs() == before


def test_a_volume_is_filled_without_network(
    net: Network, root: Path, needs_idmap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helper container that fills a volume must not take the addresses and ports of the real one."""
    (root / "srv" / "content").mkdir(parents=True)
    (root / "srv" / "content" / "file").write_text("of the image")
    image, seen = Image.from_rootfs(root), []

    def spy(*args: Any) -> int:
        seen.append(net.inspect()["containers"])
        return open_inside(*args)

    monkeypatch.setattr(copyup, "open_inside", spy)
    with (
        Volume("pyc-filled") as volume,
        Container(image, network=net, volumes={"/srv/content": volume}) as one,
    ):
        assert (one.path("/srv/content") / "file").read_text() == "of the image"
        assert one.addresses
    volume.remove()
    assert seen == [{}]


def test_egress_cannot_be_combined_with_other_networks(engine: Engine) -> None:
    with Network("pyc-in", internal=True) as inner, Egress.allow("10.0.0.0/8") as egress:
        try:
            with pytest.raises(ValueError, match="cannot be combined"):
                Container(network=[egress, Endpoint(inner)])
        except UnsupportedError as refused:
            pytest.skip(f"no way out for this user: {refused.hint}")


def test_restart_and_rollback_keep_ports_and_addresses(outside: Network, net: Network) -> None:
    free = ("127.0.0.1", None)
    with Container(network=outside, ports={5432: free, "53/udp": free}) as one:
        net.connect(one, aliases=["pyc-alias"])
        snapshot = one.snapshot()
        before = one.port(5432), one.port("53/udp"), dict(one.addresses)
        assert set(one.addresses) == {outside.name, net.name}
        for again in ("rollback", "restart", "restart"):
            one.rollback(snapshot) if again == "rollback" else one.restart()
            assert (one.port(5432), one.port("53/udp"), dict(one.addresses)) == before
        one.kill()
        one.start()
        assert (one.port(5432), one.port("53/udp"), dict(one.addresses)) == before
        with one.fork()[0] as other:
            assert other.port(5432) != before[0]
            assert other.address not in before[2].values()
        snapshot.remove()


def test_port_taken_in_between_is_replaced(outside: Network) -> None:
    with Container(network=outside, ports={80: ("127.0.0.1", None)}) as one:
        port, address = one.port(80), one.address
        one.stop()
        with socket.create_server(("127.0.0.1", port)), Container(network=outside) as other:
            one.start()
            assert one.port(80) != port
            assert one.address == address != other.address
