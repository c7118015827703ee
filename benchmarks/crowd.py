"""Many networks at once, with containers on two networks each: speed, size, reachability and leftovers.

`python -m benchmarks.crowd ROOT COUNT` does it, in a network namespace where all that there is is its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Absent, alone, available
from pycontain import Container, Image, Network

_PORT = "7000"
_DOCKERS = 40
"""More than dockerd's pools hold."""


class _Clock:
    """Seconds by what was done."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.taken[what] = time.perf_counter() - begun


def _left() -> dict[str, int]:
    """Return the numbers of links, fds, processes and rules of this namespace and process."""
    found = {"links": len(socket.if_nameindex()), "fds": len(os.listdir("/proc/self/fd"))}
    own, processes = os.readlink("/proc/self/ns/net"), 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            processes += os.readlink(f"/proc/{pid}/ns/net") == own
    found["processes"] = processes
    if shutil.which("nft") is not None:
        rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        # Elements may share a line, so names of links are counted as well.
        found["rules"] = rules.count("\n") + rules.count("pyc-")
    return found


def _crowd(image: Image, count: int, clock: _Clock) -> dict[str, object]:
    """Start a ring: the container of each number is on the network of that number and on the next."""
    before = available()
    with clock("networks"):
        networks = [Network(f"pyc-crowd{at}") for at in range(count)]
    between = available()
    with clock("containers"):
        containers = [
            Container(image, name=f"crowd{at}", network=[networks[at], networks[(at + 1) % count]]).start()
            for at in range(count)
        ]
    after = available()
    servers = [one.popen(["/meet", "serve", _PORT], stdout=subprocess.PIPE) for one in containers]
    for server in servers:
        assert server.stdout is not None
        server.stdout.readline()
    with clock("reach"):
        reached = sum(_reaches(one, at, count) for at, one in enumerate(containers))
    with clock("the end of containers"):
        for one in containers:
            one.remove()
    for server in servers:
        server.wait()
        assert server.stdout is not None
        server.stdout.close()
    with clock("the end of networks"):
        for network in networks:
            network.remove()
    return {
        "networks": count,
        "containers": count,
        "bytes_network": (before - between) / count,
        "bytes_container": (between - after) / count,
        "reached": reached,
    }


def _reaches(container: Container, at: int, count: int) -> bool:
    """Return whether a container reaches both neighbours by name, and resolves no other name."""
    neighbours = [f"crowd{(at + step) % count}" for step in (-1, 1)]
    done = container.exec(["/meet", "reach", _PORT, *neighbours], check=False)
    stranger = container.exec(["/meet", "lookup", f"crowd{(at + 2) % count}", "1"], check=False)
    return done.returncode == 0 and stranger.returncode != 0


def _do(root: Path, count: int) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    image = Image.from_rootfs(root)
    for _ in range(2):  # until there is all that an engine keeps
        _crowd(image, 4, _Clock())
    before, clock = _left(), _Clock()
    found = _crowd(image, count, clock)
    after = _left()
    print(json.dumps({**found, "seconds": clock.taken, "before": before, "after": after}))


def crowd(root: Path, count: int) -> list[dict[str, object]]:
    """Run all of it.  Passed if each container reached exactly its neighbours and nothing is left."""
    (said,) = alone("benchmarks.crowd", str(root), str(count))
    met = said["reached"] == count and said["before"] == said["after"]
    for what, seconds in said["seconds"].items():
        print(f"{count} at once, {what:24} {seconds:8.3f} s  {seconds / count * 1e3:8.3f} ms each")
    print(
        f"{count} at once: {said['bytes_network'] / 1024:.0f} KiB a network, "
        f"{said['bytes_container'] / 1024:.0f} KiB a container on two; "
        f"{said['reached']} reach their neighbours by name; before {said['before']}, after {said['after']}"
        f"  {'met' if met else 'MISSED'}"
    )
    return [{"job": "many networks at once", **said, "met": met}]


def dockers(client: Any) -> list[dict[str, object]]:
    """Return the number of networks that dockerd makes before its pools are empty."""
    if isinstance(client, Absent):
        return []
    made, reason = [], ""
    begun = time.perf_counter()
    try:
        for at in range(_DOCKERS):
            made.append(client.networks.create(f"pyc-crowd{at}"))
    except Exception as error:  # noqa: BLE001  whatever it is, that many it makes
        reason = str(error)[-120:]
    each = (time.perf_counter() - begun) / max(len(made), 1)
    for one in made:
        one.remove()
    print(f"dockerd: {len(made)} networks at once, {each * 1e3:.1f} ms each; then: {reason}")
    return [{"job": "many networks at once, dockerd", "networks": len(made), "each": each, "then": reason}]


if __name__ == "__main__":
    _do(Path(sys.argv[1]), int(sys.argv[2]))
