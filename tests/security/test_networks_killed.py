"""N05, N08: an engine that is killed, in a network namespace where nothing else is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pycontain import Engine
from tests.kernel.networks import root_only

_VICTIM = """
import os, sys, time
from pycontain import Container, Egress, Network, Security
from pycontain._networks.wire import nft
if sys.argv[1] == "weak":
    table = nft.table
    nft.table = lambda *given, stays=False, **named: table(*given, **named)
raw = Security.SANDBOX.evolve(capabilities={"NET_RAW"})
out, inner = Network("pyc-dead", ipv6=True), Network("pyc-inner", internal=True)
egress = Egress.allow("203.0.113.1")
one = Container(network=[out, inner], ports={80: None, "81/udp": None}, security=raw).start()
two = Container(network=egress).start()
print(out._session.owner.name, out._session.network_manager.firewall.stays, out.subnet, one.port(80), flush=True)
time.sleep(600)
"""

_WATCH = """
import json, os, signal, socket, subprocess, sys
from pathlib import Path
from pycontain import Container, Engine, Network
from tests.support.inside import echo, reaches
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
forwarding = [Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding")]
for one in forwarding:
    one.write_text("0")
top, how, victim = sys.argv[1:]

def report():
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, check=True, text=True).stdout
    return {
        "bridges": sum(link["ifname"].startswith("pyc-") and "link_index" not in link for link in links),
        "tables": sorted(" ".join(line.split()[1:3]) for line in tables.splitlines()),
        "forwarding": [one.read_text().strip() for one in forwarding],
        "lives": reaches(near, far.address),
    }

def bound(port):
    try:
        socket.create_server(("0.0.0.0", port)).close()
    except OSError:
        return False
    return True

with (
    Engine(top + "/live") as live,
    Network("pyc-live", internal=True, engine=live) as net,
    Container(network=net, engine=live) as near,
    Container(network=net, engine=live) as far,
    echo(far),
):
    before = report()
    command = [sys.executable, "-c", victim, how]
    environment = {**os.environ, "PYCONTAIN_ROOT": top + "/dead"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    owner, stays, subnet, port = process.stdout.readline().split()
    meanwhile = report()
    process.send_signal(signal.SIGKILL)
    process.wait()
    after = report()
    with Engine(top + "/dead") as again:
        collected = report()
        with (
            Network("pyc-dead", subnet=subnet, engine=again) as new,
            Container(network=new, ports={80: int(port)}, engine=again) as one,
        ):
            taken = not bound(int(port))
    print(json.dumps({
        "owner": owner, "stays": stays == "True", "before": before, "meanwhile": meanwhile, "after": after,
        "collected": collected, "taken": taken, "last": report(),
    }))
"""


def _kill(how: str, top: Path) -> dict[str, Any]:
    """Kill an engine beside another and return the objects before, meanwhile and after."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["unshare", "-n", sys.executable, "-c", _WATCH, str(top), how, _VICTIM]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["meanwhile"]["bridges"] == report["before"]["bridges"] + 3
    assert report["meanwhile"]["forwarding"] == ["1", "1"]
    assert _tables(report, "meanwhile") == {f"inet {name}" for name in ("{}", "{}-nat")} | {"bridge {}"}
    return report


def _tables(report: dict[str, Any], when: str) -> set[str]:
    name = f"pycontain-{report['owner']}"
    return {one.replace(name, "{}") for one in report[when]["tables"] if name in one}


@pytest.mark.case("N08")
def test_leftovers_of_a_killed_engine_are_collected(engine: Engine, tmp_path: Path) -> None:
    """Networks of another engine work all the time, and subnet and port are free again."""
    root_only(engine)
    report = _kill("whole", tmp_path)
    assert report["collected"] == report["before"]
    assert report["last"] == report["before"]
    assert report["taken"]
    assert all(report[when]["lives"] for when in ("before", "meanwhile", "after", "collected"))


@pytest.mark.case("N05")
def test_refusals_hold_until_the_guests_are_dead(engine: Engine, tmp_path: Path) -> None:
    """Rules that refuse and guard stay in the kernel after the engine was killed (Linux 6.9)."""
    root_only(engine)
    report = _kill("whole", tmp_path)
    if not report["stays"]:
        pytest.skip("before Linux 6.9 every rule goes with its socket")
    assert _tables(report, "after") == {"inet {}", "bridge {}"}


@pytest.mark.control("N05", "N08")
def test_rules_that_went_with_their_engine_would_be_missed(engine: Engine, tmp_path: Path) -> None:
    root_only(engine)
    report = _kill("weak", tmp_path)
    assert _tables(report, "after") == set()
    assert report["after"]["bridges"] == report["before"]["bridges"] + 3
