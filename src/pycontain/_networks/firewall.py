"""nftables rules of an engine's networks, in tables that `nft flush ruleset` does not change.

The table that drops and rejects packets survives a killed engine (Linux 6.9), until the next engine removes
it after the containers. The NAT table is removed with the engine's socket.

All rules are created at the start and name no container; later changes only concern elements of sets.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from attrs import frozen

from pycontain._kernel.netlink import Message, Netlink, NetlinkError
from pycontain._model.targets import METADATA, METADATA6
from pycontain._networks.wire import links, nft
from pycontain._networks.wire.nft import Element, Set
from pycontain.errors import UnsupportedError

PREFIX = links.PREFIX.encode()
_IPV4, _IPV6 = b"\2", b"\x0a"
_ICMP, TCP, UDP, _ICMP6 = 1, 6, 17, 58
_DNAT, _KNOWN = 0x20, 2 | 4
_ADVERTISEMENT, _REDIRECT6 = b"\x86", b"\x89"
_LOOPBACK = b"\x7f"
_NEW = 8
MOST_REFUSED, MOST_REFUSED_PER_CONTAINER = 16384, 512
"""Bounds of the refused addresses recorded for an hour, per engine and per container."""
_HOUR = 3600
MOST_TRACKED = 8192
_TRACKED_SHARE, _TRACKED_LEAST = 8, 1024
"""Bound of a container's tracked connections: an eighth of the kernel's table, within these limits.

