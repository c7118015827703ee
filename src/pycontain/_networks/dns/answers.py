"""Parsing of DNS queries and rendering of answers; the only module that imports dnspython."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset
import dns.update
from attrs import frozen

from pycontain._networks.dns import address_answers
from pycontain._networks.dns.zone import Client, Policy

TTL = 1
"""Seconds; short, since addresses of containers change."""

HEADER = 12
MOST_QUERY = 4096
"""Bytes of a query, which has one question and a few options."""
_MOST_ADDITIONAL = 4
"""Additional records of a query, for EDNS and signatures."""
_MOST_FILTERED = 16384
"""Bytes of an answer that a policy filters: about a thousand addresses."""
_PLAIN = 512
"""Bytes of a datagram for clients without EDNS (RFC 1035)."""
_LARGEST_DATAGRAM = 65507
_LARGEST = 65535
_OUR_PAYLOAD = 1232
_MOST_ALIASES = 16

_QUERY, _ANSWER, _TRUNCATED, _CODE = 0x00, 0x80, 0x02, 0x0F
_OPCODE, _RECURSION = 0x78, 0x01
_POINTER = 0xC0

_TRANSFERS = (dns.rdatatype.AXFR, dns.rdatatype.IXFR)
_HINTS = (dns.rdatatype.SVCB, dns.rdatatype.HTTPS)
"""Types removed under a policy: their address hints would bypass it, and clients fall back to A."""
_ADDRESSES = {4: dns.rdatatype.A, 6: dns.rdatatype.AAAA}
_FOUND = (address_answers.A, address_answers.AAAA)


@frozen(eq=False)
class Query:
    """Parsed query.

    Attributes:
        wire: The message as received.
        message: The parsed message.
        name: Queried name in lower case, without the trailing dot.
        rdtype: Queried type.
        end: Offset of the end of the question.
        limit: Maximum bytes of an answer.
    """

    wire: bytes
    message: dns.message.Message
    name: str
    rdtype: dns.rdatatype.RdataType
    end: int
    limit: int


def parse(wire: bytes, *, stream: bool) -> Query | bytes | None:
    """Parse a query.

    Returns:
        The query, or an error message to send, or None for a message that must not be answered.
    """
    if len(wire) < HEADER or wire[2] & _ANSWER:
        return None
    if wire[2] & _OPCODE != _QUERY:
        return _bare(wire, dns.rcode.NOTIMP)
    end = _question_end(wire)
    # Parsing records is slow, and the sender chooses how many there are.
    is_bare = wire[4:10] == b"\0\1\0\0\0\0" and int.from_bytes(wire[10:12], "big") <= _MOST_ADDITIONAL
    if not is_bare or len(wire) > MOST_QUERY or end is None:
        return _bare(wire, dns.rcode.FORMERR)
    try:
        # Without keys, for a signature is meant for the nameserver.
        message = dns.message.from_wire(wire, keyring=False)
        question = message.question[0]
    except Exception:  # noqa: BLE001  the parser raises many types on malformed input
        return _bare(wire, dns.rcode.FORMERR)
    limit = _LARGEST
    if not stream:
        limit = min(max(message.payload if message.edns >= 0 else 0, _PLAIN), _LARGEST_DATAGRAM)
    name = question.name.to_text(omit_final_dot=True).lower()
    query = Query(wire, message, name, question.rdtype, end, limit)
    if message.edns > 0:
        return error(query, dns.rcode.BADVERS)
    if question.rdtype in _TRANSFERS:
        return error(query, dns.rcode.REFUSED)
    return query


@frozen
class Shape:
    """Everything that an answer with addresses depends on, except the query's id."""

    wire: bytes
    addresses: tuple[str, ...]
    begin: int


def shape(client: Client, query: Query, turn: Callable[[Query], int]) -> Shape | None:
    """Return the answer of the client's networks for a name, or None; `turn` counts queries for rotation."""
    if not _is_asked(query):
        return None
    addresses = client.addresses(query.name)
    if addresses is None:
        return None
    begin = 0
    if len(addresses) > 1:
        of_ipv6 = sum(":" in one for one in addresses)
        begin = turn(query) % (max(of_ipv6, 1) * max(len(addresses) - of_ipv6, 1))
    return Shape(query.wire[2:], addresses, begin)


