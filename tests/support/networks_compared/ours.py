"""The side of pycontain, by its classes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pycontain
from pycontain import Container, Endpoint, Image, Network
from pycontain.errors import PycontainError
from tests.support.networks_compared.sides import Guest, On, Ports, Refused


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (PycontainError, ValueError) as error:
        raise Refused(str(error)) from error


class Ours:
    """The engine of this process."""

    version = pycontain.__version__

    def __init__(self, root: Path) -> None:
        self._image = Image.from_rootfs(root, copy=True)
        self._containers: dict[str, Container] = {}

    def network(
        self, name: str, *, subnet: str | None = None, subnet6: str | None = None, internal: bool = False
    ) -> None:
        with _refusals():
            Network(name, subnet=subnet, ipv6=subnet6 or False, internal=internal)

    def remove_network(self, name: str) -> None:
        with _refusals():
            Network.get(name).remove()

    def gateway(self, network: str) -> str:
        return Network.get(network).gateway

    def start(self, name: str, places: Sequence[On | str], ports: Ports, hostname: str | None) -> Guest:
        several: list[Endpoint | str] = [
            one if isinstance(one, str) else Endpoint(one.network, aliases=one.aliases, address=one.address)
            for one in places
        ]
        with _refusals():
            network = several if len(several) > 1 else several[0]
            container = Container(self._image, network=network, name=name, ports=ports, hostname=hostname)
            try:
                container.start()
            except BaseException:
                container.remove()
                raise
        self._containers[name] = container
        return Guest(name, container.id, container.pid)

    def remove(self, guest: Guest) -> None:
        self._containers.pop(guest.name).remove()

    def run(self, guest: Guest, *command: str, user: int = 0) -> tuple[int, str]:
        done = self._containers[guest.name].exec(list(command), user=user, timeout=60)
        return done.returncode, done.stdout.strip()

    def addresses(self, guest: Guest) -> Mapping[str, str]:
        return self._containers[guest.name].addresses

    def address6(self, guest: Guest, network: str) -> str:
        known = Network.get(network).inspect()["containers"]
        assert isinstance(known, dict)
        return str(known[guest.id]["address6"])

    def port(self, guest: Guest, inner: int | str) -> int:
        return self._containers[guest.name].port(inner)

    def connect(
        self, network: str, guest: Guest, aliases: Sequence[str] = (), address: str | None = None
    ) -> None:
        with _refusals():
            Network.get(network).connect(self._containers[guest.name], aliases, address)

    def disconnect(self, network: str, guest: Guest) -> None:
        with _refusals():
            Network.get(network).disconnect(self._containers[guest.name])