nft_connlimit looks up all of them for each new connection, so a higher bound costs time.
"""


@frozen(kw_only=True)
class NetworkRules:
    """One network as the firewall enforces it.

    Attributes:
        bridge: Name of the bridge.
        subnets: Subnets of the network.
        outside: Whether it may reach beyond this host.
        host: Whether it may reach services of this host.
        restricted: Whether it may reach only what its `Egress` allows.
    """

    bridge: str
    subnets: tuple[IPv4Network | IPv6Network, ...]
    outside: bool
    host: bool
    restricted: bool

    @property
    def leads_out(self) -> bool:
        """Return whether packets leave the host, masqueraded."""
        return self.outside or self.restricted


class Firewall:
    """The tables of one engine.

    Args:
        socket: Netlink socket that owns the tables.
        name: Name of the tables.
        own: Prefix of the names of the engine's interfaces.

    Raises:
        UnsupportedError: The kernel lacks nf_tables.
    """

    def __init__(self, socket: Netlink, name: str, own: str) -> None:
        self._socket = socket
        self.table = name
        self._own = own.encode()
        self._closed: set[int] = set()
        self._host: frozenset[IPv4Address | IPv6Address] = frozenset()
        self._unmasked: NetlinkError | None = None
        self.redirects = True
        """Whether the kernel has DNAT for published ports; otherwise the relay process serves them."""
        self._nat = f"{name}-nat"
        sets = _sets(name, self._nat)
        self.sets = {one.name: one for one in sets}
        self.stays = self._make_tables()
        try:
            self._install(sets, refuse=True)
        except NetlinkError as error:
            if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
                raise unsupported(error) from error
            try:
                self._install(sets, refuse=False)  # a kernel that can only drop
            except NetlinkError as again:
                raise unsupported(again) from again

    def _make_tables(self) -> bool:
        """Create the tables; return whether the one that rejects survives the end of this process."""
        for stays in (True, False):
            try:
                self.do([nft.table(self.table, stays=stays), nft.table(self._nat)])
            except NetlinkError as error:
                if not stays or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise unsupported(error) from error
                continue
            return stays
        raise AssertionError

    def close(self) -> None:
        """Remove the tables."""
        remove_tables(self._socket, self.table)

    def _install(self, sets: Sequence[Set], *, refuse: bool) -> None:
        table = self.table
        refusal = [
            [nft.meta("l4proto"), nft.compare(bytes([TCP])), nft.reset()],
            [nft.prohibit()],
        ]
        if not refuse:
            refusal = [[nft.verdict("drop")]]
        rules = _Rules(table, self._nat, self._own, refusal)
        messages = [
            *(one.new(at + 1) for at, one in enumerate(sets)),
            nft.chain(table, "refuse"),
            nft.chain(table, "allow"),
            nft.chain(table, "unlisted"),
            nft.chain(table, "audit"),
            nft.chain(table, "tracked"),
            nft.chain(table, "policy"),
            nft.chain(table, "from_inside"),
            nft.chain(table, "to_inside"),
            nft.chain(table, "to_host"),
            nft.chain(table, "received"),
            nft.base_chain(table, "forward", "filter", nft.FORWARD, 0),
            nft.base_chain(table, "input", "filter", nft.INPUT, 0),
            *rules.filters(),
        ]
        self.do(messages)
        with contextlib.suppress(NetlinkError):  # without nft_connlimit there is no bound per container
            self.do(rules.tracked(_most_tracked()))
        try:
            self.do(rules.audit(MOST_REFUSED_PER_CONTAINER))
        except NetlinkError:
            self.do(rules.audit(0))  # a kernel without nft_limit
        try:
            self.do(rules.masquerade())
        except NetlinkError as error:
            self._unmasked = error
        try:
            self.do(rules.redirect())
        except NetlinkError:
            self.redirects = False

    def do(self, messages: Sequence[Message]) -> None:
        """Change the tables in one transaction.

        Raises:
            NetlinkError: The kernel refused it; nothing has changed.
        """
        self._socket.do_at_once(messages)

    def do_in_parts(self, messages: Sequence[Message]) -> None:
        """Change the tables in as many transactions as the messages need, in order.

        Raises:
            NetlinkError: The kernel refused one; those before it are done.
        """
        for part in nft.parts(messages):
            self.do(part)

    def elements(self, name: str) -> list[dict[int, bytes]]:
        """Return the attributes of each element of a set.

        Raises:
            NetlinkError: The kernel refused the request.
        """
        return list(nft.seen_elements(self._socket.ask(self.sets[name].dump())))

    def keep_closed(self, version: int) -> None:
        """Drop forwarded packets of other interfaces, since the host did not forward before we enabled it."""
        if version in self._closed:
            return
        self._closed.add(version)
        protocol = _IPV4 if version == 4 else _IPV6
        self.do(
            [
                nft.rule(
                    self.table,
                    "forward",
                    nft.meta("nfproto"),
                    nft.compare(protocol),
                    nft.meta("iifname"),
                    nft.compare(PREFIX, equal=False),
                    nft.meta("oifname"),
                    nft.compare(PREFIX, equal=False),
                    nft.verdict("drop"),
                )
            ]
        )

    def know_host(self, addresses: frozenset[IPv4Address | IPv6Address]) -> None:
        """Set the addresses of the host, for rules in a network namespace other than the host's."""
        for change, found in (("put_all", addresses - self._host), ("take_all", self._host - addresses)):
            for version, name in ((4, "host"), (6, "host6")):
                elements = [Element(one.packed) for one in found if one.version == version]
                self.do_in_parts(getattr(self.sets[name], change)(elements))
        self._host = addresses

    def open(self, network: NetworkRules) -> None:
        """Add the rules of a network before its bridge exists.

        Raises:
            UnsupportedError: It needs masquerading and the kernel lacks it.
        """
        if network.leads_out and self._unmasked is not None:
            raise UnsupportedError(
                f"masquerade rules for networks that are not internal ({self._unmasked})",
                hint="use a kernel with nft_masq, or Network(internal=True)",
            )
        self.do([self.sets[name].put(*elements) for name, elements in self._of(network)])

    def shut(self, network: NetworkRules) -> None:
        """Remove the rules of a network."""
        self.do([self.sets[name].take(*elements) for name, elements in self._of(network)])

    def _of(self, network: NetworkRules) -> list[tuple[str, list[Element]]]:
        name = nft.interface(network.bridge)
        found = [("same", [Element(nft.key(name, name))])]
        if network.restricted:
            found.append(("restricted", [Element(name)]))
        elif not network.outside:
            found.append(("internal", [Element(name)]))
        if network.host:
            found.append(("hosted", [Element(name)]))
        if network.leads_out:
            for subnet in network.subnets:
                last = int(subnet.broadcast_address) + 1
                end = last.to_bytes(4 if subnet.version == 4 else 16)
                which = "subnets" if subnet.version == 4 else "subnets6"
                found.append((which, [Element(subnet.network_address.packed), Element(end, ends=True)]))
        return found

    def redirect(
        self, protocol: int, host: str, port: int, address: str, inner: int, *, gone: bool = False
    ) -> None:
        """Add or remove the DNAT rule of a published port.

        Args:
            protocol: IP protocol number.
            host: Host address, or 0.0.0.0 for all.
            port: Host port.
            address: Address of the container.
            inner: Port of the container.
            gone: Remove the rule.
        """
        if not self.redirects:
            return
        value = nft.key(nft.address(address), nft.port(inner))
        fields = (protocol, nft.port(port))
        if host != "0.0.0.0":
            which, element = "ports_at", Element(nft.key(nft.address(host), *fields), value=value)
        else:
            which, element = "ports", Element(nft.key(*fields), value=value)
        self.do([self.sets[which].take(element) if gone else self.sets[which].put(element)])


