"""Rules between containers of one network: anti-spoofing and partitions.

They are in a table of the bridge family, which is created when it is first needed.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from typing import TYPE_CHECKING

from attrs import define, field

from pycontain._kernel.netlink import Message, Netlink, NetlinkError
from pycontain._networks.wire import nft
from pycontain._networks.wire.nft import BRIDGE, Element, Set
from pycontain.errors import UnsupportedError

if TYPE_CHECKING:
    from pycontain._networks.network import Bridge, NetworkEndpoint

_ARP, _IPV4, _IPV6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"
_ICMP6 = b"\x3a"
_ROUTER, _SOLICITATION, _NEIGHBOUR, _REDIRECT, _LISTENER = b"\x86", b"\x87", b"\x88", b"\x89", b"\x8f"
"""ICMPv6 types: router and neighbour advertisements, neighbour solicitations, redirects, MLDv2 reports."""


@define(eq=False)
class AntiSpoof:
    """Table of an engine in the bridge family.

    Attributes:
        socket: Netlink socket that owns the table.
        table: Name of the table.
        stays: Whether the table survives the socket.
    """

    socket: Netlink
    table: str
    stays: bool
    _made: bool = False
    _lock: threading.Lock = field(factory=threading.Lock)
    _held: dict[str, list[tuple[Set, Element]]] = field(factory=dict)
    _partitioned: dict[bytes, int] = field(factory=dict)

    def _set(self, name: str, *fields: nft.FieldType) -> Set:
        return Set(self.table, name, fields, family=BRIDGE)

    @property
    def _sets(self) -> list[Set]:
        return [
            self._set("guarded", "interface"),
            self._set("macs", "interface", "mac"),
            self._set("addresses", "interface", "address"),
            self._set("addresses6", "interface", "address6"),
            self._set("partitioned", "interface", "interface"),
        ]

    def _do(self, messages: list[Message]) -> None:
        with self._lock:
            if not self._made:
                try:
                    self.socket.do_at_once(self._rules())
                except NetlinkError as error:
                    raise UnsupportedError(
                        f"firewall rules between containers of a network ({error})",
                        hint="use a kernel with CONFIG_NF_TABLES_BRIDGE",
                    ) from error
                self._made = True
            if messages:
                self.socket.do_at_once(messages)

    def _rules(self) -> list[Message]:
        table = self.table
        drop, back = nft.verdict("drop"), nft.verdict("return")

        def rule(chain: str, *expressions: bytes) -> Message:
            return nft.rule(table, chain, *expressions, family=BRIDGE)

        name, kind = nft.meta("iifname"), nft.load("link", 12, 2)
        ipv6 = kind + nft.compare(_IPV6)
        # l4proto is found behind extension headers too, which RFC 7113 asks for.
        icmp6 = ipv6 + nft.meta("l4proto") + nft.compare(_ICMP6) + nft.load("transport", 0, 1)
        target = name + nft.load("transport", 8, 16, 12)
        owned, strange = nft.lookup("addresses6"), nft.lookup("addresses6", absent=True)
        unspecified = nft.load("network", 8, 16) + nft.compare(b"\0" * 16)
        return [
            nft.table(table, BRIDGE, stays=self.stays),
            *(one.new(at + 1) for at, one in enumerate(self._sets)),
            nft.chain(table, "antispoof", BRIDGE),
            nft.base_chain(table, "come", "filter", nft.PREROUTING, -300, BRIDGE),
            nft.base_chain(table, "pass", "filter", nft.FORWARD, 0, BRIDGE),
            rule("come", name, nft.lookup("guarded"), nft.verdict("jump", "antispoof")),
            rule("antispoof", name, nft.load("link", 6, 6, 12), nft.lookup("macs", absent=True), drop),
            rule(
                "antispoof",
                kind,
                nft.compare(_ARP),
                name,
                nft.load("network", 8, 6, 12),
                nft.lookup("macs", absent=True),
                drop,
            ),
            rule(
                "antispoof",
                kind,
                nft.compare(_ARP),
                name,
                nft.load("network", 14, 4, 12),
                nft.lookup("addresses"),
                back,
            ),
            rule(
                "antispoof",
                kind,
                nft.compare(_IPV4),
                name,
                nft.load("network", 12, 4, 12),
                nft.lookup("addresses"),
                back,
            ),
            rule("antispoof", icmp6, nft.compare(_ROUTER), drop),
            rule("antispoof", icmp6, nft.compare(_REDIRECT), drop),
            rule("antispoof", icmp6, nft.compare(_NEIGHBOUR), target, strange, drop),
            rule("antispoof", ipv6, name, nft.load("network", 8, 16, 12), owned, back),
            # From the unspecified address only duplicate address detection and multicast reports are allowed.
            rule(
                "antispoof",
                icmp6,
                nft.compare(_SOLICITATION),
                unspecified,
                target,
                owned,
                back,
            ),
            rule("antispoof", icmp6, nft.compare(_LISTENER), unspecified, back),
            rule("antispoof", drop),
            rule("pass", name, nft.meta("oifname", 2), nft.lookup("partitioned"), drop),
        ]

    def admit(self, bridge: Bridge, endpoint: NetworkEndpoint) -> None:
        """Drop packets from the endpoint's port unless their source addresses are its own.

        Raises:
            UnsupportedError: The kernel lacks nf_tables of the bridge family.
        """
        guarded, macs, addresses, addresses6, _ = self._sets
        port = nft.interface(endpoint.port)
        held = [
            (guarded, Element(port)),
            (macs, Element(nft.key(port, endpoint.mac))),
            (addresses, Element(nft.key(port, endpoint.address.packed))),
        ]
        if endpoint.address6 is not None:
            for own in (endpoint.address6.packed, link_local(endpoint.mac)):
                held.append((addresses6, Element(nft.key(port, own))))
        self._do([one.put(element) for one, element in held])
        self._held[endpoint.port] = held

    def dismiss(self, endpoint: NetworkEndpoint) -> None:
        """Remove the rules of an endpoint."""
        held = self._held.pop(endpoint.port, None)
        if held is not None:
            with contextlib.suppress(NetlinkError):
                self._do([one.take(element) for one, element in held])
        port = nft.interface(endpoint.port)
        for key in [key for key in self._partitioned if port in (key[:16], key[16:])]:
            self._partitioned[key] = 1
            self._rejoin(key)

    def partition(self, one: NetworkEndpoint, other: NetworkEndpoint) -> None:
        """Drop packets between two endpoints in both directions; calls nest."""
        for key in _pairs(one, other):
            count = self._partitioned.get(key, 0)
            if count == 0:
                self._do([self._sets[4].put(Element(key))])
            self._partitioned[key] = count + 1

    def heal(self, one: NetworkEndpoint, other: NetworkEndpoint) -> None:
        """Undo one call of `partition`."""
        for key in _pairs(one, other):
            if key in self._partitioned:
                self._rejoin(key)

    def _rejoin(self, key: bytes) -> None:
        self._partitioned[key] -= 1
        if self._partitioned[key]:
            return
        del self._partitioned[key]
        try:
            self._do([self._sets[4].take(Element(key))])
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise


def link_local(mac: bytes) -> bytes:
    """Return the link-local address of a MAC address (RFC 4291, appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


def _pairs(one: NetworkEndpoint, other: NetworkEndpoint) -> list[bytes]:
    ports = nft.interface(one.port), nft.interface(other.port)
    return [nft.key(*ports), nft.key(*reversed(ports))]
