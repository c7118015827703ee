"""Answers that consist of addresses and aliases, read and written without dnspython.

dnspython takes 35 ms for an answer of 500 addresses, and a container can ask for one again and again on the
thread of the name service.  The form of such an answer is simple (RFC 1035, sections 3.2.1 and 4.1), and it
is read here in a tenth of that time.  Every other answer is left to dnspython.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator

from attrs import frozen

A, CNAME, AAAA, _OPT = 1, 5, 28, 41
_IN = 1
_LENGTHS = {A: 4, AAAA: 16}
_HEADER = 12
_POINTER, _MOST_OFFSET = 0xC0, 0x3FFF
_ROOT = b"\0"
_TRUNCATED = 0x02
_LONGEST_NAME = 255
_MOST_STEPS = 144
"""Labels and pointers of one name: a name has at most 127 labels."""
_FIXED = struct.Struct(">HHIH")
"""Type, class, time to live and length of the data of a record."""


@frozen
class Record:
    """One record of an answer.

    Attributes:
        owner: Its name on the wire, without compression.
        kind: `A`, `AAAA` or `CNAME`.
        ttl: Seconds.
        data: An address in network order, or the name that an alias refers to, without compression.
    """

    owner: bytes
    kind: int
    ttl: int
    data: bytes

    @property
    def address(self) -> str:
        """Return the address as text, in the spelling of `ipaddress`."""
        if self.kind == A:
            return socket.inet_ntoa(self.data)
        return str(ipaddress.IPv6Address(self.data))


def read(wire: bytes, begin: int) -> list[Record] | None:
    """Return the records of the answer section.

    Args:
        wire: A whole message with one question.
        begin: The offset of its answer section.

    Returns:
        None for an answer that has no address, that has anything but addresses and aliases of class IN, or
        that is not well formed.
    """
    try:
        records = list(_records(wire, begin, int.from_bytes(wire[6:8], "big")))
    except (ValueError, IndexError, struct.error):
        return None
    return records if any(one.kind != CNAME for one in records) else None


def _records(wire: bytes, at: int, count: int) -> Iterator[Record]:
    known: dict[bytes, bytes] = {}
    for _ in range(count):
        owner, at = _name(wire, at, known)
        kind, of_class, ttl, length = _FIXED.unpack_from(wire, at)
        at += _FIXED.size
        end = at + length
        if of_class != _IN or end > len(wire):
            raise ValueError("not a whole record of class IN")
        if kind == CNAME:
            data, after = _name(wire, at, known)
            if after != end:
                raise ValueError("the name is not as long as its record")
        elif _LENGTHS.get(kind) == length:
            data = wire[at:end]
        else:
            raise ValueError("neither an address nor an alias")
        yield Record(owner, kind, ttl, data)
        at = end


def _name(wire: bytes, at: int, known: dict[bytes, bytes]) -> tuple[bytes, int]:
    """Return the name at an offset and the offset after it.

    Args:
        wire: The message.
        at: Where the name begins.
        known: Names by the pointer that refers to them, added to here.
    """
    pointer = wire[at : at + 2] if wire[at] >= _POINTER else b""
    if pointer in known:
        return known[pointer], at + 2
    labels: list[bytes] = []
    after, limit = 0, at
    for _ in range(_MOST_STEPS):
        size = wire[at]
        if size >= _POINTER:
            after = after or at + 2
            at = int.from_bytes(wire[at : at + 2], "big") & _MOST_OFFSET
            if at >= limit:
                raise ValueError("a pointer that does not refer to an earlier name")
            limit = at
            continue
        labels.append(wire[at : at + 1 + size])
        at += 1 + size
        if not size:
            break
        if size >= 0x40:
            raise ValueError("a label of an unknown type")
    name = b"".join(labels)
    if not name.endswith(_ROOT) or labels[-1] != _ROOT or len(name) > _LONGEST_NAME:
        raise ValueError("a name that does not end or is too long")
    if pointer:
        known[pointer] = name
    return name, after or at


def chain(name: bytes, records: Iterable[Record], most: int) -> set[bytes]:
    """Return a name and the names that it is an alias of, in lower case.

    Args:
        name: The name on the wire.
        records: Of the answer.
        most: How many aliases are followed.
    """
    targets = {one.owner.lower(): one.data.lower() for one in records if one.kind == CNAME}
    name = name.lower()
    found = {name}
    for _ in range(most):
        name = targets.get(name, name)
        found.add(name)
    return found


def write(question: bytes, flags: bytes, records: Iterable[Record], *, limit: int, payload: int) -> bytes:
    """Return a message.

    Args:
        question: Its id and question section, as `id + section`.
        flags: The two bytes of its flags.
        records: Of its answer section.  Those that do not fit are left out, and the message says so.
        limit: Bytes of the longest message.
        payload: Bytes of the longest accepted datagram, announced by EDNS; 0 for a message without EDNS.
    """
    ident, section = question[:2], question[2:]
    extra = _ROOT + _FIXED.pack(_OPT, payload, 0, 0) if payload else b""
    out = bytearray(_HEADER) + section
    offsets = {section[:-4].lower(): _HEADER}
    count, truncated = 0, 0
    for one in records:
        record = _encode(one, len(out), offsets)
        if len(out) + len(record) + len(extra) > limit:
            truncated = _TRUNCATED
            break
        out += record
        count += 1
    counts = struct.pack(">HHHH", 1, count, 0, 1 if extra else 0)
    out[:_HEADER] = ident + bytes([flags[0] | truncated, flags[1]]) + counts
    return bytes(out + extra)


def _encode(record: Record, at: int, offsets: dict[bytes, int]) -> bytes:
    """Return a record as it is written at an offset; offsets: of the names that are written already."""
    owner = _compressed(record.owner, at, offsets)
    begin = at + len(owner) + _FIXED.size
    data = _compressed(record.data, begin, offsets) if record.kind == CNAME else record.data
    return owner + _FIXED.pack(record.kind, _IN, record.ttl, len(data)) + data


def _compressed(name: bytes, at: int, offsets: dict[bytes, int]) -> bytes:
    offset = offsets.setdefault(name.lower(), at)
    if offset == at or offset > _MOST_OFFSET:
        return name
    return struct.pack(">H", _POINTER << 8 | offset)
