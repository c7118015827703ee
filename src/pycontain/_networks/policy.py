"""What a guided network may reach: ranges as rules, names by what the name service tells of them."""

from __future__ import annotations

import errno
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._kernel.netlink import Message, NetlinkError, attributes
from pycontain._model.targets import METADATA, Target, is_public
from pycontain._networks import nft
from pycontain._networks.firewall import TCP, UDP
from pycontain._networks.nft import Element

if TYPE_CHECKING:
    from pycontain._networks.bridge import Bridge
    from pycontain._networks.firewall import Firewall

_PROTOCOLS = {"tcp": (TCP,), "udp": (UDP,), "": (TCP, UDP)}
_NAMES = {TCP: "tcp", UDP: "udp", 1: "icmp"}
_KEPT = 300
"""Seconds that an address stays allowed at least: clients keep what they were told longer than it says."""
_KEPT_LONGEST = 86400
"""And at most: whoever had a name for a moment has said so for ever else."""
_Learned = tuple[str, float]
"""Of what name, and until when."""
_MOST_NAMES = 4096
_MOST_LEARNED = 16384


@frozen
class Refused:
    """Something that was not allowed: a name that was asked for, or an address that was to be reached.

    port: 0 for a name, and where a protocol has none.  count: of packets or questions.
    """

    target: str
    port: int
    protocol: str
    count: int


