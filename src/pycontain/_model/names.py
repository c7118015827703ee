"""Name options of a container: extra hosts, nameservers, search domains."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from attrs import frozen

from pycontain._model.sizes import shown

ExtraHosts: TypeAlias = "Mapping[str, str] | Sequence[str]"
"""Mapping of names to addresses, or a sequence of 'name:address' or 'name=address' as in docker."""

GATEWAY = "host-gateway"
"""Placeholder for the address of this host, on a network with `host_access`."""
HOST_NAMES = ("host.containers.internal", "host.docker.internal")
"""Names of this host in containers that can reach its services."""
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
_MOST_SERVERS = 3
"""Limit of resolv.conf(5)."""
_MOST_DOMAINS = 32


@frozen
class NameOptions:
    """Entries for /etc/hosts and resolv.conf(5).

    Attributes:
        hosts: Pairs of name and address.
        servers: Addresses of nameservers; empty for those of the host.
        search: Search domains, or None for those of the host.
    """

    hosts: tuple[tuple[str, str], ...] = ()
    servers: tuple[str, ...] = ()
    search: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        extra_hosts: ExtraHosts | None,
        dns: str | Iterable[str] | None,
        dns_search: str | Iterable[str] | None,
    ) -> NameOptions:
        """Check the options of a caller.

        Raises:
            ValueError: A name or address is malformed, or there are too many.
            TypeError: A value has the wrong type.
        """
        servers = tuple(_address(one, "dns") for one in _texts(dns, "dns"))
        if len(servers) > _MOST_SERVERS:
            raise ValueError(f"dns must be at most {_MOST_SERVERS} nameservers, got {len(servers)}")
        search = None
        if dns_search is not None:
            given = [one for one in _texts(dns_search, "dns_search") if one != "."]
            search = tuple(_name(one, "dns_search").rstrip(".") for one in given)
            if len(search) > _MOST_DOMAINS:
                raise ValueError(f"dns_search must be at most {_MOST_DOMAINS} domains, got {len(search)}")
        return cls(tuple(_pairs(extra_hosts)), servers, search)

    def resolv_conf(self, servers: Iterable[str], search: Iterable[str]) -> bytes:
        """Return a resolv.conf(5).

        Args:
            servers: Addresses of nameservers.
            search: Search domains, used if the options have none.
        """
        lines = [f"nameserver {one}" for one in servers]
        domains = self.search if self.search is not None else tuple(search)
        if domains:
            lines.append(f"search {' '.join(domains)}")
        return "".join(f"{line}\n" for line in lines).encode()


def search_domains(resolv_conf: bytes) -> tuple[str, ...]:
    """Return the search domains of a resolv.conf(5), those of its last `search` or `domain` line."""
    found: tuple[str, ...] = ()
    for line in resolv_conf.decode("utf-8", "replace").splitlines():
        words = line.split()
        if words and words[0] in ("search", "domain"):
            found = tuple(one.rstrip(".") for one in words[1:] if _NAME.fullmatch(one))
    return found[:_MOST_DOMAINS]


def _pairs(extra_hosts: ExtraHosts | None) -> Iterable[tuple[str, str]]:
    if extra_hosts is None:
        return
    if isinstance(extra_hosts, str | bytes) or not isinstance(extra_hosts, Mapping | Iterable):
        raise TypeError(f"extra_hosts must map names to addresses, got {shown(extra_hosts)}")
    pairs: list[tuple[object, object]] = []
    if isinstance(extra_hosts, Mapping):
        pairs = list(extra_hosts.items())
    else:
        for one in extra_hosts:
            name, separator, address = re.split(r"([:=])", one, maxsplit=1) if _is_pair(one) else ("", "", "")
            if not separator:
                raise ValueError(f"extra_hosts must have entries such as 'name:address', got {shown(one)}")
            pairs.append((name, address))
    for name, address in pairs:
        text = address if address == GATEWAY else _address(address, "extra_hosts")
        yield _name(name, "extra_hosts").rstrip("."), str(text)


def _is_pair(one: object) -> bool:
    if not isinstance(one, str):
        raise TypeError(f"extra_hosts must have entries such as 'name:address', got {shown(one)}")
    return ":" in one or "=" in one


def _texts(given: str | Iterable[str] | None, option: str) -> list[str]:
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Iterable):
        raise TypeError(f"{option} must be text or a sequence of text, got {shown(given)}")
    return list(given)


def _name(given: object, option: str) -> str:
    if not isinstance(given, str):
        raise TypeError(f"{option} must have names as text, got {shown(given)}")
    if not _NAME.fullmatch(given) or len(given) > 253:
        raise ValueError(f"{option} must have names such as 'db.example.org', got {shown(given)}")
    return given


def _address(given: object, option: str) -> str:
    from ipaddress import ip_address

    if not isinstance(given, str):
        raise TypeError(f"{option} must have addresses as text, got {shown(given)}")
    text = given[1:-1] if given.startswith("[") and given.endswith("]") else given
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError(f"{option} must have IPv4 or IPv6 addresses, got {shown(given)}") from None