def remove_tables(socket: Netlink, name: str) -> None:
    """Remove the tables of an engine, as far as they exist."""
    for table, family in ((name, nft.INET), (f"{name}-nat", nft.INET), (name, nft.BRIDGE)):
        with contextlib.suppress(NetlinkError):
            socket.do_at_once([nft.drop_table(table, family)])


def _sets(table: str, nat: str) -> list[Set]:
    target: tuple[nft.FieldType, ...] = ("interface", "address", "protocol", "port")
    kept = nft.EVAL | nft.TIMEOUT
    return [
        Set(table, "same", ("interface", "interface")),
        Set(table, "internal", ("interface",)),
        Set(table, "restricted", ("interface",)),
        Set(table, "hosted", ("interface",)),
        Set(table, "host", ("address",)),
        Set(table, "host6", ("address6",)),
        Set(nat, "subnets", ("address",), flags=nft.INTERVAL),
        Set(nat, "subnets6", ("address6",), flags=nft.INTERVAL),
        Set(table, "current", ("interface", "mark")),
        Set(table, "generation", ("interface",), to=("mark",)),
        Set(table, "policies", ("interface",), to=("verdict",)),
        Set(table, "learned", target, flags=nft.TIMEOUT),
        Set(table, "learned_kind", target[:3], flags=nft.TIMEOUT),
        Set(table, "learned_any", target[:2], flags=nft.TIMEOUT),
        Set(table, "refused", target, flags=kept, size=MOST_REFUSED, timeout=_HOUR * 1000),
        Set(table, "sources", target[:2], flags=kept, size=MOST_REFUSED, timeout=_HOUR * 1000),
        Set(table, "tracking", ("interface", "mac"), flags=nft.EVAL, size=MOST_REFUSED),
        Set(nat, "ports", ("protocol", "port"), to=("address", "port")),
        Set(nat, "ports_at", ("address", "protocol", "port"), to=("address", "port")),
    ]


def _most_tracked() -> int:
    try:
        with open("/proc/sys/net/netfilter/nf_conntrack_max", encoding="ascii") as file:
            share = int(file.read()) // _TRACKED_SHARE
    except OSError:
        return MOST_TRACKED  # our first rule loads nf_conntrack, whose default is 65536 or more
    return min(max(share, _TRACKED_LEAST), MOST_TRACKED)


