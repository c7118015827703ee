"""Networks: cost of a start on one, cost of the operations, and cost of the libraries that are not used."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import peers, plot
from benchmarks.crowd import crowd, dockers
from benchmarks.encoders import encoders
from benchmarks.measure import Absent, Case, imported, interleave, repeated, row, split
from benchmarks.throughput import throughput
from benchmarks.verbs import verbs
from pycontain import Container, Image, Network

_MULTIPLE = 2.5
"""A start on a bridge is to cost at most so many without a network."""
_DOCKER = 1 / 40
_PACES = (("burst", 0.0, 12, 10), ("paced", 0.05, 10, 6))
_DEFAULT = "docker-py, bridge"
_ROUNDS = 60
_CROWD = 300


def _starting(image: Image, network: Network | str) -> Callable[[], None]:
    def once() -> None:
        with Container(image, network=network) as container:
            container.exec(["/true"])

    once()
    return once


def _starts(top: Path, client: Any, quick: bool) -> list[dict[str, object]]:
    """Measure cold starts without a network, on a private one and on the default one, and docker-py."""
    rows = []
    image = Image.from_rootfs(top / "root")
    docker = client if isinstance(client, Absent) else peers.docker_run(client, "bridge")
    with Network("pyc-bench") as net:
        cases = split(
            [
                Case("no network", repeated(_starting(image, "none"))),
                Case("a user network", repeated(_starting(image, net))),
                Case("bridge", repeated(_starting(image, "bridge"))),
                docker,
            ]
        )
        for way, pause, rounds, count in _PACES:
            found = {one.name: one for one in interleave(cases, 2 if quick else rounds, count, pause)}
            for name in ("a user network", "bridge"):
                rows.append(row(f"start on {name}, {way}", found[name], found["no network"], _MULTIPLE))
            if _DEFAULT in found:
                rows.append(row(f"start on bridge, {way}", found["bridge"], found[_DEFAULT], _DOCKER))
    return rows


def _imports(top: Path, quick: bool) -> list[dict[str, object]]:
    """Compare a start on a bridge with loading pyroute2 (not used) and dnspython (used)."""
    start = Case("a start", repeated(_starting(Image.from_rootfs(top / "root"), "bridge")))
    found: list[Case | Absent] = [start]
    for module, package in (("pyroute2", "pyroute2"), ("dns.message", "dnspython")):
        here = importlib.util.find_spec(module.split(".")[0]) is not None
        found.append(imported(module) if here else Absent(f"import {module}", f"no {package} here"))
    one, *others = interleave(split(found), 2 if quick else 10, 4, 0)
    return [row("start on bridge, and an import", one, other, None) for other in others]


def _throughput(top: Path, client: Any, pid: int, quick: bool) -> list[dict[str, object]]:
    return throughput(
        top, client, pid, lambda root: peers.load(client, root, "pyciperf"), 2 if quick else _ROUNDS
    )


def networks(quick: bool) -> list[dict[str, object]]:
    """Measure starts, verbs, throughput, many networks at once, encoders and imports."""
    with peers.workbench() as top, peers.daemon(top / "docker", bridge=True) as found:
        client, pid = (found, 0) if isinstance(found, Absent) else found
        if not isinstance(client, Absent):
            peers.load(client, top / "root", "pycbench")
        rows = _starts(top, client, quick)
        plot.starts(rows)
        rows += verbs(top, client, quick)
        rows += _throughput(top, client, pid, quick)
        rows += crowd(top / "root", 30 if quick else _CROWD)
        rows += dockers(client)
        rows += encoders(quick)
        rows += _imports(top, quick)
    return rows