def rendered(query: Query, shape: Shape) -> bytes:
    """Return the bytes of an answer."""
    return _render(query, _address_sets(query, shape))


def known_otherwise(client: Client, query: Query) -> bytes | None:
    """Return the answer to a reverse query, or None."""
    name = _reverse(client, query.name) if _is_asked(query) else None
    if name is None:
        return None
    if query.rdtype not in (dns.rdatatype.PTR, dns.rdatatype.ANY):
        return _render(query, [])
    question, target = query.message.question[0], dns.name.from_text(name)
    return _render(query, [dns.rrset.from_text(question.name, TTL, "IN", "PTR", target.to_text())])


def _is_asked(query: Query) -> bool:
    return query.message.question[0].rdclass in (dns.rdataclass.IN, dns.rdataclass.ANY)


def error(query: Query, code: dns.rcode.Rcode) -> bytes:
    """Return an error message with a response code."""
    response = _response(query)
    response.set_rcode(code)
    return _fitting(query, response)


def refused(query: Query) -> bytes:
    """Return the answer REFUSED, for a name that the client may not resolve."""
    return error(query, dns.rcode.REFUSED)


def failed(query: Query) -> bytes:
    """Return the answer SERVFAIL."""
    return error(query, dns.rcode.SERVFAIL)


def answers(query: Query, ident: bytes, wire: bytes) -> bool:
    """Return whether a message answers this query, sent with the 2-byte id `ident`."""
    if len(wire) < HEADER or wire[:2] != ident or wire[2] & (_ANSWER | _OPCODE) != _ANSWER:
        return False
    if wire[4:6] == b"\0\0":
        return not_able(wire)  # servers omit a question that they did not understand
    name, kind = slice(HEADER, query.end - 4), slice(query.end - 4, query.end)
    return (
        wire[4:6] == b"\0\1"
        and wire[name].lower() == query.wire[name].lower()
        and wire[kind] == query.wire[kind]
    )


def not_able(wire: bytes) -> bool:
    """Return whether the response code is one after which another server should be tried."""
    return wire[3] & 0xF in (
        dns.rcode.FORMERR,
        dns.rcode.SERVFAIL,
        dns.rcode.NOTIMP,
        dns.rcode.REFUSED,
    )


def handed_on(query: Query, wire: bytes, policy: Policy | None) -> bytes:
    """Return the answer for the client: filtered by the policy and truncated to the client's limit."""
    wire = query.wire[:2] + wire[2:]
    if policy is not None:
        return _filtered(query, wire, policy)
    if len(wire) <= query.limit:
        return wire
    response = _response(query)
    response.flags |= dns.flags.TC
    return _fitting(query, response)


def _filtered(query: Query, wire: bytes, policy: Policy) -> bytes:
    if len(wire) > _MOST_FILTERED:
        raise ValueError(f"an answer of {len(wire)} bytes is too long to be filtered")
    records = address_answers.read(wire, query.end) if _is_simple(query, wire) else None
    if records is not None:
        return _filtered_addresses(query, wire, records, policy)
    try:
        message = dns.message.from_wire(wire, keyring=False)
    except dns.exception.DNSException:
        if not wire[2] & _TRUNCATED:
            raise
        message = _response(query)
        message.flags |= dns.flags.TC
    kept_records = [one for one in message.answer if one.rdtype not in _HINTS]
    owners = _chain(query.message.question[0].name, kept_records)
    found = [one for one in kept_records if one.rdtype in _ADDRESSES.values() and one.name in owners]
    allowed: set[str] = set()
    if found:
        addresses = [_address(rdata) for one in found for rdata in one]
        ttl = min(one.ttl for one in found)
        allowed.update(_address_text(one) for one in policy.learned(query.name, addresses, ttl))
    message.answer = [one for one in kept_records if one.rdtype not in _ADDRESSES.values()]
    for one in found:
        kept = [rdata for rdata in one if _address(rdata) in allowed]
        if kept:
            message.answer.append(dns.rrset.from_rdata_list(one.name, one.ttl, kept))
    message.additional = []
    return _fitting(query, message)


