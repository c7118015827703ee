"""The rules of an engine's networks, in tables that no flush touches.

What refuses stays when the engine is killed, until its containers are dead and somebody collects the rest.
What leads packets elsewhere goes with the engine's socket.

The rules stand from the start and name no container; what changes are elements of sets.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from attrs import frozen

from pycontain._kernel.netlink import Message, Netlink, NetlinkError
from pycontain._model.targets import METADATA, METADATA6
from pycontain._networks import links, nft
from pycontain._networks.nft import Element, Set
from pycontain.errors import UnsupportedError

PREFIX = links.PREFIX.encode()
_IPV4, _IPV6 = b"\2", b"\x0a"
_ICMP, TCP, UDP, _ICMP6 = 1, 6, 17, 58
_DNAT, _KNOWN = 0x20, 2 | 4
_ADVERTISEMENT, _REDIRECT6 = b"\x86", b"\x89"
_LOOPBACK = b"\x7f"
_NEW = 8
MOST_REFUSED, MOST_REFUSED_PER_CONTAINER = 16384, 512
"""Refused addresses that are kept for an hour, of an engine and of one container."""
_HOUR = 3600
MOST_TRACKED = 8192
_TRACKED_SHARE, _TRACKED_LEAST = 8, 1024
"""Tracked connections of a container: an eighth of the kernel's table within these bounds.

The kernel looks each of them up again when another one begins, so a higher bound costs time.
"""


@frozen(kw_only=True)
class NetworkRules:
    """What the rules are to let pass of one network.

    outside: beyond this host.  host: to this host's own services.  policy: what `Egress` allows alone.
    """

    bridge: str
    subnets: tuple[IPv4Network | IPv6Network, ...]
    outside: bool
    host: bool
    restricted: bool

    @property
    def leads_out(self) -> bool:
        """Does anything of it leave this host, under its address?"""
        return self.outside or self.restricted


class Firewall:
    """The table of one engine.

    own: what the names of its bridges begin with.  closed: nothing but what is ours may be passed on.
    Raises UnsupportedError where the kernel has no nf_tables.
    """

    def __init__(self, socket: Netlink, name: str, own: str) -> None:
        self._socket = socket
        self.table = name
        self._own = own.encode()
        self._closed: set[int] = set()
        self._host: frozenset[IPv4Address | IPv6Address] = frozenset()
        self._unmasked: NetlinkError | None = None
        self.redirects = True
        """Are published ports redirected by the kernel?  Else the relay alone carries them."""
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
        """Does what refuses stay when this process is killed?"""
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
        """Remove it."""
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
        """Change the table, all or nothing.  Raises NetlinkError."""
        self._socket.do_at_once(messages)

    def do_in_parts(self, messages: Sequence[Message]) -> None:
        """Change the table by any number of messages: each part of them all or nothing, in order.

        Raises NetlinkError; the parts before the one that failed are done.
        """
        for part in nft.parts(messages):
            self.do(part)

    def elements(self, name: str) -> list[dict[int, bytes]]:
        """What a set has: the attributes of each element.  Raises NetlinkError."""
        return list(nft.seen_elements(self._socket.ask(self.sets[name].dump())))

    def keep_closed(self, version: int) -> None:
        """Nothing else is passed on by this host, which has passed on nothing before."""
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
        """This host's services are at these, other than in the namespace of the rules."""
        for change, found in (("put_all", addresses - self._host), ("take_all", self._host - addresses)):
            for version, name in ((4, "host"), (6, "host6")):
                elements = [Element(one.packed) for one in found if one.version == version]
                self.do_in_parts(getattr(self.sets[name], change)(elements))
        self._host = addresses

    def open(self, network: NetworkRules) -> None:
        """Rules for a network that is about to be.

        Raises UnsupportedError where it is to lead outside and the kernel cannot lend it an address.
        """
        if network.leads_out and self._unmasked is not None:
            raise UnsupportedError(
                f"masquerade rules for networks that are not internal ({self._unmasked})",
                hint="use a kernel with nft_masq, or Network(internal=True)",
            )
        self.do([self.sets[name].put(*elements) for name, elements in self._of(network)])

    def shut(self, network: NetworkRules) -> None:
        """It is gone."""
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
        """Send what comes to a port of this host, from elsewhere, to a container's; gone: no more."""
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
    """Remove what is there of the tables of an engine."""
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
        return MOST_TRACKED  # the module is loaded with the first rule; its table has 65536 or more then
    return min(max(share, _TRACKED_LEAST), MOST_TRACKED)


@frozen
class _Rules:
    """The rules, in the order in which they are tried."""

    table: str
    nat: str
    own: bytes
    refusal: list[list[bytes]]

    def _rule(self, chain: str, *expressions: bytes) -> Message:
        return nft.rule(self.table, chain, *expressions)

    def filters(self) -> list[Message]:
        """What passes through this host, and to it."""
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
            # A bridge's own frames come by here where br_netfilter is loaded.
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
            # What is allowed no more does not go on to arrive; of TCP the next answer is refused.
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
        """Every packet is judged, and a connection once for each generation of what is allowed."""
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
        """Load the key of the sets of addresses that may be reached, and of those that were refused."""
        return (
            nft.meta("iifname"),
            nft.load("network", 16, 4, 12),
            nft.meta("l4proto", 13),
            nft.load("transport", 2, 2, 14),
        )

    def audit(self, most: int) -> list[Message]:
        """Record refused addresses; of one container at most `most` new ones an hour, 0 for any number."""
        target, record = self._target(), nft.remember("refused")
        source = nft.meta("iifname") + nft.load("network", 12, 4, 12)
        within = source + nft.is_within("sources", most, _HOUR) if most else b""
        # A lookup counts as well, by the counter of the element that it finds.
        known = self._rule("audit", *target, nft.lookup("refused"), nft.verdict("return"))
        return [known, self._rule("audit", within, *target, record)]

    def tracked(self, most: int) -> list[Message]:
        """Refuse new connections of a container that has `most`: the table is one for this whole host.

        A container is its address of the link layer, which counts what it sends by IPv4 and IPv6 together.
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
            # Whatever else this host receives is judged by one comparison.
            rule("input", inward, nft.verdict("jump", "received")),
            # The kernel drops these itself, unless route_localnet is on for all of the host's interfaces.
            # Before what is known: so are the host's own connections by loopback.
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
        """What leaves this host leaves from its address; a container's own published port is reached too."""
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
        """Published ports, for what does not come from this host itself: that is the relay's."""
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
    """Networks without rules would be open to each other: there are none then."""
    return UnsupportedError(
        f"the firewall of networks ({error})",
        hint="use a kernel with nf_tables, its inet family and nft_ct",
    )
