"""Resolution of a container's network options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from attrs import evolve

from pycontain._model.names import GATEWAY, HOST_NAMES, NameOptions
from pycontain._model.ports import Published
from pycontain._model.sizes import shown
from pycontain._runtime.network import HOST, JOINED, LINKED, NONE, NetworkSpec
from pycontain.errors import StateError

if TYPE_CHECKING:
    from pycontain._networks.container_networks import AttachSpec
    from pycontain._objects.container import Container
    from pycontain._objects.egress import Egress
    from pycontain._objects.engine import Engine
    from pycontain._objects.network import Endpoint, Network

One: TypeAlias = "str | Network | Endpoint | Egress"
Networks: TypeAlias = "One | Container | Iterable[One]"
"""Type of the `network` option."""
_SHARED = "container:"


def network_spec_of(
    engine: Engine, network: Networks, ports: Sequence[Published], names: NameOptions
) -> tuple[NetworkSpec, str]:
    """Return the network spec of a container, and the text of its `network` option.

    Raises:
        ValueError: Options contradict each other.
        TypeError: A value has the wrong type.
        NotFound: A network or container does not exist.
        StateError: A network is removed, or a container has no network to share.
        UnsupportedError: The kernel lacks a feature.
    """
    network_spec, shown_network = _network_spec_of(engine, network, ports)
    return evolve(network_spec, names=_checked(engine, network_spec, names)), shown_network


def _checked(engine: Engine, network_spec: NetworkSpec, names: NameOptions) -> NameOptions:
    """Return the name options with the address of the host filled in.

    Raises:
        ValueError: An option would have no effect.
    """
    if network_spec.kind == NONE and (names.servers or names.search):
        raise ValueError("dns and dns_search must come with a network, got network='none'")
    if names.servers and not network_spec.of_host:
        if network_spec.kind == JOINED:
            raise ValueError(
                "dns must not be given with a shared network "
                "(hint: pass it to the container that owns the network)"
            )
        if all(attachment.bridge.options.internal for attachment in network_spec.attachments):
            raise ValueError(
                "dns must come with a network that has a route outside, got internal networks only"
            )
    hosts = names.hosts
    if network_spec.kind == HOST:
        known = {name for name, _ in hosts}
        hosts += tuple((name, "127.0.0.1") for name in HOST_NAMES if name not in known)
    if any(address == GATEWAY for _, address in hosts):
        there = _host_address(engine, network_spec)
        hosts = tuple((name, there if address == GATEWAY else address) for name, address in hosts)
    return evolve(names, hosts=hosts)


def _host_address(engine: Engine, network_spec: NetworkSpec) -> str:
    if network_spec.of_host:
        return "127.0.0.1"
    if engine._session.features.privileged:
        for attachment in network_spec.attachments:
            if attachment.bridge.options.host:
                return str(attachment.bridge.addresses.gateway)
    raise ValueError(
        "extra_hosts must not have 'host-gateway' without a network that reaches this host "
        "(hint: use Network(host_access=True) as root, or network='host')"
    )


def _network_spec_of(
    engine: Engine, network: Networks, ports: Sequence[Published]
) -> tuple[NetworkSpec, str]:
    """Return the network spec and the text of the `network` option; raise as `network_spec_of`."""
    from pycontain._objects.container import Container

    if network is None or network == "":
        raise ValueError(f"network must not be empty, got {network!r} (hint: pass 'none' for no network)")
    if isinstance(network, Container):
        network = _SHARED + network.id
    if isinstance(network, str) and network in (NONE, HOST):
        _no_ports(network, ports)
        return NetworkSpec(kind=network, of_host=network == HOST), network
    if isinstance(network, str) and network.startswith(_SHARED):
        _no_ports(network, ports)
        return _shared(engine, network.removeprefix(_SHARED)), network
    if not _is_one(network) and not isinstance(network, Iterable):
        raise TypeError(f"network must be a name, a Network, or a sequence of these, got {shown(network)}")
    several = [network] if _is_one(network) else list(network)  # type: ignore[arg-type]
    if not several:
        raise ValueError(
            "network must have at least one entry, got an empty sequence (hint: pass 'none' for no network)"
        )
    attachments = [_attach_spec(engine, one) for one in several]
    names = [attachment.bridge.name for attachment in attachments]
    if len(set(names)) < len(names):
        raise ValueError(f"network must name each network once, got {', '.join(names)}")
    if len(attachments) > 1 and any(attachment.bridge.options.restricted for attachment in attachments):
        raise ValueError("an Egress cannot be combined with other networks")
    if ports and all(attachment.bridge.options.internal for attachment in attachments):
        raise ValueError(
            "ports must come with a network that has a route outside, got only internal ones "
            f"({', '.join(names)}) (hint: {_ports_hint(engine)})"
        )
    return NetworkSpec(kind=LINKED, attachments=tuple(attachments), ports=tuple(ports)), ",".join(names)


def _ports_hint(engine: Engine) -> str:
    """Return how ports can be published on this host."""
    from pycontain._networks.rootless_uplink import problems, remedy

    problem = "" if engine._session.features.privileged else problems()
    if not problem:
        return "leave internal=True out"
    way = f"{remedy(problem)} and leave internal=True out"
    return f"{problem}: {way}, or use network='host' without ports"


def _no_ports(network: str, ports: Sequence[Published]) -> None:
    if ports:
        raise ValueError(f"ports must come with a network that can publish them, got network={network!r}")


def _is_one(network: object) -> bool:
    from pycontain._objects.egress import Egress
    from pycontain._objects.network import Endpoint, Network

    return isinstance(network, str | Network | Endpoint | Egress)


def _shared(engine: Engine, name: str) -> NetworkSpec:
    other = engine._session.registry.find(name)
    kind = other.spec.network_spec
    if kind.kind == NONE and not engine._session.features.privileged:
        raise StateError(
            f"container {other.spec.name} has no network that a rootless engine can share",
            hint="start it with an internal Network, which has no route outside",
        )
    joins_rootless_netns = kind.in_rootless_netns and not engine._session.features.privileged
    return NetworkSpec(
        kind=JOINED, other=other.spec.id, of_host=kind.of_host, joins_rootless_netns=joins_rootless_netns
    )


def _attach_spec(engine: Engine, one: object) -> AttachSpec:
    from pycontain._networks.container_networks import AttachSpec
    from pycontain._objects.egress import Egress
    from pycontain._objects.network import Endpoint, Network

    aliases: tuple[str, ...] = ()
    address: str | None = None
    if isinstance(one, Endpoint):
        aliases, address, one = one.aliases, one.address, one.network
    if isinstance(one, Egress):
        return AttachSpec(one.bridge_of(engine))
    if isinstance(one, str):
        if one in (NONE, HOST) or one.startswith(_SHARED):
            raise ValueError(f"network {one!r} cannot be combined with other networks")
        return AttachSpec(engine._session.network_manager.find(one), aliases, address)
    if not isinstance(one, Network):
        raise TypeError(f"a network must be a Network, an Endpoint, an Egress or a name, got {shown(one)}")
    if one._session is not engine._session:
        raise ValueError(f"network {one.name} belongs to another engine")
    if one._bridge.gone:
        raise StateError(f"network {one.name} is removed")
    if address is not None:
        one._bridge.addresses.check(address)
    return AttachSpec(one._bridge, aliases, address)
