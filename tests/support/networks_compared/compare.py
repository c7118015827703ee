"""Run every case on both sides at once."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import asdict, frozen

from tests.support import peers
from tests.support.networks_compared import inside, names, passing, ports, refusals
from tests.support.networks_compared.docker import Docker
from tests.support.networks_compared.ours import Ours
from tests.support.networks_compared.sides import Side
from tests.support.networks_compared.stage import METADATA, Case, Stage
from tests.support.roots import make_root
from tests.support.world import World

CASES: list[Case] = [
    case for room in (names, passing, ports, inside, refusals) for case in room.SECTION.cases
]
_ROOT = Path(__file__).parent.parent.parent.parent


@frozen
class Outcomes:
    """Results of a side: the engine's version, and a word for each case by its title."""

    version: str
    cases: dict[str, str]


def compare() -> tuple[Outcomes, Outcomes]:
    """Return the outcomes of dockerd and pycontain.  Skips if dockerd is missing or does not start."""
    peers.needs("dockerd", "docker", "unshare", "getent")
    if os.geteuid() != 0:
        pytest.skip("dockerd needs root")
    with tempfile.TemporaryDirectory(prefix="pyc-") as directory:
        top = Path(directory)
        top.chmod(0o755)
        _root(top / "root")
        started = [_start(side, top) for side in ("docker", "pycontain")]
        docker, ours = (_finish(*one) for one in started)
    return docker, ours


def _root(top: Path) -> None:
    """Make a root with busybox and getent, which resolves names by the C library."""
    make_root(top)
    for name in ("ip", "ping", "httpd"):
        (top / "bin" / name).symlink_to("busybox")
    getent = "/usr/bin/getent"
    libraries = [word for word in peers.run("ldd", getent).split() if word.startswith("/")]
    for path in map(Path, (getent, *libraries)):
        there = top / path.relative_to("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(path.read_bytes())
        there.chmod(0o755)
    (top / "etc" / "nsswitch.conf").write_text("hosts: files dns\n")


def _start(side: str, top: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a side in its own network and mount namespaces, with its own rules and resolv.conf."""
    command = ["unshare", "-n", "-m", "--propagation", "private", sys.executable]
    command += ["-m", "tests.support.networks_compared", "--side", side, "--directory", str(top)]
    environment = {**os.environ, "PYCONTAIN_ROOT": str(top / "store")}
    with open(top / f"{side}.log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    return process, top / f"{side}.json"


def _finish(process: subprocess.Popen[bytes], result: Path) -> Outcomes:
    process.wait()
    assert process.returncode == 0, result.with_suffix(".log").read_text()[-4000:]
    outcomes = json.loads(result.read_text())
    if "skipped" in outcomes:
        pytest.skip(outcomes["skipped"])
    return Outcomes(**outcomes)


def perform(name: str, top: Path) -> None:
    """Run one side in this process's own namespaces."""
    try:
        with _world(top / f"{name}.resolv") as world, _side(name, top) as side:
            outcomes = asdict(_all(side, world))
    except pytest.skip.Exception as skipped:
        outcomes = {"skipped": str(skipped)}
    (top / f"{name}.json").write_text(json.dumps(outcomes))


@contextlib.contextmanager
def _world(resolv: Path) -> Iterator[World]:
    """Prepare a host without forwarding, and an outside host with a name server and metadata service."""
    run = peers.run
    run("ip", "link", "set", "lo", "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")  # every refusal is sent
    world = World()
    try:
        run("ip", "route", "add", "default", "via", world.address)
        run(*world.enter, "ip", "addr", "add", f"{METADATA}/32", "dev", "lo")
        # Outside knows the way to every container, as a neighbour on the same wire would.
        run(*world.enter, "ip", "route", "add", "default", "via", world.host)
        resolv.write_text(f"nameserver {world.address}\n")
        run("mount", "--bind", resolv, "/etc/resolv.conf")
        yield world
    finally:
        world.close()


@contextlib.contextmanager
def _side(name: str, top: Path) -> Iterator[Side]:
    if name == "docker":
        parent = f"/pyc-{os.getpid()}"
        with peers.docker(top / "d", networks=True) as client:
            yield Docker(client, top / "root", parent)
        for left in Path("/sys/fs/cgroup").glob(f"*{parent}"):
            left.rmdir()
        return
    yield Ours(top / "root")


def _all(side: Side, world: World) -> Outcomes:
    stage = Stage(side, world)
    try:
        return Outcomes(side.version, {one.title: _outcome(one, stage) for one in CASES})
    finally:
        stage.close()


def _outcome(case: Case, stage: Stage) -> str:
    try:
        return case.function(stage)
    except Exception as error:  # noqa: BLE001 - the other cases are done all the same
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
