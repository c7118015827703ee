"""Policy of a network with an `Egress`: ranges as rules, resolved names as set elements with a timeout."""

from __future__ import annotations

import contextlib
import itertools
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._kernel.netlink import Message, NetlinkError, attributes
from pycontain._model.targets import METADATA, Target, TargetIndex, is_public
from pycontain._networks.firewall import TCP, UDP
from pycontain._networks.learned import MOST_PER_ANSWER, Held, Key, Learned, RefusedNames
from pycontain._networks.wire import links, nft
from pycontain._networks.wire.nft import Element
from pycontain.errors import StateError

if TYPE_CHECKING:
    from pycontain._networks.firewall import Firewall
    from pycontain._networks.network import Bridge

_PROTOCOLS = {"tcp": (TCP,), "udp": (UDP,), "": (TCP, UDP)}
_NAMES = {TCP: "tcp", UDP: "udp", 1: "icmp"}
_KEPT = 300
"""Minimum seconds that an address stays allowed, since clients keep addresses beyond the TTL."""
_KEPT_LONGEST = 86400
"""Maximum seconds, so that the TTL of a hijacked name does not allow an address for ever."""
_FORGOTTEN = 1000
"""Timeout in milliseconds of elements that are added only to be removed, in case of an interrupt."""


@frozen
class Refused:
    """A name or an address that an egress network refused.

    Attributes:
        target: Name or address.
        port: Port number; 0 for a name and for protocols without ports.
        protocol: Protocol, or 'dns' for a name.
        count: Number of packets or queries.
    """

    target: str
    port: int
    protocol: str
    count: int


