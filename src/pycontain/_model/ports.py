"""Published ports of a container: parsing and checks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from attrs import frozen

from pycontain._model.sizes import shown

HostPort: TypeAlias = "int | str | tuple[str, int | None] | None"
"""A host port; None for a free one; 'address:port', 'first-last', or (address, port)."""
Ports: TypeAlias = "Mapping[int | str, HostPort | Sequence[HostPort]]"
"""A container port, 'port/udp' or 'first-last', to one or more host ports."""

_INNER = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp))?")
_OUTER = re.compile(r"(?:(?P<address>[^\]\[]*|\[[^\]]*\]):)?(?P<first>\d{0,5})(?:-(?P<last>\d{1,5}))?")
_HIGHEST = 65535


@frozen
class Published:
    """A published port.

    Attributes:
        inner: Port in the container.
        protocol: 'tcp' or 'udp'.
        address: Address of the host; '' for all addresses.
        port: Port of the host; None for a free one.
    """

    inner: int
    protocol: str
    address: str
    port: int | None
    preferred: int | None = None
    """Host port to use again if it is free and `port` is None."""


def published(ports: Ports | None) -> tuple[Published, ...]:
    """Return every port of the `ports` option, with ranges expanded.

    Raises:
        ValueError: A port or address is malformed, or a host port occurs twice.
        TypeError: A value has the wrong type.
    """
    if not isinstance(ports, Mapping | None):
        raise TypeError(
            f"ports must map container ports to host ports, as in {{80: 8080}}, got {shown(ports)}"
        )
    found: dict[Published, None] = {}
    for inner, outers in (ports or {}).items():
        first, last, protocol = _inner(inner)
        several = isinstance(outers, Sequence) and not isinstance(outers, str | tuple)
        for outer in outers if several else (outers,):  # type: ignore[union-attr]
            for one in _each(first, last, protocol, outer):  # type: ignore[arg-type]
                found[one] = None
    _check_distinct(found)
    return tuple(found)


def _check_distinct(found: Mapping[Published, None]) -> None:
    seen: dict[tuple[str, str, int], Published] = {}
    for one in found:
        if one.port is not None:
            other = seen.setdefault((one.protocol, one.address, one.port), one)
            if other is not one:
                raise ValueError(f"ports must name each host port once, got {one.port}/{one.protocol} twice")


def port_of(text: int | str) -> tuple[int, str]:
    """Return a single container port and its protocol.

    Raises:
        ValueError: The port is malformed or a range.
    """
    first, last, protocol = _inner(text)
    if first != last:
        raise ValueError(f"the container port must be a single port, got the range {shown(text)}")
    return first, protocol


def _number(number: int, what: object) -> int:
    if not 1 <= number <= _HIGHEST:
        raise ValueError(f"a port must be between 1 and {_HIGHEST}, got {shown(what)}")
    return number


def _inner(text: int | str) -> tuple[int, int, str]:
    if isinstance(text, bool) or not isinstance(text, int | str):
        raise TypeError(f"a container port must be an int or text such as '53/udp', got {shown(text)}")
    if isinstance(text, int):
        return _number(text, text), text, "tcp"
    match = _INNER.fullmatch(text)
    if match is None:
        raise ValueError(
            f"a container port must be such as 80, '80/tcp', '53/udp' or '8000-8010', got {shown(text)}"
        )
    first = _number(int(match[1]), text)
    last = _number(int(match[2] or first), text)
    if last < first:
        raise ValueError(f"a port range must ascend, got {shown(text)}")
    return first, last, match[3] or "tcp"


def _each(first: int, last: int, protocol: str, outer: HostPort) -> Iterator[Published]:
    address, start, end = _outer(outer)
    if start is not None and end is not None and end - start != last - first:
        raise ValueError(
            f"a container port range and its host range must have the same length, "
            f"got {first}-{last} to {shown(outer)}"
        )
    for at in range(last - first + 1):
        port = None if start is None else _number(start + at, outer)
        yield Published(first + at, protocol, address, port)


def _outer(outer: HostPort) -> tuple[str, int | None, int | None]:
    if outer is None:
        return "", None, None
    if isinstance(outer, int) and not isinstance(outer, bool):
        return "", _number(outer, outer), None
    if isinstance(outer, tuple) and len(outer) == 2:
        address, port = outer
        return _address(address), None if port is None else _number(port, outer), None
    if not isinstance(outer, str):
        raise TypeError(f"a host port must be an int, text, (address, port) or None, got {shown(outer)}")
    match = _OUTER.fullmatch(outer)
    if match is None:
        raise ValueError(
            f"a host port must be such as '8080', '127.0.0.1:8080' or '9000-9010', got {shown(outer)}"
        )
    address = "" if match["address"] is None else _address(match["address"].strip("[]"))
    if not match["first"]:
        if match["last"] or not address:
            raise ValueError(f"a host port must have an address or a port, got {shown(outer)}")
        return address, None, None
    first = _number(int(match["first"]), outer)
    return address, first, _number(int(match["last"]), outer) if match["last"] else None


def _address(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a host address must be text, got {shown(text)}")
    from ipaddress import ip_address

    try:
        found = ip_address(text)
    except ValueError as error:
        raise ValueError(f"a host address must be IPv4 or IPv6, got {shown(text)}") from error
    return "" if found.version == 4 and found.is_unspecified else str(found)