@frozen
class _Rules:
    """The rules, in the order in which the kernel evaluates them."""

    table: str
    nat: str
    own: bytes
    refusal: list[list[bytes]]

    def _rule(self, chain: str, *expressions: bytes) -> Message:
        return nft.rule(self.table, chain, *expressions)

    def filters(self) -> list[Message]:
        """Return the rules of the hooks forward and input."""
        rule = self._rule
        inward, outward = (
            nft.meta("iifname") + nft.compare(self.own),
            nft.meta("oifname") + nft.compare(self.own),
        )
        known = nft.ct("state") + nft.any_bit(_KNOWN)
        accept, drop = nft.verdict("accept"), nft.verdict("drop")
        refuse, to_host = nft.verdict("jump", "refuse"), nft.verdict("jump", "to_host")
        ipv4 = nft.meta("nfproto") + nft.compare(_IPV4)
        ipv6 = nft.meta("nfproto") + nft.compare(_IPV6)
        there = nft.load("network", 24, 16)
        return [
            *(rule("refuse", *expressions) for expressions in self.refusal),
            *self._policy(ipv4, refuse),
            rule("forward", inward, nft.ct("state"), nft.any_bit(_NEW), nft.verdict("jump", "tracked")),
            # With br_netfilter loaded, frames within a bridge pass this hook too.
            rule("forward", nft.meta("iifname"), nft.meta("oifname", 2), nft.lookup("same"), accept),
            rule("forward", inward, nft.verdict("jump", "from_inside")),
            rule("forward", outward, nft.verdict("jump", "to_inside")),
            rule("from_inside", ipv4, nft.load("network", 16, 4), nft.lookup("host"), to_host),
            rule("from_inside", ipv6, there, nft.lookup("host6"), to_host),
            rule("to_host", nft.meta("iifname"), nft.lookup("hosted"), nft.verdict("return")),
            rule("to_host", refuse),
            rule("from_inside", nft.meta("iifname"), nft.lookup("restricted"), nft.verdict("jump", "policy")),
            rule("from_inside", nft.meta("iifname"), nft.lookup("internal"), refuse),
            rule("from_inside", nft.ct("status"), nft.any_bit(_DNAT), accept),
            rule("from_inside", nft.meta("oifname"), nft.compare(PREFIX), refuse),
            *(rule("from_inside", ipv4, nft.towards(network), refuse) for network in METADATA),
            *(rule("from_inside", ipv6, there, nft.compare(nft.address(one)), refuse) for one in METADATA6),
            rule("from_inside", accept),
            # Drop replies from targets that are no longer allowed; for TCP the next packet is rejected.
            rule(
                "to_inside",
                nft.meta("oifname"),
                nft.lookup("restricted"),
                nft.meta("l4proto") + nft.compare(bytes([TCP]), equal=False),
                nft.ct("direction") + nft.compare(b"\1"),
                nft.meta("oifname") + nft.ct("mark", 12) + nft.lookup("current", absent=True),
                drop,
            ),
            rule("to_inside", known, accept),
            rule("to_inside", nft.ct("status"), nft.any_bit(_DNAT), accept),
            rule("to_inside", drop),
            *self._input(inward, known, ipv4, ipv6, refuse),
        ]

    def _policy(self, ipv4: bytes, refuse: bytes) -> list[Message]:
        """Return the rules of the Egress: one check per connection and generation of the policy."""
        rule = self._rule
        target = self._target()
        current = nft.meta("iifname") + nft.ct("mark", 12) + nft.lookup("current")
        mark = nft.meta("iifname") + nft.lookup("generation", to=1) + nft.set_ct_mark()
        name = nft.meta("iifname")
        answer = nft.ct("direction") + nft.compare(b"\1") + nft.ct("state") + nft.any_bit(_KNOWN)
        return [
            rule("policy", current, nft.verdict("accept")),
            rule("policy", answer, nft.verdict("accept")),
            rule("allow", mark, nft.verdict("accept")),
            rule("policy", nft.meta("oifname"), nft.compare(PREFIX), nft.verdict("jump", "unlisted")),
            rule("policy", ipv4, *target, nft.lookup("learned"), nft.verdict("jump", "allow")),
            rule("policy", ipv4, *target[:3], nft.lookup("learned_kind"), nft.verdict("jump", "allow")),
            rule("policy", ipv4, *target[:2], nft.lookup("learned_any"), nft.verdict("jump", "allow")),
            rule("policy", ipv4, name, nft.judge("policies")),
            rule("policy", nft.verdict("jump", "unlisted")),
            rule("unlisted", ipv4, nft.verdict("jump", "audit")),
            rule("unlisted", refuse),
        ]

    def _target(self) -> tuple[bytes, ...]:
        """Return expressions that load the key of the sets of learned and refused addresses."""
        return (
            nft.meta("iifname"),
            nft.load("network", 16, 4, 12),
            nft.meta("l4proto", 13),
            nft.load("transport", 2, 2, 14),
        )

    def audit(self, most: int) -> list[Message]:
        """Return rules that record refused addresses, `most` per container and hour, or all for 0."""
        target, record = self._target(), nft.remember("refused")
        source = nft.meta("iifname") + nft.load("network", 12, 4, 12)
        within = source + nft.is_within("sources", most, _HOUR) if most else b""
        # A lookup increments the counter of the element that it finds.
        known = self._rule("audit", *target, nft.lookup("refused"), nft.verdict("return"))
        return [known, self._rule("audit", within, *target, record)]

    def tracked(self, most: int) -> list[Message]:
        """Return rules that reject new connections of a container with `most` tracked ones.

        The table of connections belongs to the whole host. A container is identified by its MAC address,
        so its IPv4 and IPv6 connections count together.
        """
        source = nft.meta("iifname") + nft.load("link", 6, 6, 12)
        over = source + nft.has_more_connections("tracking", most)
        return [self._rule("tracked", over, nft.verdict("jump", "refuse"))]

    def _input(self, inward: bytes, known: bytes, ipv4: bytes, ipv6: bytes, refuse: bytes) -> list[Message]:
        rule, accept = self._rule, nft.verdict("accept")
        loopback = nft.compare(_LOOPBACK)
        kind = nft.load("transport", 0, 1)
        icmp = nft.meta("l4proto") + nft.compare(bytes([_ICMP]))
        icmp6 = nft.meta("l4proto") + nft.compare(bytes([_ICMP6]))
        return [
            # Other packets to this host cost one comparison.
            rule("input", inward, nft.verdict("jump", "received")),
            # The kernel drops these itself unless route_localnet is on for all interfaces of the host.
            # This comes before known connections, among which are the host's own on loopback.
            rule("received", ipv4, nft.load("network", 12, 1), loopback, nft.verdict("drop")),
            rule("received", ipv4, nft.load("network", 16, 1), loopback, nft.verdict("drop")),
            rule("received", known, accept),
            rule("received", nft.verdict("jump", "tracked")),
            rule("received", ipv6, icmp6, kind, nft.compare(_ADVERTISEMENT), nft.verdict("drop")),
            rule("received", ipv6, icmp6, kind, nft.compare(_REDIRECT6), nft.verdict("drop")),
            rule("received", icmp, accept),
            rule("received", icmp6, accept),
            rule("received", nft.meta("iifname"), nft.lookup("hosted"), accept),
            rule("received", refuse),
        ]

    def masquerade(self) -> list[Message]:
        """Return the masquerading rules, for packets that leave the host and for hairpin connections."""
        messages = [nft.base_chain(self.nat, "leave", "nat", nft.POSTROUTING, 100)]
        for protocol, offset, size, which in ((_IPV4, 12, 4, "subnets"), (_IPV6, 8, 16, "subnets6")):
            ours = (
                nft.meta("nfproto")
                + nft.compare(protocol)
                + nft.load("network", offset, size)
                + nft.lookup(which)
            )
            elsewhere = nft.meta("oifname") + nft.compare(PREFIX, equal=False)
            redirected = nft.ct("status") + nft.any_bit(_DNAT)
            messages.append(nft.rule(self.nat, "leave", ours, elsewhere, nft.masquerade()))
            messages.append(nft.rule(self.nat, "leave", ours, redirected, nft.masquerade()))
        return messages

    def redirect(self) -> list[Message]:
        """Return the DNAT rules of published ports; the relay process serves the host's own connections."""
        start = (
            nft.meta("nfproto")
            + nft.compare(_IPV4)
            + nft.meta("iifname")
            + nft.compare(nft.interface("lo"), equal=False)
            + nft.local_destination()
        )
        proto, port = nft.meta("l4proto"), nft.load("transport", 2, 2, 9)
        bound = nft.load("network", 16, 4) + nft.meta("l4proto", 9) + nft.load("transport", 2, 2, 10)
        return [
            nft.base_chain(self.nat, "arrive", "nat", nft.PREROUTING, -100),
            nft.rule(self.nat, "arrive", start, bound, nft.lookup("ports_at", to=1), nft.redirect(1, 9)),
            nft.rule(self.nat, "arrive", start, proto, port, nft.lookup("ports", to=1), nft.redirect(1, 9)),
        ]


def unsupported(error: object) -> UnsupportedError:
    """Return the error for a kernel without a usable firewall; networks are refused, not left open."""
    return UnsupportedError(
        f"the firewall of networks ({error})",
        hint="use a kernel with nf_tables, its inet family and nft_ct",
    )
