"""The floor and the peers, all ending in the same static program on the same tiny root."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Absent, Case, repeated

NATIVE = Path(__file__).parent / "native" / "bin"


@contextlib.contextmanager
def workbench() -> Iterator[Path]:
    """Provide a directory with `root` (the tiny image), `work` and `filter`."""
    from pycontain._security.profiles import SANDBOX_FILTER
    from pycontain._security.seccomp import assemble

    with tempfile.TemporaryDirectory(prefix="pyc-bench-") as directory:
        top = Path(directory)
        top.chmod(0o755)
        for name in ("root/proc", "root/dev", "root/tmp", "root/etc", "root/sys", "root/run", "work"):
            (top / name).mkdir(parents=True)
        for name in ("true", "meet"):
            shutil.copy(NATIVE / name, top / "root" / name)
        (top / "filter").write_bytes(assemble(SANDBOX_FILTER, platform.machine()))
        yield top


def floor(top: Path) -> Case | Absent:
    """Return the case of benchmarks/native/floor.c."""
    if os.geteuid() != 0:
        return Absent("floor", "it needs root")
    if not os.path.isdir("/sys/fs/cgroup/unified"):
        return Absent("floor", "it is written for the hybrid cgroup layout")

    def sample(count: int, pause: float) -> list[float]:
        command = [
            NATIVE / "floor",
            top / "root",
            top / "work",
            top / "filter",
            str(count),
            str(int(pause * 1000)),
        ]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        return [int(line.split()[0]) / 1e9 for line in done.stdout.splitlines()]

    return Case("floor", sample)


def floors(top: Path, number: int) -> Case | Absent:
    """Return seconds per start of several floor programs side by side, each with its own root."""
    if isinstance(floor(top), Absent):
        return Absent("floor", "as above")

    def sample(count: int, pause: float) -> list[float]:
        del pause
        commands = []
        for at in range(number):
            root, work = top / f"root{at}", top / f"work{at}"
            if not root.exists():
                shutil.copytree(top / "root", root)
                work.mkdir()
            commands.append([NATIVE / "floor", root, work, top / "filter", str(count * 20), "0"])
        begun = time.perf_counter()
        running = [subprocess.Popen(list(map(str, argv)), stdout=subprocess.DEVNULL) for argv in commands]
        for one in running:
            one.wait()
        return [(time.perf_counter() - begun) / (count * 20 * number)]

    return Case(f"{number} floors" if number > 1 else "1 floor", sample)


def _quiet(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=True)


def bubblewrap(top: Path) -> Case | Absent:
    """Return the case of `bwrap --unshare-all`."""
    if shutil.which("bwrap") is None:
        return Absent("bwrap", "not installed")
    command = [
        "bwrap",
        "--unshare-all",
        "--ro-bind",
        str(top / "root"),
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "/true",
    ]
    return Case("bwrap", repeated(lambda: _quiet(command)))


def oci(name: str, top: Path) -> Case | Absent:
    """Return the case of crun or runc on a prepared bundle."""
    program = shutil.which(name)
    if program is None:
        return Absent(name, "not installed")
    bundle = top / f"bundle-{name}"
    bundle.mkdir()
    _quiet(
        [program, "spec", "-b", str(bundle)]
        if name == "runc"
        else ["sh", "-c", f"cd {bundle} && {program} spec"]
    )
    config = json.loads((bundle / "config.json").read_text())
    config["process"].update(args=["/true"], terminal=False)
    config["root"] = {"path": str(top / "root"), "readonly": True}
    (bundle / "config.json").write_text(json.dumps(config))
    command = [program, "run", "-b", str(bundle), f"pyc-{name}"]
    if name == "crun" and os.path.isdir("/sys/fs/cgroup/unified"):
        # crun refuses the hybrid layout; the wrapper's own cost is taken off below.
        turn = f"{' '.join(command)} >/dev/null 2>&1 || echo bad; echo ok"
        script = f"umount /sys/fs/cgroup/unified; while read n; do {turn}; done"
        server = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert server.stdin is not None
        assert server.stdout is not None
        asked, answered = server.stdin, server.stdout

        def once() -> None:
            asked.write("x\n")
            asked.flush()
            line = answered.readline()
            if line != "ok\n":
                raise RuntimeError(f"{name} failed")

        try:
            once()
        except RuntimeError as error:
            return Absent(name, str(error))
        return Case(name, repeated(once))
    try:
        _quiet(command)
    except subprocess.CalledProcessError as error:
        return Absent(name, (error.stderr or b"").decode().strip()[-120:])
    return Case(name, repeated(lambda: _quiet(command)))


_OWN_NETWORK = """
ip link set lo up
mkdir -p "$1/groups"
mount --rbind /sys/fs/cgroup "$1/groups"
mount -t sysfs sysfs /sys
mount --rbind "$1/groups" /sys/fs/cgroup
shift
exec "$@"
"""
"""Before a daemon with a network namespace of its own: its loopback, and a /sys that shows its interfaces."""


@contextlib.contextmanager
def daemon(place: Path, *, bridge: bool) -> Iterator[tuple[Any, int] | Absent]:
    """Provide a client of a private dockerd, and its pid; with a bridge it has its own namespaces."""
    if importlib.util.find_spec("docker") is None or shutil.which("dockerd") is None:
        yield Absent("docker-py", "dockerd or the docker package is not installed")
        return
    if os.geteuid() != 0:
        yield Absent("docker-py", "dockerd needs root")
        return
    import docker as sdk

    place.mkdir()
    host = f"unix://{place}/sock"
    command = ["dockerd", "--data-root", str(place / "data"), "--exec-root", str(place / "exec")]
    command += ["--host", host, "--pidfile", str(place / "pid")]
    if bridge:
        alone = ["unshare", "--mount", "--net", "--propagation=private", "sh", "-ec", _OWN_NETWORK, "sh"]
        command = [*alone, str(place), *command]
    else:
        command += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        client: Any = None
        for _ in range(100):
            with contextlib.suppress(Exception):
                client = sdk.DockerClient(base_url=host, timeout=120)
                client.ping()
                break
            time.sleep(0.1)
        else:
            yield Absent("docker-py", "dockerd did not come up: " + (place / "log").read_text()[-200:])
            return
        yield client, process.pid
    finally:
        process.terminate()
        process.wait()


def load(client: Any, root: Path, name: str) -> None:
    """Make an image of a tree."""
    tar = subprocess.run(["tar", "-C", str(root), "-c", "."], capture_output=True, check=True).stdout
    client.api.import_image_from_data(tar, repository=name)


def docker_run(client: Any, network: str) -> Case | Absent:
    """Return the case of docker-py's containers.run of the tiny image."""

    def once() -> None:
        client.containers.run("pycbench", "/true", remove=True, network_mode=network)

    name = "docker-py" if network == "none" else f"docker-py, {network}"
    try:
        once()
    except Exception as error:  # noqa: BLE001  whatever it is, the peer is not usable here
        return Absent(name, str(error)[:200])
    return Case(name, repeated(once))


@contextlib.contextmanager
def docker(top: Path) -> Iterator[Case | Absent]:
    """Provide the case of docker-py's containers.run with a private daemon, without networks."""
    with daemon(top / "docker", bridge=False) as found:
        if isinstance(found, Absent):
            yield found
            return
        load(found[0], top / "root", "pycbench")
        yield docker_run(found[0], "none")
