"""rtnetlink(7) messages for bridges, veth pairs, addresses and routes, and parsers of the answers."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address

from attrs import frozen

from pycontain._kernel.netlink import (
    CREATE,
    DUMP,
    EXCL,
    Answer,
    Message,
    Netlink,
    attribute,
    attributes,
    nested,
)

PREFIX = "pyc-"
"""First characters of the names of all interfaces that pycontain creates."""
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
Interface = IPv4Interface | IPv6Interface

_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE = 20, 22, 24, 26
_UP = 1
_LINK = struct.Struct("=BBHiII")
_ADDRESS, _IFNAME, _MTU, _MASTER, _PROTINFO, _LINKINFO = 1, 3, 4, 10, 12, 18
_OPERSTATE, _OPERATES = 16, 6
_NET_NS_PID, _ALIAS, _AF_SPEC = 19, 20, 26
_NO_DAD = 0x02
_MAIN, _UNIVERSE, _UNICAST, _STATIC = 254, 0, 1, 4
_AF_BRIDGE = 7


def prefix(owner: str) -> str:
    """Return the first characters of the names of an owner's interfaces, which have at most 15 bytes."""
    return PREFIX + digits(int(owner, 16), 7)


def digits(number: int, count: int) -> str:
    """Return the last digits of a number in base 36."""
    text = ""
    for _ in range(count):
        number, digit = divmod(number, len(_DIGITS))
        text = _DIGITS[digit] + text
    return text


def _link(index: int, flags: int, *attributes: bytes, family: int = 0) -> bytes:
    return _LINK.pack(family, 0, 0, index, flags, flags) + b"".join(attributes)


def _family(address: Interface) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


_NO_LINK_LOCAL = nested(_AF_SPEC, nested(socket.AF_INET6, attribute(8, b"\1")))
"""No link-local address for the interface (IFLA_INET6_ADDR_GEN_MODE none)."""


def bridge(name: str, mac: bytes, mtu: int) -> Message:
    """Return a request for a bridge that is down, without STP and multicast snooping.

    Both need timers that would wake the host.
    """
    settings = nested(2, attribute(5, 0), attribute(23, b"\0"))
    return Message(
        _NEWLINK,
        _link(
            0,
            0,
            attribute(_IFNAME, name),
            attribute(_ADDRESS, mac),
            attribute(_MTU, mtu),
            nested(_LINKINFO, attribute(1, "bridge"), settings),
        ),
        CREATE | EXCL,
    )


@frozen
class Peer:
    """End of a veth pair to be created in the network namespace of the process `pid`."""

    pid: int
    name: str
    mac: bytes
    mtu: int


def pair(name: str, peer: Peer) -> Message:
    """Return a request for a veth pair, both ends down: one here, its peer in the other namespace."""
    other = _link(
        0,
        0,  # the kernel refuses IFF_UP for a peer that does not exist yet
        attribute(_IFNAME, peer.name),
        attribute(_ADDRESS, peer.mac),
        attribute(_MTU, peer.mtu),
        attribute(_NET_NS_PID, peer.pid),
    )
    info = nested(_LINKINFO, attribute(1, "veth"), nested(2, attribute(1, other)))
    return Message(
        _NEWLINK, _link(0, 0, attribute(_IFNAME, name), attribute(_MTU, peer.mtu), info), CREATE | EXCL
    )


def join(name: str, bridge: int) -> Message:
    """Return a request that makes an interface a port of a bridge and brings it up."""
    return Message(
        _SETLINK, _link(0, _UP, attribute(_IFNAME, name), attribute(_MASTER, bridge), _NO_LINK_LOCAL)
    )


def isolate(index: int) -> Message:
    """Return a request that isolates a bridge port from the other isolated ports."""
    return Message(_SETLINK, _link(index, 0, nested(_PROTINFO, attribute(33, b"\1")), family=_AF_BRIDGE))


def reflect(index: int) -> Message:
    """Return a request for hairpin mode, in which a bridge port sends frames that it received."""
    return Message(_SETLINK, _link(index, 0, nested(_PROTINFO, attribute(4, b"\1")), family=_AF_BRIDGE))


