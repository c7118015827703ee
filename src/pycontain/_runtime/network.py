"""From a container's network options to what is done about them when it starts."""

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
    """Networks that a container is to be on, and what it publishes.  other: whose namespace it shares."""

    kind: str = NONE
    attachments: tuple[AttachSpec, ...] = ()
    ports: tuple[Published, ...] = ()
    other: str = ""
    of_host: bool = False
    """Is the namespace the host's in the end?"""
    joins_rootless_netns: bool = False
    names: NameOptions = _NO_NAMES

    def for_another(self) -> NetworkSpec:
        """The same for a copy: what one container alone can have is chosen anew."""
        attachments = tuple(
            evolve(attachment, address=None, preferred=None) for attachment in self.attachments
        )
        ports = tuple(evolve(one, port=None, preferred=None) for one in self.ports)
        return evolve(self, attachments=attachments, ports=ports)

    def kept(self, used: Sequence[AttachSpec], ports: Sequence[Published]) -> NetworkSpec:
        """Return the same with the addresses and ports that the container had, as far as they are free.

        Networks that it was connected to later are among them.
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
        """Whether this host's search domains are used: where names of the outside are looked up freely."""
        return any(not (one.bridge.options.internal or one.bridge.options.guided) for one in self.attachments)

    @property
    def in_rootless_netns(self) -> bool:
        """Is it of a plain user's networks?"""
        return self.kind == LINKED or self.joins_rootless_netns


def attach(running: Running, attachments: Sequence[AttachSpec], ports: Sequence[Published]) -> None:
    """Link a container that runs, and publish its ports; whoever started it ends it where this raises.

    Raises StartError, Conflict, StateError, UnsupportedError.
    """
    from pycontain._networks.container_networks import ContainerIdentity

    spec, session = running.spec, running.session
    # As the writer's user namespace counts them, which is the host's for root.
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
    """Let a container without a network be put on some."""
    attach(running, (), ())
