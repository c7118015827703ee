"""The interface of both engines to the cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from attrs import frozen

Ports = Mapping[int | str, int | str | None]
"""Ports as in pycontain: from a port inside to 'address:port', a port, or None for a free one."""


class Refused(Exception):
    """The engine would not."""


@frozen
class On:
    """A container's place on a network."""

    network: str
    aliases: tuple[str, ...] = ()
    address: str | None = None


@frozen
class Guest:
    """A running container."""

    name: str
    id: str
    pid: int


class Side(Protocol):
    """An engine.  Whatever it does not do raises Refused."""

    version: str

    def network(
        self, name: str, *, subnet: str | None = None, subnet6: str | None = None, internal: bool = False
    ) -> None: ...

    def remove_network(self, name: str) -> None: ...

    def gateway(self, network: str) -> str: ...

    def start(self, name: str, places: Sequence[On | str], ports: Ports, hostname: str | None) -> Guest: ...

    def remove(self, guest: Guest) -> None: ...

    def run(self, guest: Guest, *command: str, user: int = 0) -> tuple[int, str]: ...

    def addresses(self, guest: Guest) -> Mapping[str, str]: ...

    def address6(self, guest: Guest, network: str) -> str: ...

    def port(self, guest: Guest, inner: int | str) -> int: ...

    def connect(
        self, network: str, guest: Guest, aliases: Sequence[str] = (), address: str | None = None
    ) -> None: ...

    def disconnect(self, network: str, guest: Guest) -> None: ...
