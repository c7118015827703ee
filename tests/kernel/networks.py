"""Fixtures of network tests: networks, an outside host, and a check for leftovers."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest

from pycontain import Container, Engine, Network, UnsupportedError
from pycontain._networks.rootless_uplink import problems
from pycontain._networks.wire import links
from tests.support.world import World


@pytest.fixture(scope="session", autouse=True)
def _network_manager() -> None:
    """Create the objects that all networks share before the leak check counts."""
    from pycontain._objects.engine import default_engine

    try:
        first = Network("pyc-first", internal=True)
    except UnsupportedError as refused:
        pytest.skip(f"{refused.hint}")
    with first, Container(network=first):
        default_engine()._session.network_manager.relay()


@pytest.fixture(autouse=True)
def _nothing_is_left(engine: Engine) -> Iterator[None]:
    """Check that no network, interface or rule of the engine is left."""
    yield
    engine._session.warm.discard()
    assert [one.name for one in Network.list()] == []
    firewall = engine._session.network_manager.firewall
    for name in firewall.sets.keys() - {"refused", "sources", "tracking", "host", "host6"}:
        assert firewall.elements(name) == [], name
    route = engine._session.network_manager.netns.route
    assert not [one for one in links.seen_links(route.ask(links.every_link())) if _is_bridge(one, engine)]


def _is_bridge(link: links.Link, engine: Engine) -> bool:
    return link.name.startswith(links.prefix(engine._session.owner.name)) and bool(link.alias)


@pytest.fixture
def net() -> Iterator[Network]:
    """Provide an internal network, which every user may have."""
    with Network("pyc-net", internal=True) as one:
        yield one


@pytest.fixture
def outside(engine: Engine) -> Iterator[Network]:
    """Provide a network with a route outside."""
    try:
        one = Network("pyc-out")
    except UnsupportedError as refused:
        pytest.skip(f"no way out for this user: {refused.hint}")
    with one:
        yield one


def root_only(engine: Engine) -> None:
    if not engine._session.features.privileged:
        pytest.skip("the host's interfaces are root's")


def needs_way_out(engine: Engine) -> None:
    if engine._session.features.privileged or problems():
        pytest.skip("needs a rootless engine with a working uplink")


@pytest.fixture
def world(engine: Engine) -> Iterator[World]:
    """Return a host outside this machine."""
    if not engine._session.features.privileged:
        pytest.skip("the host's interfaces are root's")
    with open("/tmp/pyc-world.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # routes of the host are one for all that run at once
        made = World()
        yield made
        made.close()
