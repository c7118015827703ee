"""Throughput between two containers and to the host: iperf3 under pycontain and under dockerd.

Each engine has a network namespace of its own with nothing but its loopback, and the same tree as image.
`python -m benchmarks.throughput TREE` is pycontain's side: a way per line in, bits per second per line out.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Absent, Summary, ratio
from pycontain import Container, Image, Network

_WITHIN = 0.95
"""At least so much of dockerd's."""
_SECONDS = 1
WAYS = ("two containers", "to the host")
_SERVER = ["/bin/iperf3", "-s"]
Measure = Callable[[str], float]
"""Bits per second of one of WAYS."""


def tree(top: Path) -> Path:
    """Return a root with iperf3 and what it is linked with."""
    program = shutil.which("iperf3")
    assert program is not None
    root = top / "iperf"
    for name in ("bin", "proc", "dev", "tmp", "etc", "sys", "run"):
        (root / name).mkdir(parents=True)
    shutil.copy(program, root / "bin" / "iperf3")
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for word in linked.split():
        if word.startswith("/"):
            place = root / word[1:]
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, place)
    return root


def _client(address: str, seconds: int = _SECONDS) -> list[str]:
    return ["/bin/iperf3", "-c", address, "-t", str(seconds), "-J"]


def _received(text: str) -> float:
    said = json.loads(text)
    if "error" in said:
        raise RuntimeError(said["error"])
    return float(said["end"]["sum_received"]["bits_per_second"])


def _warm(measure: Callable[[], object]) -> None:
    """Wait until the server listens."""
    for _ in range(50):
        with contextlib.suppress(RuntimeError):
            measure()
            return
        time.sleep(0.1)
    raise RuntimeError("iperf3 does not answer")


@contextlib.contextmanager
def _host_server(*enter: str) -> Iterator[None]:
    server = subprocess.Popen([*enter, "iperf3", "-s"], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def _popen(container: Container) -> Iterator[None]:
    server = container.popen(_SERVER, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.kill()
        server.wait()


def _serve(root: Path) -> None:
    """Run pycontain's side in its own network namespace."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    image = Image.from_rootfs(root)
    with (
        _host_server(),
        Network("pyc-iperf", host_access=True) as net,
        Container(image, network=net) as server,
        Container(image, network=net) as client,
        _popen(server),
    ):
        where = dict(zip(WAYS, (str(server.address), net.gateway), strict=True))

        def measure(way: str, seconds: int = _SECONDS) -> float:
            return _received(str(client.exec(_client(where[way], seconds)).stdout))

        for way in WAYS:
            _warm(lambda way=way: measure(way, 1))  # type: ignore[misc]
        print("up", flush=True)
        for line in sys.stdin:
            print(measure(line.strip()), flush=True)


@contextlib.contextmanager
def _ours(root: Path) -> Iterator[Measure]:
    command = ["unshare", "--net", sys.executable, "-m", __name__, str(root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    asked, answered = process.stdin, process.stdout
    if answered.readline() != "up\n":
        raise RuntimeError("pycontain's side did not come up")

    def measure(way: str) -> float:
        asked.write(f"{way}\n")
        asked.flush()
        return float(answered.readline())

    try:
        yield measure
    finally:
        process.communicate()


@contextlib.contextmanager
def _docker(client: Any, pid: int) -> Iterator[Measure]:
    """Provide dockerd's side, also on a user-defined network."""
    net = client.networks.create("pyc-iperf")
    containers = []
    try:
        containers.append(client.containers.run("pyciperf", _SERVER, network="pyc-iperf", detach=True))
        containers.append(client.containers.run("pyciperf", _SERVER, network="pyc-iperf", detach=True))
        server, other = containers
        server.reload()
        net.reload()
        address = server.attrs["NetworkSettings"]["Networks"]["pyc-iperf"]["IPAddress"]
        where = dict(zip(WAYS, (address, net.attrs["IPAM"]["Config"][0]["Gateway"]), strict=True))

        def measure(way: str, seconds: int = _SECONDS) -> float:
            return _received(other.exec_run(_client(where[way], seconds)).output.decode())

        with _host_server("nsenter", "-t", str(pid), "-n"):
            for way in WAYS:
                _warm(lambda way=way: measure(way, 1))  # type: ignore[misc]
            yield measure
    finally:
        for container in containers:
            container.remove(force=True)
        net.remove()


def throughput(
    top: Path, client: Any, pid: int, load: Callable[[Path], None], rounds: int
) -> list[dict[str, object]]:
    """Measure both directions under both engines, taken in turn."""
    if shutil.which("iperf3") is None:
        print("iperf3: skipped: not installed")
        return []
    root = tree(top)
    if isinstance(client, Absent):
        print(f"iperf3: skipped: {client.reason}")
        return []
    load(root)
    found: dict[tuple[str, str], list[float]] = {}
    with _ours(root) as ours, _docker(client, pid) as dockers:
        sides = [("pycontain", ours), ("dockerd", dockers)]
        for number in range(rounds):
            for way in WAYS:
                for name, measure in sides if number % 2 == 0 else reversed(sides):
                    found.setdefault((way, name), []).append(measure(way))
    return [_judged(way, found[way, "pycontain"], found[way, "dockerd"]) for way in WAYS]


def _judged(way: str, ours: list[float], theirs: list[float]) -> dict[str, object]:
    middle, low, high = ratio(Summary("pycontain", ours), Summary("dockerd", theirs))
    one, other = statistics.median(ours), statistics.median(theirs)
    met = middle >= _WITHIN
    print(
        f"iperf3, {way:20} {one / 1e9:6.2f} Gbit/s [{min(ours) / 1e9:.2f}, {max(ours) / 1e9:.2f}]"
        f"  dockerd {other / 1e9:6.2f} Gbit/s [{min(theirs) / 1e9:.2f}, {max(theirs) / 1e9:.2f}]"
        f"  ratio {middle:5.3f} [{low:.3f}, {high:.3f}]  bar {_WITHIN}  {'met' if met else 'MISSED'}"
    )
    return {
        "job": f"iperf3, {way}",
        "against": "dockerd",
        "seconds_each": _SECONDS,
        "ours_bits": ours,
        "other_bits": theirs,
        "ours_p50": one,
        "other_p50": other,
        "ratio": middle,
        "interval": [low, high],
        "bar": _WITHIN,
        "met": met,
    }


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