class EgressPolicy:
    """The policy of one network, which the firewall and the name service apply."""

    def __init__(self, bridge: Bridge, targets: Sequence[Target]) -> None:
        self._network = bridge
        self._bridge = bridge.link
        self._firewall: Firewall = bridge.firewall
        self._chain = ""
        self._numbers = 0
        self._targets = tuple(targets)
        self._index = TargetIndex(targets)
        self._learned = Learned()
        self._refused = RefusedNames()
        self._generation = 1
        self._cut = self._closed = False
        self._lock = threading.RLock()
        chain = self._build(self._targets)
        policies = self._firewall.sets["policies"]
        element = Element(nft.interface(self._bridge), jump=chain)
        self._firewall.do([policies.put(element), *self._marks("put", self._generation)])
        self._chain = chain

    def _marks(self, change: str, generation: int) -> list[Message]:
        """Return changes of the connection mark that this generation of the policy accepts."""
        name, mark = nft.interface(self._bridge), generation.to_bytes(4, sys.byteorder)
        sets = self._firewall.sets
        return [
            getattr(sets["current"], change)(Element(nft.key(name, mark))),
            getattr(sets["generation"], change)(Element(name, value=mark)),
        ]

    def _build(self, targets: Sequence[Target]) -> str:
        """Create a chain with the ranges, not referenced yet, in any number of transactions."""
        self._numbers += 1
        chain = f"to_{self._bridge}.{self._numbers}"
        try:
            self._firewall.do_in_parts(
                [nft.chain(self._firewall.table, chain), *self._ranges(chain, targets)]
            )
        except BaseException:
            self._discard(chain)
            raise
        return chain

    def _discard(self, chain: str) -> None:
        with contextlib.suppress(NetlinkError):
            self._firewall.do([nft.drop_chain(self._firewall.table, chain)])

    def _ranges(self, chain: str, targets: Sequence[Target]) -> Iterator[Message]:
        ranges = [one for one in targets if one.network is not None]
        for target in ranges:
            if target.is_metadata:
                yield from self._range(chain, target)
        for network in METADATA:
            yield nft.rule(self._firewall.table, chain, nft.towards(network), nft.verdict("return"))
        for target in ranges:
            if not target.is_metadata:
                yield from self._range(chain, target)

    def _range(self, chain: str, target: Target) -> Iterator[Message]:
        assert target.network is not None
        there = nft.towards(target.network)
        allow = nft.verdict("jump", "allow")
        if not target.port and not target.protocol:
            yield nft.rule(self._firewall.table, chain, there, allow)
            return
        port = nft.load("transport", 2, 2) + nft.compare(nft.port(target.port)) if target.port else b""
        for protocol in _PROTOCOLS[target.protocol]:
            kind = nft.meta("l4proto") + nft.compare(bytes([protocol]))
            yield nft.rule(self._firewall.table, chain, there, kind, port, allow)

    @property
    def targets(self) -> tuple[Target, ...]:
        """Return the allowed targets."""
        return self._targets

    @property
    def is_cut(self) -> bool:
        """Return whether all traffic is blocked, because a removal of targets failed."""
        return self._cut

    def change(self, targets: Sequence[Target]) -> None:
        """Replace the allowed targets; connections to removed ones are refused from now on.

        Raises:
            StateError: The kernel refused the change. If it was to remove targets, all traffic is blocked
                until a change succeeds; otherwise the old policy stays in force.
        """
        with self._lock:
            targets = tuple(targets)
            tightens = self._cut or bool(set(self._targets) - set(targets))
            try:
                self._replace(targets, tightens=tightens)
                if self._cut:
                    self._reopen()
            except BaseException as error:
                if tightens:
                    self._cut_off()
                if not isinstance(error, OSError):
                    raise
                raise self._failure(error, tightens=tightens) from error

    def _failure(self, error: OSError, *, tightens: bool) -> StateError:
        network = f"network {self._network.name}"
        if tightens:
            return StateError(
                f"the policy of {network} could not be tightened, so all of its traffic is blocked: {error}",
                hint="call revoke() again, or close the Egress",
            )
        return StateError(f"the policy of {network} could not be changed: {error}", hint="try again")

    def _replace(self, targets: tuple[Target, ...], *, tightens: bool) -> None:
        """Apply the targets in the kernel.

        Elements are removed first, in several transactions, each of which only allows less. Then one
        transaction of constant size switches to a new chain and a new generation of marks.
        """
        index, generation = TargetIndex(targets), self._generation
        chain = self._build(targets)
        try:
            policies, name = self._firewall.sets["policies"], nft.interface(self._bridge)
            messages = [
                policies.take(Element(name, jump=self._chain)),
                policies.put(Element(name, jump=chain)),
            ]
            if tightens:
                self._forget(self._learned.outdated(lambda one: bool(index.names(one))))
                generation += 1
                messages += self._marks("take", self._generation) + self._marks("put", generation)
            self._firewall.do(messages)
        except BaseException:
            self._discard(chain)
            raise
        old, self._chain = self._chain, chain
        self._targets, self._index, self._generation = targets, index, generation
        self._discard(old)

    def _forget(self, keys: Sequence[Key]) -> None:
        """Remove elements from the kernel's sets and from here."""
        for which in dict.fromkeys(which for which, _ in keys):
            elements = [Element(key, timeout=_FORGOTTEN) for one, key in keys if one == which]
            self._firewall.do_in_parts(self._firewall.sets[which].take_all(elements))
        for key in keys:
            self._learned.drop(key)

    def _cut_off(self) -> None:
        """Take the bridge down, so that nothing passes whatever the rules are."""
        self._cut = True
        route = self._network.netns.route
        try:
            route.do([links.lower_link(self._network.index)])
        except OSError:
            with contextlib.suppress(OSError):
                route.do([links.remove(self._bridge)])

    def _reopen(self) -> None:
        self._network.netns.route.do([links.raise_link(self._network.index, link_local=False)])
        self._cut = False

    # For the name service -------------------------------------------------------------------------------

    def of(self, container: str) -> ContainerPolicy:
        """Return the policy for one container, for the name service."""
        return ContainerPolicy(self, container)

    def allows(self, name: str) -> bool:
        """Return whether a name may be resolved."""
        return not self._cut and bool(self._index.names(name))

    def refused(self, name: str, container: str = "") -> None:
        """Record a query for a name that is not allowed."""
        with self._lock:
            self._refused.add(container, name)

    def learned(self, name: str, addresses: list[str], ttl: int, container: str = "") -> list[str]:
        """Allow the addresses of a name, before the answer is sent to the container.

        Private addresses are dropped unless a range allows them, since the owner of a name can point it
        at any address. Addresses beyond MOST_PER_ANSWER are dropped too.

        Args:
            name: The name that was resolved.
            addresses: Its addresses.
            ttl: Seconds for which the answer is valid.
            container: Id of the container that asked.

        Returns:
            The addresses that the answer may contain.
        """
        with self._lock:
            if not self.allows(name):
                return []
            allowed = list(itertools.islice(filter(self._is_allowed, addresses), MOST_PER_ANSWER))
            until = min(max(ttl, _KEPT), _KEPT_LONGEST)
            targets = self._index.names(name)
            keys = [key for one in allowed for target in targets for key in self._keys(target, one)]
            self._put(dict.fromkeys(keys), Held(name, time.monotonic() + until, container), until)
            return allowed

    def _is_allowed(self, text: str) -> bool:
        if ":" in text:
            return False
        found = IPv4Address(text)
        return is_public(found) or self._index.covers(found)

    def _keys(self, target: Target, text: str) -> Iterator[Key]:
        bridge, address = nft.interface(self._bridge), nft.address(text)
        if not is_public(IPv4Address(text)):
            return  # the rule of its range applies
        if not target.port and not target.protocol:
            yield "learned_any", nft.key(bridge, address)
            return
        for protocol in _PROTOCOLS[target.protocol]:
            key = bridge, address, protocol
            if target.port:
                yield "learned", nft.key(*key, nft.port(target.port))
            else:
                yield "learned_kind", nft.key(*key)

    def _put(self, keys: dict[Key, None], held: Held, seconds: int) -> None:
        fresh = [key for key in keys if not self._lasts(key, held, seconds)]
        messages = []
        for which in dict.fromkeys(which for which, _ in fresh):
            found = [key for one, key in fresh if one == which]
            known = [Element(key, timeout=_FORGOTTEN) for key in found if self._learned.get((which, key))]
            new = [Element(key, timeout=seconds * 1000) for key in found]
            one = self._firewall.sets[which]
            messages += one.take_all(known) + one.put_all(new)
        self._firewall.do_in_parts(messages)
        for key in fresh:
            self._learned.add(key, held)
        self._forget(list(self._learned.surplus(held.container)))

    def _lasts(self, key: Key, held: Held, seconds: int) -> bool:
        """Return whether more than half of the new timeout is left for an element."""
        known = self._learned.get(key)
        return known is not None and known.until > held.until - seconds / 2

    # Reports ----------------------------------------------------------------------------------------------

    def attempts(self) -> list[Refused]:
        """Return the refused names and addresses of the last hour, names first."""
        with self._lock:
            found = [Refused(name, 0, "dns", count) for name, count in self._refused.items()]
        return found + list(self._connections())

    def _connections(self) -> Iterator[Refused]:
        for element in self._firewall.elements("refused"):
            one = _refused(element, self._bridge)
            if one is not None:
                yield one

    def close(self) -> None:
        """Remove the kernel's rules and elements, after the bridge.  Idempotent.

        Raises:
            StateError: The kernel refused it.
        """
        with self._lock:
            if self._closed:
                return
            name = nft.interface(self._bridge)
            try:
                self._forget(list(self._learned))
                self._firewall.do(
                    [
                        self._firewall.sets["policies"].take(Element(name, jump=self._chain)),
                        *self._marks("take", self._generation),
                        nft.drop_chain(self._firewall.table, self._chain),
                    ]
                )
            except OSError as error:
                raise StateError(
                    f"rules of the removed network {self._network.name} could not be removed: {error}",
                    hint="call close() again",
                ) from error
            self._closed = True


@frozen
class ContainerPolicy:
    """The policy for one container, whose learned and refused names count towards its own bounds."""

    policy: EgressPolicy
    container: str

    def allows(self, name: str) -> bool:
        """Return whether the container may resolve a name."""
        return self.policy.allows(name)

    def learned(self, name: str, addresses: list[str], ttl: int) -> list[str]:
        """Allow the addresses of a name; see `EgressPolicy.learned`."""
        return self.policy.learned(name, addresses, ttl, self.container)

    def refused(self, name: str) -> None:
        """Record a query of the container for a name that is not allowed."""
        self.policy.refused(name, self.container)


def _refused(element: dict[int, bytes], bridge: str) -> Refused | None:
    key = dict(attributes(element[1]))[1]
    if key[:16] != nft.interface(bridge):
        return None
    packets = 1
    if 7 in element:
        counter = dict(attributes(dict(attributes(element[7])).get(2, b"")))
        packets = struct.unpack(">Q", counter[2])[0] if 2 in counter else 1
    protocol = key[20]
    port = struct.unpack_from(">H", key, 24)[0] if protocol in (TCP, UDP) else 0
    return Refused(str(IPv4Address(key[16:20])), port, _NAMES.get(protocol, str(protocol)), packets)
