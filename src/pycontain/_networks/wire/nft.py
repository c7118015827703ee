"""nf_tables messages: tables, chains, sets and the expressions of rules.  No I/O.

`nft --debug=netlink` shows the expressions of a rule; the numbers come from linux/netfilter/nf_tables.h.
Registers 8 and up hold 4 bytes each; registers 1 to 4 are 16 bytes each and overlap them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network
from typing import Literal

from attrs import evolve, frozen

from pycontain._kernel.netlink import (
    APPEND,
    CREATE,
    DUMP,
    EXCL,
    Answer,
    Message,
    attribute,
    attributes,
    nested,
)

INET, BRIDGE = 1, 7
"""Address families of nfnetlink."""
PREROUTING, INPUT, FORWARD, _, POSTROUTING = range(5)
"""Hooks of the inet and bridge families."""

_SUBSYSTEM = 10 << 8
_NEWTABLE, _DELTABLE, _NEWCHAIN, _DELCHAIN = 0, 2, 3, 5
_NEWRULE, _DELRULE, _NEWSET, _NEWSETELEM, _GETSETELEM, _DELSETELEM = 6, 8, 9, 12, 13, 14
_OWNED, _PERSISTENT = 2, 4
_HEADER = 16
MOST_AT_ONCE = 64 << 10
"""Bytes of messages in one transaction: net.core.wmem_default is 208 KiB, which also counts overhead."""
MOST_ELEMENTS = 512
"""Elements of one message: the list is an attribute, whose length has 16 bits."""
INTERVAL, MAP, TIMEOUT, EVAL = 0x4, 0x8, 0x10, 0x20
"""Flags of sets."""

_TYPES = {
    "address": (7, 4),
    "address6": (8, 16),
    "mac": (9, 6),
    "protocol": (12, 1),
    "port": (13, 2),
    "mark": (19, 4),
    "interface": (41, 16),
    "verdict": (0xFFFFFF00, 0),
}
"""Type number of the nft tool, which it uses to print a set, and length in bytes."""
FieldType = Literal["address", "address6", "mac", "protocol", "port", "mark", "interface", "verdict"]


def _be(value: int) -> bytes:
    return struct.pack(">I", value & 0xFFFFFFFF)


def _message(kind: int, family: int, *attributes: bytes, flags: int = 0) -> Message:
    return Message(_SUBSYSTEM | kind, struct.pack("=BBH", family, 0, 0) + b"".join(attributes), flags)


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, attribute(1, name), nested(2, *attributes))


def interface(name: str) -> bytes:
    """Return an interface name in the form that a register has."""
    return name.encode().ljust(16, b"\0")


def address(text: str) -> bytes:
    """Return an IPv4 or IPv6 address in network byte order."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def key(*fields: bytes | int) -> bytes:
    """Return the concatenation of the fields of a key, each padded to 4 bytes; an int is a protocol."""
    parts = [bytes([field]) if isinstance(field, int) else field for field in fields]
    return b"".join(part + b"\0" * (-len(part) % 4) for part in parts)


def port(number: int) -> bytes:
    """Return a port in network byte order."""
    return struct.pack(">H", number)


def table(name: str, family: int = INET, *, stays: bool = False) -> Message:
    """Return a request for a table that only its socket can change, and that is removed with that socket.

    Args:
        name: The name of the table.
        family: The address family.
        stays: Keep the table when the socket is closed (NFT_TABLE_F_PERSIST, Linux 6.9). Any privileged
            process can remove it then.
    """
    kind = _OWNED | _PERSISTENT if stays else _OWNED
    return _message(_NEWTABLE, family, attribute(1, name), attribute(2, _be(kind)), flags=CREATE | EXCL)


def drop_table(name: str, family: int = INET) -> Message:
    """Return a request that removes a table with its contents."""
    return _message(_DELTABLE, family, attribute(1, name))


