"""The side of dockerd, by its command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from tests.support.networks_compared.sides import Guest, On, Ports, Refused

_IMAGE = "pyc:1"


class Docker:
    """A daemon of our own, as the beginning of a command line."""

    def __init__(self, client: list[str], root: Path, parent: str) -> None:
        self._client = client
        self._parent = parent
        self.version = self._do("version", "--format", "{{.Server.Version}}")
        tar = subprocess.run(["tar", "-C", root, "-c", "."], capture_output=True, check=True).stdout
        subprocess.run([*client, "import", "-", _IMAGE], input=tar, capture_output=True, check=True)

    def _do(self, *command: str) -> str:
        done = subprocess.run([*self._client, *command], capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Refused(done.stderr.strip())
        return done.stdout.strip()

    def network(
        self, name: str, *, subnet: str | None = None, subnet6: str | None = None, internal: bool = False
    ) -> None:
        options = [f"--subnet={one}" for one in (subnet, subnet6) if one]
        self._do("network", "create", *options, *["--internal"] * internal, *["--ipv6"] * bool(subnet6), name)

    def remove_network(self, name: str) -> None:
        self._do("network", "rm", name)

    def gateway(self, network: str) -> str:
        (found,) = json.loads(self._do("network", "inspect", network))
        (config, *_) = found["IPAM"]["Config"]
        # Docker shows a requested subnet only after a container has joined the network.
        return str(config.get("Gateway") or ip_network(config["Subnet"])[1])

    def start(self, name: str, places: Sequence[On | str], ports: Ports, hostname: str | None) -> Guest:
        first, *more = [On(one) if isinstance(one, str) else one for one in places]
        options = [*_published(ports), *(["--hostname", hostname] if hostname else [])]
        options += [f"--network={first.network}", *(f"--network-alias={one}" for one in first.aliases)]
        options += [f"--ip={first.address}"] if first.address else []
        options += [f"--name={name}", f"--cgroup-parent={self._parent}"]
        known = self._do("create", *options, _IMAGE, "sleep", "1000")
        try:
            for one in more:
                self._connect(one.network, name, one.aliases, one.address)
            self._do("start", name)
        except Refused:
            self._do("rm", "-f", name)
            raise
        return Guest(name, known, int(self._inspect(name)["State"]["Pid"]))

    def _inspect(self, name: str) -> Any:
        (found,) = json.loads(self._do("container", "inspect", name))
        return found

    def remove(self, guest: Guest) -> None:
        self._do("rm", "-f", guest.name)

    def run(self, guest: Guest, *command: str, user: int = 0) -> tuple[int, str]:
        whole = [*self._client, "exec", f"--user={user}", guest.name, *command]
        done = subprocess.run(whole, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout.strip()

    def addresses(self, guest: Guest) -> Mapping[str, str]:
        found = self._inspect(guest.name)["NetworkSettings"]["Networks"]
        return {name: one["IPAddress"] for name, one in found.items() if one["IPAddress"]}

    def address6(self, guest: Guest, network: str) -> str:
        found = self._inspect(guest.name)["NetworkSettings"]["Networks"]
        return str(found[network]["GlobalIPv6Address"])

    def port(self, guest: Guest, inner: int | str) -> int:
        lines = self._do("port", guest.name, str(inner)).splitlines()
        return int(lines[0].rpartition(":")[2])

    def connect(
        self, network: str, guest: Guest, aliases: Sequence[str] = (), address: str | None = None
    ) -> None:
        self._connect(network, guest.name, aliases, address)

    def _connect(self, network: str, name: str, aliases: Sequence[str], address: str | None) -> None:
        options = [f"--alias={one}" for one in aliases] + ([f"--ip={address}"] if address else [])
        self._do("network", "connect", *options, network, name)

    def disconnect(self, network: str, guest: Guest) -> None:
        self._do("network", "disconnect", network, guest.name)


def _published(ports: Ports) -> list[str]:
    return [
        f"--publish={inner}" if outer is None else f"--publish={outer}:{inner}"
        for inner, outer in ports.items()
    ]
