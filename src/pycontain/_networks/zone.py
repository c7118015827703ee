"""What names mean on networks: data alone, read by the name service while others change it.

A change makes a table anew and puts it in the place of the old one, so that a reader, who takes no lock,
sees all of it or nothing.
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
    """As the kernel and the wire spell them; `10.0.0.2/16` and `fd00:0::2` are accepted."""
    return tuple(str(ipaddress.ip_interface(address).ip) for address in addresses)


@frozen
class Entry:
    """What one container is called and where it is.

    names: the first is told to who asks for an address; upper and lower case are the same.
    addresses: IPv4 and IPv6.  Raises ValueError for what is no address.
    """

    names: tuple[str, ...] = field(converter=_without_dots)
    addresses: tuple[str, ...] = field(converter=_canonical)


@frozen
class _Table:
    """Entries by key, and the keys of those that have a name or an address, in the order they came."""

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
    """The names of one network; any thread may change it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._suffix = f".{name.lower()}"
        self._table = _Table()
        self._lock = threading.Lock()

    def put(self, key: str, entry: Entry) -> None:
        """Know a container, or what became of it, by a key that the caller chooses."""
        with self._lock:
            self._table = self._table.with_entry(key, entry)

    def drop(self, key: str) -> None:
        """Know it no longer; nothing happens where it is not known."""
        with self._lock:
            self._table = self._table.without(key)

    def addresses(self, name: str) -> tuple[str, ...] | None:
        """Of all that have this lower-case name, with or without the network's behind it; None: unknown."""
        table = self._table
        keys = table.named.get(name, ())
        if name.endswith(self._suffix):
            keys += table.named.get(name[: -len(self._suffix)], ())
        if not keys:
            return None
        return tuple(address for key in dict.fromkeys(keys) for address in table.entries[key].addresses)

    def name_of(self, address: str) -> str | None:
        """Of the container there, with the network's behind it."""
        table = self._table
        for key in table.placed.get(address, ()):
            names = table.entries[key].names
            if names:
                return f"{names[0]}.{self.name}"
        return None


class Policy(Protocol):
    """What a container may know of the world; asked and told by the thread of the name service.

    Names are lower-case and without the last dot.  What one of these raises makes the answer SERVFAIL.
    """

    def allows(self, name: str) -> bool:
        """Whether it may ask for a name."""

    def learned(self, name: str, addresses: list[str], ttl: int) -> list[str]:
        """Those of the addresses that it may be told, which it is after this returns; ttl: seconds."""

    def refused(self, name: str) -> None:
        """It asked for a name that is not allowed."""


@define(eq=False)
class Client:
    """A container that asks.

    own: its own names, answered on networks without names too.  upstream: whether what no network knows is
    asked of other nameservers.  servers: those, in place of the host's.  host: addresses of this host, by
    which its services are reached.  A value that is set counts from the next query on, but for servers.
    """

    own: Entry
    upstream: bool = True
    policy: Policy | None = None
    servers: tuple[str, ...] = ()
    host: tuple[str, ...] = ()
    _zones: tuple[Zone, ...] = field(default=(), converter=tuple)
    _lock: threading.Lock = field(factory=threading.Lock, init=False, repr=False)

    def join(self, zone: Zone) -> None:
        """Be on a network; its names come after those of earlier ones."""
        with self._lock:
            if zone not in self._zones:
                self._zones = (*self._zones, zone)

    def leave(self, zone: Zone) -> None:
        """Be on it no longer."""
        with self._lock:
            self._zones = tuple(one for one in self._zones if one is not zone)

    def addresses(self, name: str) -> tuple[str, ...] | None:
        """What a lower-case name means to it, on all of its networks together; None: unknown."""
        found = [one for zone in self._zones if (one := zone.addresses(name)) is not None]
        if found:
            return tuple(dict.fromkeys(address for one in found for address in one))
        if name in HOST_NAMES and self.host:
            return self.host
        return self.own.addresses if name in _lowered(self.own) else None

    def name_of(self, address: str) -> str | None:
        """Of the container at an address, as the first network that knows it has it."""
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