def raise_link(index: int, *, link_local: bool) -> Message:
    """Return a request that brings an interface up."""
    return Message(_SETLINK, _link(index, _UP, *(() if link_local else (_NO_LINK_LOCAL,))))


def lower_link(index: int) -> Message:
    """Return a request that takes an interface down."""
    return Message(_SETLINK, _LINK.pack(0, 0, 0, index, 0, _UP))


def note(index: int, text: str) -> Message:
    """Return a request that sets the alias of an interface, which `ip link` shows."""
    return Message(_SETLINK, _link(index, 0, attribute(_ALIAS, text)))


def remove(name: str) -> Message:
    """Return a request that removes an interface and its peer."""
    return Message(_DELLINK, _link(0, 0, attribute(_IFNAME, name)))


def look(route: Netlink, name: str) -> Link:
    """Return the current state of an interface.

    Raises:
        NetlinkError: The interface does not exist.
    """
    return next(seen_links(route.ask(Message(_GETLINK, _link(0, 0, attribute(_IFNAME, name))))))


def every_link() -> Message:
    """Return a request for all interfaces."""
    return Message(_GETLINK, _link(0, 0), DUMP)


def assign(index: int, address: Interface) -> Message:
    """Return a request that assigns an address, without duplicate address detection."""
    packed = address.packed
    body = struct.pack("=BBBBi", _family(address), address.network.prefixlen, 0, 0, index)
    body += attribute(2, packed) + attribute(1, packed)
    if address.version == 4:
        body += attribute(4, address.network.broadcast_address.packed)
    else:
        body += attribute(8, _NO_DAD)
    return Message(_NEWADDR, body, CREATE | EXCL)


def default_route(index: int, gateway: bytes, metric: int) -> Message:
    """Return a request for a default route."""
    family = socket.AF_INET if len(gateway) == 4 else socket.AF_INET6
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _MAIN, _STATIC, _UNIVERSE, _UNICAST, 0)
    body += attribute(5, gateway) + attribute(4, index) + attribute(6, metric)
    return Message(_NEWROUTE, body, CREATE | EXCL)


def routes(family: int) -> Message:
    """Return a request for all routes of an address family."""
    return Message(_GETROUTE, struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0), DUMP)


@frozen
class Link:
    """State of an interface; `operates` is the kernel's IF_OPER_UP."""

    index: int
    name: str
    alias: str
    operates: bool


def seen_links(answers: list[Answer]) -> Iterator[Link]:
    """Yield the interfaces in an answer."""
    for answer in answers:
        if answer.kind != _NEWLINK:
            continue
        _, _, _, index, _, _ = _LINK.unpack_from(answer.body)
        found = dict(attributes(answer.body[16:]))
        yield Link(
            index,
            found.get(_IFNAME, b"").rstrip(b"\0").decode(),
            found.get(_ALIAS, b"").rstrip(b"\0").decode("utf-8", "replace"),
            found.get(_OPERSTATE) == bytes([_OPERATES]),
        )


def every_address() -> Message:
    """Return a request for the addresses of all interfaces."""
    return Message(_GETADDR, struct.pack("=BBBBi", 0, 0, 0, 0, 0), DUMP)


def seen_addresses(answers: list[Answer]) -> Iterator[IPv4Address | IPv6Address]:
    """Yield the addresses in an answer: the local one of point-to-point interfaces."""
    for answer in answers:
        if answer.kind == _NEWADDR:
            found = dict(attributes(answer.body[8:]))
            yield ip_address(found.get(2) or found[1])


@frozen
class Route:
    """Route to a destination; `out` is the index of the interface, or 0."""

    destination: bytes
    length: int
    out: int


def seen_routes(answers: list[Answer]) -> Iterator[Route]:
    """Yield the routes in an answer, including those of the local table."""
    for answer in answers:
        if answer.kind != _NEWROUTE:
            continue
        family, length = answer.body[0], answer.body[1]
        found = dict(attributes(answer.body[12:]))
        size = 4 if family == socket.AF_INET else 16
        out = struct.unpack("=I", found[4])[0] if 4 in found else 0
        yield Route(found.get(1, b"\0" * size), length, out)