class Guide:
    """The policy of one guided network, also asked by the name service."""

    def __init__(self, bridge: Bridge, targets: Sequence[Target]) -> None:
        self._bridge = bridge.link
        self._firewall: Firewall = bridge.firewall
        self._chain = f"to_{bridge.link}"
        self._targets = tuple(targets)
        self._learned: dict[tuple[str, bytes], _Learned] = {}
        self._names: dict[str, int] = {}
        self._generation = 1
        self._lock = threading.RLock()
        name = nft.interface(self._bridge)
        self._firewall.do(
            [
                nft.chain(self._firewall.table, self._chain),
                *self._ranges(self._targets),
                self._firewall.sets["guides"].put(Element(name, jump=self._chain)),
                *self._marks("put", self._generation),
            ]
        )

    def _marks(self, change: str, generation: int) -> list[Message]:
        """What connections that were let through bear."""
        name, mark = nft.interface(self._bridge), generation.to_bytes(4, sys.byteorder)
        sets = self._firewall.sets
        return [
            getattr(sets["current"], change)(Element(nft.key(name, mark))),
            getattr(sets["generation"], change)(Element(name, value=mark)),
        ]

    def _ranges(self, targets: Sequence[Target]) -> Iterator[Message]:
        ranges = [one for one in targets if one.network is not None]
        for target in ranges:
            if target.is_metadata:
                yield from self._range(target)
        for network in METADATA:
            yield nft.rule(self._firewall.table, self._chain, nft.towards(network), nft.verdict("return"))
        for target in ranges:
            if not target.is_metadata:
                yield from self._range(target)

    def _range(self, target: Target) -> Iterator[Message]:
        assert target.network is not None
        there = nft.towards(target.network)
        allow = nft.verdict("jump", "allow")
        if not target.port and not target.protocol:
            yield nft.rule(self._firewall.table, self._chain, there, allow)
            return
        port = nft.load("transport", 2, 2) + nft.compare(nft.port(target.port)) if target.port else b""
        for protocol in _PROTOCOLS[target.protocol]:
            kind = nft.meta("l4proto") + nft.compare(bytes([protocol]))
            yield nft.rule(self._firewall.table, self._chain, there, kind, port, allow)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is allowed."""
        return self._targets

    def change(self, targets: Sequence[Target]) -> None:
        """Allow these from now on; connections to what is not among them any more are refused."""
        with self._lock:
            targets, generation, kept = tuple(targets), self._generation, self._learned
            messages = [nft.empty_chain(self._firewall.table, self._chain), *self._ranges(targets)]
            if set(self._targets) - set(targets):
                kept, forgotten = self._sifted(targets)
                generation += 1
                messages += forgotten
                messages += self._marks("take", self._generation)
                messages += self._marks("put", generation)
            self._firewall.do(messages)
            self._targets, self._generation, self._learned = targets, generation, kept

    def _sifted(self, targets: Sequence[Target]) -> tuple[dict[tuple[str, bytes], _Learned], list[Message]]:
        """What was learned of names that are still allowed, and how to forget the rest."""
        now, messages, kept = time.monotonic(), [], {}
        for (which, key), (name, until) in self._learned.items():
            if any(target.names(name) for target in targets) and until >= now:
                kept[which, key] = name, until
            elif until > now + 1:
                messages.append(self._firewall.sets[which].take(Element(key)))
        return kept, messages

    # The name service's side -----------------------------------------------------------------------------

    def allows(self, name: str) -> bool:
        """May this name be asked for?"""
        return any(target.names(name) for target in self._targets)

    def refused(self, name: str) -> None:
        """It was asked for and may not be."""
        with self._lock:
            if name in self._names or len(self._names) < _MOST_NAMES:
                self._names[name] = self._names.get(name, 0) + 1

    def learned(self, name: str, addresses: list[str], ttl: int) -> list[str]:
        """Let the addresses of a name be reached, before whoever asked is told of them.

        None that leads into this host's own neighbourhood, unless a range allows it: names are whoever owns
        them to point.
        """
        with self._lock:
            told = [one for one in addresses if self._may_be_told(one)]
            until = min(max(ttl, _KEPT), _KEPT_LONGEST)
            for target in self._targets:
                if target.names(name):
                    for address in told:
                        self._let(target, name, address, until)
            return told

    def _may_be_told(self, text: str) -> bool:
        if ":" in text:
            return False
        found = IPv4Address(text)
        if is_public(found):
            return True
        return any(target.covers(found) for target in self._targets)

    def _let(self, target: Target, name: str, text: str, seconds: int) -> None:
        bridge, address = nft.interface(self._bridge), nft.address(text)
        if not is_public(IPv4Address(text)):
            return  # its range's rule allows what may be reached there
        if not target.port and not target.protocol:
            self._put("learned_any", nft.key(bridge, address), name, seconds)
            return
        for protocol in _PROTOCOLS[target.protocol]:
            key = bridge, address, protocol
            if target.port:
                self._put("learned", nft.key(*key, nft.port(target.port)), name, seconds)
            else:
                self._put("learned_kind", nft.key(*key), name, seconds)

    def _put(self, which: str, key: bytes, name: str, seconds: int) -> None:
        now = time.monotonic()
        if len(self._learned) >= _MOST_LEARNED:
            self._learned = {one: held for one, held in self._learned.items() if held[1] > now}
        known = self._learned.get((which, key))
        element = Element(key, timeout=seconds * 1000)
        sets = self._firewall.sets
        if known is not None and known[1] - now > seconds / 2:
            return
        again = [sets[which].take(Element(key))] if known is not None else []
        try:
            self._firewall.do([*again, sets[which].put(element)])
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            self._firewall.do([sets[which].put(element)])
        self._learned[which, key] = name, now + seconds

    # What is reported ------------------------------------------------------------------------------------

    def attempts(self) -> list[Refused]:
        """What was refused in the last hour: names first."""
        with self._lock:
            found = [Refused(name, 0, "dns", count) for name, count in self._names.items()]
        return found + list(self._connections())

    def _connections(self) -> Iterator[Refused]:
        for element in self._firewall.elements("refused"):
            one = _refused(element, self._bridge)
            if one is not None:
                yield one

    def close(self) -> None:
        """The network goes."""
        name = nft.interface(self._bridge)
        with self._lock:
            self._learned, forgotten = self._sifted(())
        self._firewall.do(
            [
                *forgotten,
                self._firewall.sets["guides"].take(Element(name, jump=self._chain)),
                *self._marks("take", self._generation),
                nft.drop_chain(self._firewall.table, self._chain),
            ]
        )


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
