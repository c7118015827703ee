"""Network options of a container, checked, and its connection to networks at start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from pycontain._model.names import NameOptions
from pycontain._model.ports import Published

if TYPE_CHECKING:
    from pycontain._networks.container_networks import AttachSpec
    from pycontain._runtime.running import Running

_RAW = frozenset({"NET_RAW", "NET_ADMIN"})
NONE, HOST, LINKED, JOINED = "none", "host", "linked", "joined"
"""Kinds of network namespaces: an empty one, the host's, one on networks, another container's."""

_NO_NAMES = NameOptions()


@frozen
class NetworkSpec:
    """The network options of a container.

    Attributes:
        kind: NONE, HOST, LINKED or JOINED.
        attachments: The networks, with names and address of the container on each.
        ports: Published ports.
        other: With JOINED, name or id of the container whose namespace it shares.
        of_host: Whether the namespace is the host's, its own or that of `other`.
        joins_rootless_netns: Whether `other` is on networks of a rootless engine.
        names: Hosts, nameservers and search domains.
    """

    kind: str = NONE
    attachments: tuple[AttachSpec, ...] = ()
    ports: tuple[Published, ...] = ()
    other: str = ""
    of_host: bool = False
    joins_rootless_netns: bool = False
    names: NameOptions = _NO_NAMES

    def for_another(self) -> NetworkSpec:
        """Return the spec of a copy, without addresses and host ports, which only one container can have."""
        attachments = tuple(
            evolve(attachment, address=None, preferred=None) for attachment in self.attachments
        )
        ports = tuple(evolve(one, port=None, preferred=None) for one in self.ports)
        return evolve(self, attachments=attachments, ports=ports)

    def kept(self, used: Sequence[AttachSpec], ports: Sequence[Published]) -> NetworkSpec:
        """Return the spec of the next start, which prefers the addresses and ports of the last one.

        Args:
            used: The networks at the end of the last start, with those that were connected later.
            ports: The ports that were published.
        """
        had = {attachment.bridge: attachment for attachment in used if not attachment.bridge.gone}
        attachments = [
            evolve(attachment, preferred=had.pop(attachment.bridge, attachment).preferred)
            for attachment in self.attachments
        ]
        bound = {(one.inner, one.protocol, one.address, one.port): one for one in ports}
        again = (bound.get((one.inner, one.protocol, one.address, one.port), one) for one in self.ports)
        return evolve(self, attachments=(*attachments, *had.values()), ports=tuple(again))

    @property
    def searches(self) -> bool:
        """Return whether the host's search domains apply: a network reaches outside without an Egress."""
        return any(
            not (one.bridge.options.internal or one.bridge.options.restricted) for one in self.attachments
        )

    @property
    def in_rootless_netns(self) -> bool:
        """Return whether the container starts in the namespace of rootless networks."""
        return self.kind == LINKED or self.joins_rootless_netns


def attach(running: Running, attachments: Sequence[AttachSpec], ports: Sequence[Published]) -> None:
    """Connect a running container to networks and publish its ports; the caller ends it after an error.

    Raises:
        StartError: The kernel refuses an interface or a rule.
        Conflict: An address or port is in use.
        StateError: The container has ended.
        UnsupportedError: This host lacks a feature.
    """
    from pycontain._networks.container_networks import ContainerIdentity

    spec, session = running.spec, running.session
    # Group ids as seen by the writer of the sysctl, whose user namespace is the host's for root.
    groups = 1 << 31 if session.features.privileged else session.sub_ids or 1
    manager = session.network_manager
    networks = running.attach(
        lambda pidfd: manager.attach(
            ContainerIdentity(
                container=spec.id,
                name=spec.name,
                hostname=spec.hostname,
                pid=running.pid,
                pidfd=pidfd,
                groups=groups,
                raw=bool(spec.security.capabilities & _RAW),
                is_shared=lambda: running.shared,
                servers=spec.network_spec.names.servers,
            )
        )
    )
    for attachment in attachments:
        networks.connect(attachment)
    if ports:
        networks.publish(ports)


def attach_to_none(running: Running) -> None:
    """Prepare a container without networks to be connected to some."""
    attach(running, (), ())