def _is_simple(query: Query, wire: bytes) -> bool:
    """Return whether the answer repeats the question and the query asks for nothing but the answer.

    A query with EDNS flags wants signatures, and a code that EDNS extends is no success.
    """
    repeats = wire[4:6] == b"\0\1" and len(wire) >= query.end and not wire[3] & _CODE
    return repeats and not query.message.ednsflags


def _filtered_addresses(
    query: Query, wire: bytes, records: list[address_answers.Record], policy: Policy
) -> bytes:
    asked = query.wire[HEADER : query.end - 4]
    names = address_answers.chain(asked, records, _MOST_ALIASES)
    found = [one for one in records if one.kind in _FOUND and one.owner.lower() in names]
    ttl = min((one.ttl for one in found), default=0)
    addresses = [one.address for one in found]
    allowed = set(policy.learned(query.name, addresses, ttl)) if found else set()
    kept = [one for one in records if one.kind == address_answers.CNAME]
    kept += [one for one, address in zip(found, addresses, strict=True) if address in allowed]
    return address_answers.write(
        query.wire[:2] + query.wire[HEADER : query.end],
        wire[2:4],
        kept,
        limit=query.limit,
        payload=_OUR_PAYLOAD if query.message.edns >= 0 else 0,
    )


def _chain(name: dns.name.Name, answer: Sequence[dns.rrset.RRset]) -> set[dns.name.Name]:
    """Return a name and the names that it is an alias of in the answer."""
    targets = {one.name: rdata.target for one in answer if one.rdtype == dns.rdatatype.CNAME for rdata in one}
    chain = {name}
    for _ in range(_MOST_ALIASES):
        name = targets.get(name, name)
        chain.add(name)
    return chain


def _address(rdata: dns.rdata.Rdata) -> str:
    return _address_text(rdata.to_text())


def _address_text(address: str) -> str:
    return str(ipaddress.ip_address(address))


def _address_sets(query: Query, shape: Shape) -> list[dns.rrset.RRset]:
    name = query.message.question[0].name
    sets = []
    for version, kind in _ADDRESSES.items():
        fitting = [one for one in shape.addresses if (":" in one) == (version == 6)]
        if fitting and query.rdtype in (kind, dns.rdatatype.ANY):
            begin = shape.begin % len(fitting)
            sets.append(dns.rrset.from_text(name, TTL, "IN", kind, *fitting[begin:], *fitting[:begin]))
    return sets


def _reverse(client: Client, name: str) -> str | None:
    if not name.endswith((".in-addr.arpa", ".ip6.arpa")):
        return None
    try:
        reverse = dns.name.from_text(name)
        address = _address_text(dns.reversename.to_address(reverse))
        # Older versions of dnspython accept names with too few digits.
        return client.name_of(address) if dns.reversename.from_address(address) == reverse else None
    except (dns.exception.DNSException, ValueError):
        return None


def _response(query: Query) -> dns.message.Message:
    return dns.message.make_response(query.message, recursion_available=True, our_payload=_OUR_PAYLOAD)


def _render(query: Query, sets: list[dns.rrset.RRset]) -> bytes:
    response = _response(query)
    response.flags |= dns.flags.AA
    response.answer = sets
    return _fitting(query, response)


def _fitting(query: Query, message: dns.message.Message) -> bytes:
    return message.to_wire(max_size=query.limit, prefer_truncation=True, want_shuffle=False)


def _bare(wire: bytes, code: dns.rcode.Rcode) -> bytes:
    """Return a message with only a header, for a query that cannot be parsed."""
    return wire[:2] + bytes([_ANSWER | (wire[2] & (_OPCODE | _RECURSION)), 0x80 | code]) + bytes(8)


def _question_end(wire: bytes) -> int | None:
    """Return the offset of the end of the question; None if it is truncated or has a compressed name."""
    at = HEADER
    while at < len(wire) and wire[at]:
        if wire[at] & _POINTER:
            return None
        at += 1 + wire[at]
    return at + 5 if at + 5 <= len(wire) else None
