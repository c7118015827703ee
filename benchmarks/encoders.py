"""A pair of interfaces, an address and a route: by the package's encoder of netlink(7) and by pyroute2.

`python -m benchmarks.encoders ROUNDS COUNT` does it in a network namespace of its own; the other end of each
pair is in that of a process which sleeps.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Interface
from typing import Any

from benchmarks.measure import Case, Summary, alone, interleave, row
from pycontain._kernel.netlink import CREATE, ROUTE, Message, Netlink, attribute
from pycontain._networks.wire import links

_MAC = b"\2\x50\1\2\3\4"
_ADDRESS, _LENGTH = "198.18.0.1", 24
_TARGET, _GATEWAY = "198.19.0.0", "198.18.0.2"
_NEWROUTE = 24


@contextlib.contextmanager
def _elsewhere() -> Iterator[int]:
    """Provide a process in a namespace of its own."""
    process = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo up; exec sleep 600"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _route(index: int) -> Message:
    packed = [bytes(map(int, text.split("."))) for text in (_TARGET, _GATEWAY)]
    body = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 4, 0, 1, 0)
    body += attribute(1, packed[0]) + attribute(5, packed[1]) + attribute(4, index)
    return Message(_NEWROUTE, body, CREATE)


def _ours(pid: int) -> Callable[[str], None]:
    route = Netlink(ROUTE)
    address = IPv4Interface(f"{_ADDRESS}/{_LENGTH}")

    def make(name: str) -> None:
        route.do([links.pair(name, links.Peer(pid, name, _MAC, 1500))])
        index = links.look(route, name).index
        route.do([links.raise_link(index, link_local=True), links.assign(index, address), _route(index)])

    return make


def _theirs(pid: int) -> Callable[[str], None]:
    import pyroute2

    route: Any = pyroute2.IPRoute()
    address = ":".join(f"{byte:02x}" for byte in _MAC)

    def make(name: str) -> None:
        peer = {"ifname": name, "address": address, "net_ns_pid": pid}
        route.link("add", ifname=name, kind="veth", peer=peer)
        index = route.link_lookup(ifname=name)[0]
        route.link("set", index=index, state="up")
        route.addr("add", index=index, address=_ADDRESS, prefixlen=_LENGTH)
        route.route("add", dst=f"{_TARGET}/24", gateway=_GATEWAY, oif=index)

    return make


def _case(name: str, make: Callable[[str], None]) -> Case:
    """Return a case; the removal is not measured."""
    removing = Netlink(ROUTE)
    numbers = itertools.count()

    def sample(count: int, pause: float) -> list[float]:
        del pause
        taken = []
        for _ in range(count):
            link = f"pyc-{name[:3]}{next(numbers)}"
            begun = time.perf_counter()
            make(link)
            taken.append(time.perf_counter() - begun)
            removing.do([links.remove(link)])
        return taken

    return Case(name, sample)


def _do(rounds: int, count: int) -> None:
    with _elsewhere() as pid:
        cases = [_case("ours", _ours(pid)), _case("pyroute2", _theirs(pid))]
        for case in cases:
            case.sample(2, 0)
        for one in interleave(cases, rounds, count, 0):
            print(json.dumps(one.samples))


def encoders(quick: bool) -> list[dict[str, object]]:
    """Compare both encoders if pyroute2 is installed."""
    if importlib.util.find_spec("pyroute2") is None:
        print("pyroute2: skipped: not installed")
        return []
    ours, theirs = alone("benchmarks.encoders", "2" if quick else "8", "5")
    return [row("a pair, address and route", Summary("pycontain", ours), Summary("pyroute2", theirs), None)]


if __name__ == "__main__":
    _do(int(sys.argv[1]), int(sys.argv[2]))
