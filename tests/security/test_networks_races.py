"""N04, N08: containers that end during connect, and namespaces that outlive them."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pycontain import Container, Endpoint, Engine, Network, PycontainError, StateError
from pycontain._kernel.netns import SocketSpec
from pycontain._networks.container_networks import ContainerNetworks
from pycontain._networks.netns_host import NetnsHost
from pycontain._networks.ports import Publisher
from tests.kernel.networks import _network_manager, _nothing_is_left, net, root_only
from tests.security.test_networks_neighbours import _grown, _settled, _state

__all__ = ["_network_manager", "_nothing_is_left", "net"]


def _within(seconds: float, what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.001)
    return False


@pytest.mark.case("N08")
def test_container_that_ends_during_connect_is_not_mistaken(
    net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of fds and processes are reused: an operation for an old owner must not hit a new one."""
    seen: list[str] = []
    enter = NetnsHost.within
    one = Container().start()
    running = one._live()
    kind = os.readlink(f"/proc/self/fd/{running.pidfd}")

    def after_its_end(
        self: NetnsHost, pidfd: int, wanted: Sequence[SocketSpec], settings: Mapping[str, str]
    ) -> list[int]:
        ending.start()
        assert _within(10, lambda: running.cleanup_job is not None and running.cleanup_job.taken)
        with contextlib.suppress(OSError):
            seen.append(os.readlink(f"/proc/self/fd/{pidfd}"))
        return enter(self, pidfd, wanted, settings)

    ending = threading.Thread(target=one.remove)
    monkeypatch.setattr(NetnsHost, "within", after_its_end)
    with pytest.raises(StateError, match="is not running"):
        net.connect(one)
    ending.join()
    assert seen == [kind]
    assert net.containers == {}


@pytest.mark.case("N08")
def test_ended_container_is_not_connected(net: Network) -> None:
    one = Container().start()
    running = one._live()
    one.remove()
    with pytest.raises(StateError, match="is not running"):
        running.attach(lambda pidfd: pytest.fail("attached"))
    with pytest.raises(StateError, match="is not running"):
        running.share_namespaces()


@pytest.mark.case("N08")
def test_an_end_that_is_interrupted_ends_the_second_time(
    net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Container(network=net).start()
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "withdraw", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.remove()
    one.remove()
    assert net.containers == {}


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.case("N08")
def test_failed_disconnect_can_be_repeated(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    with Container(network=net) as one, Network("pyc-more", internal=True) as more:
        more.connect(one)
        with monkeypatch.context() as patch:
            patch.setattr(ContainerNetworks, "_unlink", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                more.disconnect(one)
        assert set(one.addresses) == {"pyc-net", "pyc-more"}
        more.disconnect(one)
        assert set(one.addresses) == {"pyc-net"}
        assert more.containers == {}


@pytest.mark.case("N08")
def test_concurrent_connects_of_a_container_without_network(engine: Engine) -> None:
    root_only(engine)
    with contextlib.ExitStack() as stack:
        networks = [stack.enter_context(Network(f"pyc-{at}", internal=True)) for at in range(4)]
        for _ in range(5):
            with Container() as one, ThreadPoolExecutor(4) as pool:
                assert len(set(pool.map(lambda network: network.connect(one), networks))) == 4
                assert len(one.addresses) == 4
                running = one._live()
                assert running.attach(lambda pidfd: pytest.fail("again")) is running.networks
            assert not [
                attached for attached in engine._session.network_manager._containers if attached.addresses
            ]


def _lives_on(network: Network) -> str:
    """Return the interfaces of a container that shares the namespace of an ended one."""
    owner = Container(network=network).start()
    address = owner.address
    assert address is not None
    with Container(network=owner) as joined, Container(network=joined) as second:
        owner.remove()
        with Container(network=Endpoint(network, address=address)) as new:
            assert new.address == address
            devices = [who.exec(["cat", "/proc/net/dev"], check=True).stdout for who in (joined, second)]
        assert ("eth0" in devices[0]) == ("eth0" in devices[1])
        return str(devices[0])


@pytest.mark.case("N04")
def test_namespace_that_outlives_its_container_keeps_no_address(net: Network) -> None:
    assert "eth0" not in _lives_on(net)


@pytest.mark.control("N04")
def test_leftover_interface_would_be_detected(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContainerNetworks, "_unlink", ContainerNetworks._leave)
    assert "eth0" in _lives_on(net)


_THREADS, _STEPS = 4, 60
_SWAPPING = threading.Lock()


def _work(seed: int) -> None:
    networks = [Network(f"pyc-{at}", internal=True) for at in range(3)]
    containers = [Container(network=one).start() for one in networks]

    def work(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        for step in range(_STEPS):
            with contextlib.suppress(PycontainError):
                _step(chance, networks, containers, f"pyc-{number}-{step}")

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(work, range(_THREADS)):
            pass
    for one in containers:
        one.remove()
    for network in networks:
        network.remove()


@pytest.mark.case("N08")
def test_threads_in_each_others_way_leave_nothing(engine: Engine, net: Network) -> None:
    _work(0)  # as many launchers as threads want are there
    before = _settled(engine, {**_state(engine), "links": [net.inspect()["link"]]})
    for seed in (1, 2):
        _work(seed)
    assert not _grown(engine, before)


def _step(chance: random.Random, networks: list[Network], containers: list[Container], name: str) -> None:
    at, other = chance.randrange(len(containers)), chance.randrange(len(networks))
    match chance.choice(["connect", "connect", "disconnect", "new", "network"]):
        case "connect":
            networks[other].connect(containers[at], aliases=["alias"])
        case "disconnect":
            networks[other].disconnect(containers[at])
        case "new":
            new = Container(network=networks[other]).start()
            with _SWAPPING:
                old, containers[at] = containers[at], new
            old.remove()
        case "network":
            networks[other].remove()
            networks[other] = Network(name, internal=True)


@pytest.mark.case("N08")
def test_an_engine_ends_while_threads_work(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    networks = [Network(f"pyc-{at}", internal=True, engine=engine) for at in range(2)]
    ready = threading.Barrier(4)

    def work(network: Network) -> None:
        ready.wait()
        with contextlib.suppress(PycontainError):
            while True:
                with Container(network=network, engine=engine):
                    pass

    with ThreadPoolExecutor(3) as pool:
        working = [pool.submit(work, network) for network in (*networks, networks[0])]
        ready.wait()
        engine.close()
        for one in working:
            one.result()
    with Engine(tmp_path) as again:
        assert again.networks == []
