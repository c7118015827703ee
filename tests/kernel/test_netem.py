"""netem on an interface, where the kernel has it (the kernel of the guest has)."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from pycontain import Engine
from pycontain._networks.netns_host import NetnsHost
from pycontain._networks.wire import netem
from pycontain._networks.wire.netem import NoNetem, Shape
from tests.support.world import World


@pytest.fixture
def pair(engine: Engine) -> Iterator[tuple[NetnsHost, World]]:
    """Return an interface with a peer behind it."""
    if not engine._session.features.privileged:
        pytest.skip("the host's interfaces are root's")
    try:
        netns = NetnsHost(engine._session.launchers, rootless=False)
    except OSError:
        pytest.skip("no nfnetlink")
    world = World()
    yield netns, world
    world.close()
    netns.forget()


@contextlib.contextmanager
def _shaped(netns: NetnsHost, world: World, shape: Shape) -> Iterator[None]:
    try:
        netem.apply(netns, world.link, shape)
    except NoNetem:
        pytest.skip("the kernel needs sch_netem")
    try:
        yield
    finally:
        netem.apply(netns, world.link, Shape())


def _listing(world: World) -> str:
    command = ["tc", "qdisc", "show", "dev", world.link]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _round_trip(world: World) -> float:
    """Return the seconds until the peer answers a datagram with port unreachable."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
        mine.settimeout(1)
        mine.connect((world.address, 9))
        begun = time.monotonic()
        mine.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            mine.recv(1)
        return time.monotonic() - begun


@pytest.mark.xdist_group("world")
def test_delay_loss_and_rate(pair: tuple[NetnsHost, World]) -> None:
    netns, world = pair
    _round_trip(world)
    with _shaped(netns, world, Shape(delay=0.2)):
        assert _round_trip(world) > 0.19
    with _shaped(netns, world, Shape(delay=0.05, jitter=0.001, loss=0.25, rate=1_250_000)):
        listing = _listing(world)
        for part in ("delay 50", "1ms", "loss 25%", "rate 10Mbit"):
            assert part in listing, listing
    assert "netem" not in _listing(world)
    with _shaped(netns, world, Shape(loss=1.0)), pytest.raises(TimeoutError):
        _round_trip(world)
