"""Faults injected into a network: partitions, delay, loss and limited rates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from pycontain._model.sizes import parse_duration, shown
from pycontain.errors import NotFound, UnsupportedError

if TYPE_CHECKING:
    from pycontain._networks.network import NetworkEndpoint
    from pycontain._objects.container import Container
    from pycontain._objects.network import Network

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|g)?bit")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_LONGEST_DELAY = 600.0


class Partition:
    """Groups of containers between which no packets pass; as a context manager it is healed on exit."""

    def __init__(self, network: Network, pairs: list[tuple[NetworkEndpoint, NetworkEndpoint]]) -> None:
        self._network = network
        self._pairs = pairs
        self._healed = False

    def heal(self) -> None:
        """Remove the partition.  Idempotent."""
        if not self._healed:
            self._healed = True
            antispoof = self._network._session.network_manager.antispoof
            for one, other in self._pairs:
                antispoof.heal(one, other)

    def __enter__(self) -> Partition:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()


def _group(containers: Container | Iterable[Container]) -> list[Container]:
    return list(containers) if isinstance(containers, Iterable) else [containers]


def _endpoint(network: Network, container: Container) -> NetworkEndpoint:
    found = network._bridge.endpoints.get(container.id)
    if found is None:
        raise NotFound(f"container {container.name} is not on the network {network.name}")
    return found


def partition(
    network: Network, one: Container | Iterable[Container], other: Container | Iterable[Container]
) -> Partition:
    """Implement `Network.partition`."""
    ones, others = _group(one), _group(other)
    both = {container.id for container in ones} & {container.id for container in others}
    if both or not ones or not others:
        raise ValueError(
            "partition must get two groups of containers, neither empty, that have no container in common"
        )
    pairs = [(_endpoint(network, a), _endpoint(network, b)) for a in ones for b in others]
    antispoof = network._session.network_manager.antispoof
    made = Partition(network, [])
    try:
        for pair in pairs:
            antispoof.partition(*pair)
            made._pairs.append(pair)
    except BaseException:
        made.heal()
        raise
    return made


def _seconds(value: float | str | timedelta) -> float:
    if isinstance(value, str):
        match = _TIME.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"delay and jitter must be seconds or text such as '20ms', got {shown(value)}")
        seconds = float(match[1]) * _SECONDS[match[2]]
    else:
        seconds = parse_duration(value) if value else 0.0
    if not 0 <= seconds <= _LONGEST_DELAY:
        raise ValueError(
            f"delay and jitter must be between 0 and {_LONGEST_DELAY:g} seconds, got {shown(value)}"
        )
    return seconds


def _rate(value: int | str | None) -> int:
    """Return a rate in bytes per second; 0 for None."""
    if value is None:
        return 0
    if isinstance(value, str):
        match = _RATE.fullmatch(value.strip().lower())
        if match is None:
            raise ValueError(f"rate must be bits per second or text such as '10mbit', got {shown(value)}")
        bits = int(float(match[1]) * _FACTORS[match[2] or ""])
    else:
        bits = int(value)
    if bits < 8:
        raise ValueError(f"rate must be at least 8 bits per second, got {shown(value)}")
    return bits // 8


def shape(
    network: Network,
    container: Container | None,
    delay: float | str | timedelta,
    jitter: float | str | timedelta,
    loss: float,
    rate: int | str | None,
) -> None:
    """Implement `Network.shape`."""
    from pycontain._networks.wire.netem import NoNetem, Shape, apply

    if isinstance(loss, bool) or not isinstance(loss, int | float) or not 0 <= loss <= 1:
        raise ValueError(f"loss must be between 0 and 1, got {shown(loss)}")
    wanted = Shape(delay=_seconds(delay), jitter=_seconds(jitter), loss=float(loss), rate=_rate(rate))
    if wanted.jitter and not wanted.delay:
        raise ValueError("jitter must come with a delay, got delay=0")
    bridge = network._bridge
    with bridge.lock:
        endpoints = (
            [_endpoint(network, container)] if container is not None else list(bridge.endpoints.values())
        )
        try:
            for endpoint in endpoints:
                apply(bridge.netns, endpoint.port, wanted)
        except NoNetem as error:
            raise UnsupportedError(
                f"delay, loss and rate of networks: {error}", hint="load the kernel module sch_netem"
            ) from error
