"""Networks: what containers reach each other and the world by."""

from __future__ import annotations

import builtins
import contextlib
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from types import TracebackType
from typing import TYPE_CHECKING

from attrs import field, frozen

from pycontain._model.arguments import check_flag
from pycontain._model.labels import check_name, checked_labels
from pycontain._model.sizes import shown
from pycontain._objects.image import engine_of
from pycontain.errors import Conflict, NotFound, StateError

if TYPE_CHECKING:
    from pycontain._networks.bridge import Bridge, NetworkEndpoint
    from pycontain._networks.container_networks import ContainerNetworks
    from pycontain._objects.container import Container
    from pycontain._objects.engine import Engine
    from pycontain._objects.faults import Partition
    from pycontain._runtime.session import Session

_ALIAS = re.compile(
    r"[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?(\.[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?)*"
)
_RESERVED = ("none", "host", "bridge", "default")


def aliases_of(aliases: Iterable[str]) -> tuple[str, ...]:
    """Checked aliases.  Raises ValueError for what is no name of a host, TypeError."""
    if isinstance(aliases, str):
        aliases = (aliases,)
    found = tuple(aliases)
    for one in found:
        if not isinstance(one, str) or len(one) > 253 or not _ALIAS.fullmatch(one):
            raise ValueError(f"an alias must be a host name, got {shown(one)}")
    return found


@frozen
class Endpoint:
    """A container's place on a network, as an option: `network=[Endpoint(net, aliases=['db'])]`.

    network: a `Network`, or the name of one.  aliases: further names there.  address: a fixed IPv4 one.
    """

    network: Network | str
    aliases: tuple[str, ...] = field(default=(), converter=aliases_of, kw_only=True)
    address: str | None = field(default=None, kw_only=True)


class Network:
    """A network of this engine's containers: its own subnet, names, and rules.

    name: as containers are told it; without one it is made up.  subnet: '172.22.0.0/16'; without one it
    is a /22 of 10.128.0.0/9 that nothing on this host leads to.  ipv6: True for a subnet of its own
    choice, or '2001:db8::/64'; without it no container on it has IPv6.  internal: no way out, and no
    port is published from it.  host_access: containers reach services of this host, by its addresses.
    labels: to find it by.

    On it containers reach each other by name, short id, aliases and address, and what is outside this
    host; services of the host, other networks and link-local addresses are out of reach.  It stands from
    here until `remove`, the end of a `with`, or the end of its engine.

    Raises ValueError for what is no name or subnet, Conflict for one that is in use, UnsupportedError with
    what the kernel lacks, LimitError.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        subnet: str | None = None,
        ipv6: bool | str = False,
        internal: bool = False,
        host_access: bool = False,
        labels: Mapping[str, str] | None = None,
        engine: Engine | None = None,
    ) -> None:
        check_flag("internal", internal)
        check_flag("host_access", host_access)
        if not isinstance(ipv6, str):
            check_flag("ipv6", ipv6)
        if name is not None:
            check_name(name, "a network's name")
        if name in _RESERVED:
            raise ValueError(f"network name {name!r} is reserved")
        four = None if subnet is None else _subnet(subnet, 4)
        six = _subnet(ipv6, 6) if isinstance(ipv6, str) else None
        from pycontain._networks.bridge import Options

        self._session = engine_of(engine)._session
        options = Options(
            name=name or f"net-{secrets.token_hex(6)}",
            subnet=four,  # type: ignore[arg-type]
            subnet6=six,  # type: ignore[arg-type]
            ipv6=bool(ipv6),
            internal=internal,
            host=host_access,
            labels=checked_labels(labels),
        )
        self._bridge: Bridge = self._session.network_manager.create(options)

    @classmethod
    def _of(cls, bridge: Bridge, session: Session) -> Network:
        new = cls.__new__(cls)
        new._session, new._bridge = session, bridge
        return new

    @classmethod
    def get(cls, name: str, *, engine: Engine | None = None) -> Network:
        """A network that there is; 'bridge' is the default one.  Raises NotFound."""
        session = engine_of(engine)._session
        return cls._of(session.network_manager.find(name), session)

    @classmethod
    def list(cls, *, engine: Engine | None = None) -> builtins.list[Network]:
        """Every network of this engine, by name."""
        session = engine_of(engine)._session
        return [cls._of(bridge, session) for bridge in session.bridges]

    @classmethod
    def prune(cls, *, engine: Engine | None = None) -> builtins.list[str]:
        """Remove networks without a container; the names of what is gone."""
        gone = []
        for one in cls.list(engine=engine):
            with contextlib.suppress(Conflict, NotFound):
                one.remove()
                gone.append(one.name)
        return gone

    @property
    def name(self) -> str:
        """Its name."""
        return self._bridge.name

    @property
    def subnet(self) -> str:
        """Its IPv4 subnet."""
        return str(self._bridge.addresses.subnet)

    @property
    def gateway(self) -> str:
        """The host's address on it."""
        return str(self._bridge.addresses.gateway)

    @property
    def subnet6(self) -> str | None:
        """Its IPv6 subnet, or None."""
        six = self._bridge.addresses.subnet6
        return None if six is None else str(six)

    @property
    def internal(self) -> bool:
        """Is there no way out?"""
        return self._bridge.options.internal

    @property
    def labels(self) -> Mapping[str, str]:
        """What it was labelled with."""
        return dict(self._bridge.options.labels)

    @property
    def containers(self) -> Mapping[str, str]:
        """Who is on it: container names to addresses."""
        with self._bridge.lock:
            return {one.name: str(one.address) for one in self._bridge.endpoints.values()}

    def inspect(self) -> dict[str, object]:
        """What is known of it: name, subnets, gateways, options, labels, created, link, containers."""
        bridge = self._bridge
        with bridge.lock:
            containers = {one.container: _described(one) for one in bridge.endpoints.values()}
        gateway6 = bridge.addresses.gateway6
        return {
            "name": self.name,
            "subnet": self.subnet,
            "gateway": self.gateway,
            "subnet6": self.subnet6,
            "gateway6": None if gateway6 is None else str(gateway6.ip),
            "internal": self.internal,
            "host_access": bridge.options.host,
            "labels": self.labels,
            "created": datetime.fromtimestamp(bridge.created, UTC),
            "link": bridge.link,
            "containers": containers,
        }

    def connect(self, container: Container, aliases: Iterable[str] = (), address: str | None = None) -> str:
        """Put a running container on it; its address there.

        Both find and reach each other when this returns.  Raises StateError for a container that does not
        run or has no network of its own, Conflict when it is on it or the address is taken, ValueError.
        """
        from pycontain._networks.container_networks import AttachSpec

        networks = _networks_of(container, self._session)
        return str(networks.connect(AttachSpec(self._bridge, aliases_of(aliases), address)).address)

    def disconnect(self, container: Container) -> None:
        """Take a container off it, at once.  Raises NotFound when it is not on it, StateError."""
        _networks_of(container, self._session).disconnect(self._bridge)

    def partition(
        self, one: Container | Iterable[Container], other: Container | Iterable[Container]
    ) -> Partition:
        """Let nothing pass between containers of it, until `heal` or the end of a `with`; how-to/networks.md.

        Raises NotFound for a container that is not on it, UnsupportedError.
        """
        from pycontain._objects.faults import partition

        return partition(self, one, other)

    def shape(
        self,
        container: Container | None = None,
        *,
        delay: float | str | timedelta = 0,
        jitter: float | str | timedelta = 0,
        loss: float = 0,
        rate: int | str | None = None,
    ) -> None:
        """Make the way to a container, or to all that are on it now, slow, lossy or narrow.

        delay, jitter: seconds, or '20ms'.  loss: of 1.  rate: bits per second, or '10mbit'.  Each packet to
        the container is treated so; nothing at all takes it away again.  Raises ValueError, NotFound,
        UnsupportedError without netem (tc-netem(8)).
        """
        from pycontain._objects.faults import shape

        shape(self, container, delay, jitter, loss, rate)

    def remove(self) -> None:
        """Remove it.  Raises Conflict while a container is on it, NotFound when it is gone."""
        self._session.network_manager.remove(self._bridge)

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._bridge.gone:
            self.remove()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and other._bridge is self._bridge

    def __hash__(self) -> int:
        return hash(id(self._bridge))

    def __repr__(self) -> str:
        return f"<Network {self.name} {self.subnet}>"


