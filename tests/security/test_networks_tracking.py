"""A03: entries of one container in the conntrack table that the whole host shares."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from pycontain import Container, Engine, Network
from pycontain._kernel.netlink import attribute
from pycontain._networks import firewall
from pycontain._networks.wire import nft
from tests.kernel.networks import _network_manager, _nothing_is_left, outside, world
from tests.support.inside import open_in
from tests.support.world import World

__all__ = ["_network_manager", "_nothing_is_left", "outside", "world"]

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_SLACK = 200
"""Other connections of the host meanwhile."""


def _flood(world: World, container: Container, count: int) -> int:
    """Send datagrams to that many ports outside, and return the number of added conntrack entries."""
    before = int(_COUNT.read_text())
    with open_in(container, socket.SOCK_DGRAM) as one:
        for at in range(count):
            with contextlib.suppress(OSError):
                one.sendto(b"x", (world.address, at % 60000 + 1))
    return int(_COUNT.read_text()) - before


@pytest.mark.xdist_group("world")
@pytest.mark.case("A03")
def test_one_container_takes_a_share_of_the_tracked_connections(
    world: World, outside: Network, engine: Engine
) -> None:
    most = firewall._most_tracked()
    with Container(network=outside) as one, Container(network=outside) as other, world.serve():
        assert _flood(world, one, most + 5000) <= most + _SLACK
        with open_in(other, socket.SOCK_STREAM) as mine:
            mine.settimeout(5)
            mine.connect((world.address, 7000))
        with open_in(one, socket.SOCK_STREAM) as mine:
            mine.settimeout(5)
            with pytest.raises(OSError, match="refused"):
                mine.connect((world.address, 7000))


@pytest.mark.xdist_group("world")
@pytest.mark.control("A03")
def test_without_the_bound_a_container_takes_more(world: World, outside: Network, engine: Engine) -> None:
    most = firewall._most_tracked()
    table = engine._session.network_manager.firewall
    flush = nft._message(nft._DELRULE, nft.INET, attribute(1, table.table), attribute(2, "tracked"))
    table.do([flush])
    try:
        with Container(network=outside) as one:
            assert _flood(world, one, most + 5000) > most + _SLACK
    finally:
        table.do(firewall._Rules(table.table, table._nat, table._own, []).tracked(most))
