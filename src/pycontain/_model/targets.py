"""Targets of an `Egress`: names and address ranges, with ports."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from attrs import frozen

from pycontain._model.sizes import shown

METADATA = tuple(
    IPv4Network(one) for one in ("169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32")
)
METADATA6 = ("fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe")
"""Addresses of cloud metadata services: AWS and most others, Alibaba, Azure, Oracle, Google."""
_PROTOCOLS = IPv4Network("192.0.0.0/24")
"""Range that is not public (RFC 6890), although some versions of Python say that it is."""
_TARGET = re.compile(r"(?P<what>[^:]+?)(?::(?P<port>\d{1,5}))?(?:/(?P<protocol>tcp|udp))?")
_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}(/\d{1,2})?")
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*\.?")


@frozen
class Target:
    """A permitted name or address range.

    Attributes:
        text: The target as the caller wrote it.
        name: The name in lower case, maybe with a leading '*.'; '' for a range.
        network: The address range, or None for a name.
        port: The port, or 0 for all ports.
        protocol: 'tcp', 'udp', or '' for both.
    """

    text: str
    name: str
    network: IPv4Network | None
    port: int
    protocol: str

    def names(self, name: str) -> bool:
        """Return whether the target covers a name, given in lower case without the final dot."""
        if "\\" in name:
            return False  # an escaped dot is part of a label: `x\\.example.org` is directly below org
        if self.name.startswith("*."):
            return name.endswith(self.name[1:])
        return bool(self.name) and name == self.name

    def covers(self, address: IPv4Address) -> bool:
        """Return whether the range contains an address.

        Addresses of METADATA are only covered by a range within METADATA, so not by 0.0.0.0/0.
        """
        if self.network is None or address not in self.network:
            return False
        return self.is_metadata or not any(address in one for one in METADATA)

    @property
    def is_metadata(self) -> bool:
        """Whether the range lies within METADATA."""
        return self.network is not None and any(self.network.subnet_of(one) for one in METADATA)


@functools.lru_cache(maxsize=8192)
def is_public(address: IPv4Address) -> bool:
    """Return whether an address may be the answer for a name of another party."""
    if address.is_multicast or address in _PROTOCOLS or any(address in one for one in METADATA):
        return False
    return address.is_global


def target_of(text: str) -> Target:
    """Parse 'example.org:443', '*.example.org', '10.0.0.0/8' or '10.0.0.1:53/udp'.

    Raises:
        ValueError: The text is malformed.
        TypeError: The value is not text.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"an Egress target must be text such as 'example.org:443' or '10.0.0.0/8', got {shown(text)}"
        )
    match = _TARGET.fullmatch(text.strip().lower())
    problem = f"an Egress target must be such as 'example.org:443' or '10.0.0.0/8', got {shown(text)}"
    if match is None:
        raise ValueError(problem)
    port, protocol = int(match["port"] or 0), match["protocol"] or ""
    if match["port"] and not 1 <= port <= 65535:
        raise ValueError(f"the port of an Egress target must be between 1 and 65535, got {shown(text)}")
    what = match["what"]
    if _ADDRESS.fullmatch(what):
        try:
            return Target(text, "", IPv4Network(what), port, protocol)
        except ValueError as error:
            raise ValueError(f"an Egress target must be an IPv4 network: {error}") from error
    if not _NAME.fullmatch(what) or len(what) > 253:
        raise ValueError(problem)
    return Target(text, what.rstrip("."), None, port, protocol)


class TargetIndex:
    """Index of targets by name and range, with a lookup time that does not depend on their number."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._exact: dict[str, list[Target]] = {}
        self._below: dict[str, list[Target]] = {}
        self._ranges: dict[bool, dict[int, set[int]]] = {False: {}, True: {}}
        for target in targets:
            if target.network is not None:
                bases = self._ranges[target.is_metadata].setdefault(int(target.network.netmask), set())
                bases.add(int(target.network.network_address))
            elif target.name.startswith("*."):
                self._below.setdefault(target.name[1:], []).append(target)
            else:
                self._exact.setdefault(target.name, []).append(target)

    def names(self, name: str) -> list[Target]:
        """Return the targets that cover a name, given in lower case without the final dot."""
        if "\\" in name:
            return []  # an escaped dot is part of a label: `x\\.example.org` is directly below org
        found = list(self._exact.get(name, ()))
        at = name.find(".")
        while at >= 0:
            found += self._below.get(name[at:], ())
            at = name.find(".", at + 1)
        return found

    def covers(self, address: IPv4Address) -> bool:
        """Return whether a range covers an address; METADATA as in `Target.covers`."""
        number = int(address)
        ranges = self._ranges[any(address in one for one in METADATA)]
        return any(number & mask in bases for mask, bases in ranges.items())