def _described(endpoint: NetworkEndpoint) -> dict[str, object]:
    return {
        "name": endpoint.name,
        "address": str(endpoint.address),
        "address6": None if endpoint.address6 is None else str(endpoint.address6.ip),
        "mac": endpoint.mac.hex(":"),
        "aliases": builtins.list(endpoint.aliases),
        "interface": endpoint.inner,
        "link": endpoint.port,
    }


def _networks_of(container: Container, session: Session) -> ContainerNetworks:
    """Its networks.  Raises StateError where it has none of its own, ValueError of another engine."""
    if container._session is not session:
        raise ValueError(f"container {container.name} belongs to another engine")
    return networks_of(container)


def networks_of(container: Container) -> ContainerNetworks:
    """The networks of a running container.  Raises StateError where it can have none."""
    running = container._live()
    if running.networks is None:
        kind = container.spec.network
        if kind != "none":
            raise StateError(
                f"container {container.name} has no network namespace of its own, got network={kind!r}"
            )
        from pycontain._runtime.network import attach_to_none

        attach_to_none(running)
    networks = running.networks
    assert networks is not None
    return networks


def _subnet(text: object, version: int) -> IPv4Network | IPv6Network:
    if not isinstance(text, str):
        raise TypeError(f"a subnet must be text such as '172.22.0.0/16', got {shown(text)}")
    try:
        found = ip_network(text)
    except ValueError as error:
        raise ValueError(f"a subnet must be a network with its prefix length: {error}") from error
    if found.version != version or "/" not in text:
        raise ValueError(
            f"the subnet must be an IPv{version} network with its prefix length, got {shown(text)}"
        )
    if found.is_loopback or found.is_multicast or found.is_link_local:
        raise ValueError(f"a subnet must not be loopback, multicast or link-local, got {text}")
    if version == 6 and found.prefixlen > 112:
        raise ValueError(f"an IPv6 subnet must be /112 or larger, got {text}")
    return found