def parts(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Split messages into transactions that fit into the default send buffer of a socket."""
    part: list[Message] = []
    size = 0
    for message in messages:
        if part and size + len(message.body) + _HEADER > MOST_AT_ONCE:
            yield part
            part, size = [], 0
        part.append(message)
        size += len(message.body) + _HEADER
    if part:
        yield part


def chain(table: str, name: str, family: int = INET) -> Message:
    """Return a request for a chain without a hook, a target of jumps."""
    return _message(_NEWCHAIN, family, attribute(1, table), attribute(3, name), flags=CREATE | EXCL)


def base_chain(table: str, name: str, kind: str, hook: int, priority: int, family: int = INET) -> Message:
    """Return a request for a chain at a hook of the kernel, with the policy accept."""
    return _message(
        _NEWCHAIN,
        family,
        attribute(1, table),
        attribute(3, name),
        nested(4, attribute(1, _be(hook)), attribute(2, _be(priority))),
        attribute(5, _be(1)),
        attribute(7, kind),
        flags=CREATE | EXCL,
    )


def drop_chain(table: str, name: str) -> Message:
    """Return a request that removes a chain without references."""
    return _message(_DELCHAIN, INET, attribute(1, table), attribute(3, name))


def rule(table: str, chain: str, *expressions: bytes, family: int = INET) -> Message:
    """Return a request that appends a rule to a chain."""
    return _message(
        _NEWRULE,
        family,
        attribute(1, table),
        attribute(2, chain),
        nested(4, *expressions),
        flags=CREATE | APPEND,
    )


@frozen
class Set:
    """Set of keys with these fields, or a map from them to the fields `to`."""

    table: str
    name: str
    fields: tuple[FieldType, ...]
    to: tuple[FieldType, ...] = ()
    flags: int = 0
    size: int = 0
    timeout: int = 0
    """Milliseconds."""
    family: int = INET

    def new(self, number: int) -> Message:
        """Return a request for the set; its number must be unique within a transaction."""
        kind, size = _folded(self.fields)
        flags = self.flags | (MAP if self.to else 0)
        description = []
        if self.size:
            description.append(attribute(1, _be(self.size)))
        parts = [
            attribute(1, self.table),
            attribute(2, self.name),
            attribute(4, _be(kind)),
            attribute(5, _be(size)),
        ]
        if self.to:
            data_kind, data_size = _folded(self.to)
            parts.append(attribute(6, _be(data_kind)))
            if data_size:
                parts.append(attribute(7, _be(data_size)))
        if description:
            parts.append(nested(9, *description))
        if self.timeout:
            parts.append(attribute(11, struct.pack(">Q", self.timeout)))
        parts += [attribute(3, _be(flags)), attribute(10, _be(number))]
        return _message(_NEWSET, self.family, *parts, flags=CREATE | EXCL)

    def put(self, *elements: Element) -> Message:
        """Return a request that adds elements."""
        return self._change(_NEWSETELEM, elements, CREATE)

    def take(self, *elements: Element) -> Message:
        """Return a request that removes elements; the kernel refuses it if one is absent."""
        return self._change(_DELSETELEM, elements, 0)

    def put_all(self, elements: Sequence[Element]) -> list[Message]:
        """Return requests that add any number of elements."""
        return [self.put(*some) for some in _split(elements)]

    def take_all(self, elements: Sequence[Element]) -> list[Message]:
        """Return requests that remove any number of elements, including expired ones.

        The removal of an absent element fails its transaction, so each is added first, which is a no-op
        for one that is present.
        """
        return [
            message
            for some in _split(elements)
            for message in (self.put(*some), self.take(*(evolve(one, timeout=0) for one in some)))
        ]

    def dump(self) -> Message:
        """Return a request for all elements."""
        return _message(
            _GETSETELEM, self.family, attribute(1, self.table), attribute(2, self.name), flags=DUMP
        )

    def _change(self, kind: int, elements: Sequence[Element], flags: int) -> Message:
        packed = [element.packed() for element in elements]
        return _message(
            kind,
            self.family,
            attribute(1, self.table),
            attribute(2, self.name),
            nested(3, *packed),
            flags=flags,
        )


def _split(elements: Sequence[Element]) -> Iterator[Sequence[Element]]:
    for at in range(0, len(elements), MOST_ELEMENTS):
        yield elements[at : at + MOST_ELEMENTS]


def seen_elements(answers: Sequence[Answer]) -> Iterator[dict[int, bytes]]:
    """Yield the attributes of each set element in an answer."""
    for answer in answers:
        for kind, elements in attributes(answer.body[4:]):
            if kind == 3:
                yield from (dict(attributes(one)) for _, one in attributes(elements))


def _folded(fields: Sequence[FieldType]) -> tuple[int, int]:
    kind = size = 0
    for field in fields:
        number, length = _TYPES[field]
        kind = kind << 6 | number if len(fields) > 1 else number
        size += length + (-length % 4) if len(fields) > 1 else length
    return kind, size


@frozen
class Element:
    """Element of a set: a key, and a value or chain if the set is a map."""

    key: bytes
    value: bytes = b""
    jump: str = ""
    """Chain to jump to, in a verdict map."""
    ends: bool = False
    """Whether the key is the first one after an interval."""
    timeout: int = 0
    """Milliseconds until it expires; 0 for the default of the set."""

    def packed(self) -> bytes:
        """Return the netlink attribute of the element."""
        parts = [nested(1, attribute(1, self.key))]
        if self.value:
            parts.append(nested(2, attribute(1, self.value)))
        if self.jump:
            parts.append(nested(2, nested(2, attribute(1, _be(_VERDICTS["jump"])), attribute(2, self.jump))))
        if self.ends:
            parts.append(attribute(3, _be(1)))
        if self.timeout:
            parts.append(attribute(4, struct.pack(">Q", self.timeout)))
        return nested(1, *parts)


# Expressions -----------------------------------------------------------------------------------------------

_META = {"mark": 3, "iifname": 6, "oifname": 7, "nfproto": 15, "l4proto": 16}
_CT = {"state": 0, "direction": 1, "status": 2, "mark": 3}
_LINK, _NETWORK, _TRANSPORT = 0, 1, 2
_VERDICTS = {"drop": 0, "accept": 1, "jump": -3, "return": -5}


def meta(what: str, register: int = 1) -> bytes:
    """Return an expression that loads metadata of the packet."""
    return _expression("meta", attribute(2, _be(_META[what])), attribute(1, _be(register)))


def ct(what: str, register: int = 1) -> bytes:
    """Return an expression that loads a property of the tracked connection."""
    return _expression("ct", attribute(2, _be(_CT[what])), attribute(1, _be(register)))


def set_ct_mark(register: int = 1) -> bytes:
    """Return an expression that sets the mark of the connection."""
    return _expression("ct", attribute(2, _be(_CT["mark"])), attribute(4, _be(register)))


def load(base: Literal["link", "network", "transport"], offset: int, size: int, register: int = 1) -> bytes:
    """Return an expression that loads bytes of a header."""
    place = {"link": _LINK, "network": _NETWORK, "transport": _TRANSPORT}[base]
    return _expression(
        "payload",
        attribute(1, _be(register)),
        attribute(2, _be(place)),
        attribute(3, _be(offset)),
        attribute(4, _be(size)),
    )


def compare(data: bytes, register: int = 1, *, equal: bool = True) -> bytes:
    """Return an expression that matches if the register begins with data, or does not."""
    return _expression(
        "cmp",
        attribute(1, _be(register)),
        attribute(2, _be(0 if equal else 1)),
        nested(3, attribute(1, data)),
    )


def any_bit(wanted: int, register: int = 1) -> bytes:
    """Return expressions that match if one of these 32 bits is set."""
    return bits(struct.pack("=I", wanted), register) + compare(b"\0" * 4, register, equal=False)


def bits(mask: bytes, register: int = 1) -> bytes:
    """Return an expression that masks the register."""
    return _expression(
        "bitwise",
        attribute(1, _be(register)),
        attribute(2, _be(register)),
        attribute(3, _be(len(mask))),
        nested(4, attribute(1, mask)),
        nested(5, attribute(1, b"\0" * len(mask))),
    )


def towards(network: IPv4Network) -> bytes:
    """Return expressions that match IPv4 destinations in the network."""
    return load("network", 16, 4) + bits(network.netmask.packed) + compare(network.network_address.packed)


def lookup(name: str, register: int = 1, *, to: int = 0, absent: bool = False) -> bytes:
    """Return an expression that matches if the set has the key, or lacks it; for a map it loads the value."""
    parts = [attribute(1, name), attribute(2, _be(register))]
    if to:
        parts.append(attribute(3, _be(to)))
    if absent:
        parts.append(attribute(5, _be(1)))
    return _expression("lookup", *parts)


def remember(name: str, register: int = 1) -> bytes:
    """Return an expression that adds the key to a set, with a counter."""
    return _into_set(name, 1, register, attribute(1, "counter"))


def _into_set(name: str, operation: int, register: int, *expression: bytes) -> bytes:
    return _expression(
        "dynset",
        attribute(1, name),
        attribute(3, _be(operation)),
        attribute(4, _be(register)),
        nested(7, *expression),
    )


def has_more_connections(name: str, most: int, register: int = 1) -> bytes:
    """Return an expression that matches if more than `most` tracked connections have the key."""
    over = nested(2, attribute(1, _be(most)), attribute(2, _be(1)))
    return _into_set(name, 0, register, attribute(1, "connlimit"), over)


def is_within(name: str, most: int, seconds: int, register: int = 1) -> bytes:
    """Return an expression that matches a burst of `most` packets of a key, refilled over `seconds`."""
    rate = nested(
        2,
        attribute(1, struct.pack(">Q", most)),
        attribute(2, struct.pack(">Q", seconds)),
        attribute(3, _be(most)),
    )
    return _into_set(name, 0, register, attribute(1, "limit"), rate)


def verdict(what: Literal["accept", "drop", "jump", "return"], chain: str = "") -> bytes:
    """Return an expression that sets the verdict on the packet."""
    parts = [attribute(1, _be(_VERDICTS[what]))]
    if chain:
        parts.append(attribute(2, chain))
    return _expression("immediate", attribute(1, _be(0)), nested(2, nested(2, *parts)))


def reset() -> bytes:
    """Return an expression that rejects with a TCP reset."""
    return _expression("reject", attribute(1, _be(1)))


def prohibit() -> bytes:
    """Return an expression that rejects with the ICMP code "administratively prohibited"."""
    return _expression("reject", attribute(1, _be(2)), attribute(2, b"\x03"))


def judge(name: str, register: int = 1) -> bytes:
    """Return an expression that applies the verdict of a verdict map."""
    return _expression("lookup", attribute(1, name), attribute(2, _be(register)), attribute(3, _be(0)))


def masquerade() -> bytes:
    """Return an expression that masquerades: source NAT to the address of the outgoing interface."""
    return _expression("masq")


def local_destination() -> bytes:
    """Return expressions that match local destinations."""
    loaded = _expression("fib", attribute(1, _be(1)), attribute(2, _be(3)), attribute(3, _be(2)))
    return loaded + compare(struct.pack("=I", 2))


def redirect(address_register: int, port_register: int) -> bytes:
    """Return an expression for destination NAT to the IPv4 address and port in two registers."""
    return _expression(
        "nat",
        attribute(1, _be(1)),
        attribute(2, _be(2)),
        attribute(3, _be(address_register)),
        attribute(5, _be(port_register)),
    )
