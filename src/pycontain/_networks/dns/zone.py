"""Names on networks: values that the name service reads while other threads change them.

A change replaces the whole table, so that readers need no lock and never see half of it.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterable, Mapping
from typing import Protocol

from attrs import define, evolve, field, frozen

from pycontain._model.names import HOST_NAMES


def _without_dots(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.rstrip(".") for name in names)


def _canonical(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return addresses in canonical form; `10.0.0.2/16` and `fd00:0::2` are accepted."""
    return tuple(str(ipaddress.ip_interface(address).ip) for address in addresses)


@frozen
class Entry:
    """Names and addresses of one container.

    Attributes:
        names: Case does not matter; the first is the answer to reverse queries.
        addresses: IPv4 and IPv6 addresses.

    Raises:
        ValueError: A text is not an address.
    """

    names: tuple[str, ...] = field(converter=_without_dots)
    addresses: tuple[str, ...] = field(converter=_canonical)


@frozen
class _Table:
    """Entries by key, and the keys by name and by address, in order of insertion."""

    entries: Mapping[str, Entry] = {}
    named: Mapping[str, tuple[str, ...]] = {}
    placed: Mapping[str, tuple[str, ...]] = {}

    def with_entry(self, key: str, entry: Entry) -> _Table:
        table = self.without(key)
        return evolve(
            table,
            entries={**table.entries, key: entry},
            named=_with(table.named, key, _lowered(entry)),
            placed=_with(table.placed, key, entry.addresses),
        )

    def without(self, key: str) -> _Table:
        entry = self.entries.get(key)
        if entry is None:
            return self
        return _Table(
            {one: kept for one, kept in self.entries.items() if one != key},
            _without(self.named, key, _lowered(entry)),
            _without(self.placed, key, entry.addresses),
        )


class Zone:
    """The names of one network; thread-safe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._suffix = f".{name.lower()}"
        self._table = _Table()
        self._lock = threading.Lock()

    def put(self, key: str, entry: Entry) -> None:
        """Add or replace the entry of a container, under a key that the caller chooses."""
        with self._lock:
            self._table = self._table.with_entry(key, entry)

    def drop(self, key: str) -> None:
        """Remove the entry of a key; no-op if there is none."""
        with self._lock:
            self._table = self._table.without(key)

    def addresses(self, name: str) -> tuple[str, ...] | None:
        """Return the addresses of a lower-case name, also with the network as suffix, or None."""
        table = self._table
        keys = table.named.get(name, ())
        if name.endswith(self._suffix):
            keys += table.named.get(name[: -len(self._suffix)], ())
        if not keys:
            return None
        return tuple(address for key in dict.fromkeys(keys) for address in table.entries[key].addresses)

    def name_of(self, address: str) -> str | None:
        """Return the full name of the container at an address, or None."""
        table = self._table
        for key in table.placed.get(address, ()):
            names = table.entries[key].names
            if names:
                return f"{names[0]}.{self.name}"
        return None


class Policy(Protocol):
    """Names that a container may resolve; called by the thread of the name service.

    Names are lower-case, without the trailing dot. An exception makes the answer SERVFAIL.
    """

    def allows(self, name: str) -> bool:
        """Return whether the container may resolve a name."""

    def learned(self, name: str, addresses: list[str], ttl: int) -> list[str]:
        """Return the addresses that the answer may contain, which is sent afterwards; ttl: seconds."""

    def refused(self, name: str) -> None:
        """Record a query for a name that is not allowed."""


@define(eq=False)
class Client:
    """Names that one container can resolve.

    New values apply from the next query on, except `servers`.

    Attributes:
        own: Its own names, which resolve on networks without names too.
        upstream: Whether other names are forwarded to nameservers.
        policy: Restriction of forwarded names, or None.
        servers: Nameservers instead of the host's.
        host: Addresses at which the services of the host are reachable.
    """

    own: Entry
    upstream: bool = True
    policy: Policy | None = None
    servers: tuple[str, ...] = ()
    host: tuple[str, ...] = ()
    _zones: tuple[Zone, ...] = field(default=(), converter=tuple)
    _lock: threading.Lock = field(factory=threading.Lock, init=False, repr=False)

    def join(self, zone: Zone) -> None:
        """Add a network; names of earlier ones come first."""
        with self._lock:
            if zone not in self._zones:
                self._zones = (*self._zones, zone)

    def leave(self, zone: Zone) -> None:
        """Remove a network."""
        with self._lock:
            self._zones = tuple(one for one in self._zones if one is not zone)

    def addresses(self, name: str) -> tuple[str, ...] | None:
        """Return the addresses of a lower-case name on all of the container's networks, or None."""
        found = [one for zone in self._zones if (one := zone.addresses(name)) is not None]
        if found:
            return tuple(dict.fromkeys(address for one in found for address in one))
        if name in HOST_NAMES and self.host:
            return self.host
        return self.own.addresses if name in _lowered(self.own) else None

    def name_of(self, address: str) -> str | None:
        """Return the name of the container at an address, on the first network that has it, or None."""
        for zone in self._zones:
            name = zone.name_of(address)
            if name is not None:
                return name
        return self.own.names[0] if self.own.names and address in self.own.addresses else None


def _lowered(entry: Entry) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.lower() for name in entry.names))


def _with(index: Mapping[str, tuple[str, ...]], key: str, terms: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {**index, **{term: (*index.get(term, ()), key) for term in terms}}


def _without(
    index: Mapping[str, tuple[str, ...]], key: str, terms: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    left = dict(index)
    for term in dict.fromkeys(terms):
        keys = tuple(one for one in left[term] if one != key)
        if keys:
            left[term] = keys
        else:
            del left[term]
    return left
