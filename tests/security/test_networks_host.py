"""N03: reachability of the host's own addresses and of metadata services."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Container, Egress, Engine, Network
from tests.kernel.networks import _network_manager, _nothing_is_left, needs_way_out, world
from tests.support.inside import is_cut_off, reach
from tests.support.world import World

__all__ = ["_network_manager", "_nothing_is_left", "world"]

_BY_THE_WAY_OUT = """
import contextlib, socket, sys
from pycontain import Container, Egress, Network
from pycontain._kernel.netlink import ROUTE, Netlink
from pycontain._networks.wire import links
from pycontain._networks.firewall import Firewall
if sys.argv[1] == "weak":
    Firewall.know_host = lambda *_: None
connect = '''
import socket, sys
for host in sys.argv[2:]:
    try:
        with socket.create_connection((host, int(sys.argv[1])), 1): print(host)
    except OSError: pass
'''
addresses = [one for one in links.seen_addresses(Netlink(ROUTE).ask(links.every_address())) if not one.is_loopback]
with contextlib.ExitStack() as stack:
    server = stack.enter_context(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True))
    command = ["python3", "-c", connect, str(server.getsockname()[1]), "127.0.0.1", *map(str, addresses)]
    net = stack.enter_context(Network("pyc-out", ipv6=True))
    wide = stack.enter_context(Egress.allow("0.0.0.0/0"))
    print(len([one for one in addresses if one.version == 4]))
    for network in (net, wide):
        with Container(network=network) as one:
            print(*one.exec(command, check=True).stdout.split())
"""


def _reached(program: str, how: str, tmp_path: Path) -> tuple[int, set[str]]:
    """Return the number of the host's addresses, and the ones at which containers reach it."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    (tmp_path / program).symlink_to(path)
    environment = {**os.environ, "PATH": f"{tmp_path}:/nowhere", "PYCONTAIN_ROOT": str(tmp_path / "root")}
    done = subprocess.run(
        [sys.executable, "-c", _BY_THE_WAY_OUT, how], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    count, *lines = done.stdout.splitlines()
    assert len(lines) == 2
    return int(count), {address for line in lines for address in line.split()}


@pytest.mark.case("N03")
@pytest.mark.parametrize("program", ["pasta", "slirp4netns"])
def test_rootless_uplink_does_not_reach_the_host(engine: Engine, program: str, tmp_path: Path) -> None:
    needs_way_out(engine)
    assert _reached(program, "whole", tmp_path)[1] == set()


@pytest.mark.control("N03")
@pytest.mark.parametrize("program", ["pasta", "slirp4netns"])
def test_rootless_uplink_without_the_rule_reaches_the_host(
    engine: Engine, program: str, tmp_path: Path
) -> None:
    needs_way_out(engine)
    count, reached = _reached(program, "weak", tmp_path)
    if program == "pasta" and count < 2:
        pytest.skip("pasta uses the only address of this host itself")
    assert reached


_SECRETS = ["169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192"]


@contextlib.contextmanager
def _metadata(world: World, address: str) -> Iterator[str]:
    subprocess.run(["ip", "route", "replace", f"{address}/32", "dev", world.link], check=True)
    world.run("ip", "addr", "add", f"{address}/32", "dev", "eth0")
    try:
        with world.serve():
            yield address
    finally:
        subprocess.run(["ip", "route", "del", f"{address}/32", "dev", world.link], check=False)


@pytest.mark.xdist_group("world")
@pytest.mark.case("N03")
@pytest.mark.control("N03")
@pytest.mark.parametrize("address", _SECRETS)
def test_wide_egress_does_not_reach_metadata(world: World, address: str) -> None:
    """A wide Egress excludes the metadata address.  Control: `permit` of the address reaches it."""
    with (
        _metadata(world, address),
        Egress.allow("0.0.0.0/0", "169.0.0.0/8") as egress,
        Container(network=egress) as one,
        Network("pyc-out") as net,
        Container(network=net) as other,
    ):
        assert reach(other, world.address) == world.host
        assert is_cut_off(other, address)
        assert reach(one, world.address) == world.host
        assert is_cut_off(one, address)
        assert address in {refused.target for refused in egress.refused}
        egress.permit(f"{address}:7000/tcp")
        assert reach(one, address) is not None
        egress.revoke(f"{address}:7000/tcp")
        assert is_cut_off(one, address)
        assert reach(one, world.address) == world.host


@pytest.mark.xdist_group("world")
@pytest.mark.case("N03")
def test_wide_egress_does_not_reach_the_host(world: World) -> None:
    with (
        socket.create_server((world.host, 0)) as server,
        world.serve(),
        Egress.allow("0.0.0.0/0") as egress,
        Container(network=egress) as one,
    ):
        assert is_cut_off(one, world.host, port=server.getsockname()[1])
        assert reach(one, world.address) == world.host
