"""Images: pull and unpack against the peers, one layer against GNU tar, cost of a second image, memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import Absent, Case, Summary, interleave, ratio
from pycontain import Container, Engine, Image
from tests.support import peers as programs

_SUITE = "bookworm"
_PEER_BAR, _TAR_BAR, _MEMORY_BAR = 0.5, 1.2, 100 << 20


def _timed(job: Callable[[], object], clean: Callable[[], object]) -> Callable[[int, float], list[float]]:
    """Time only the job; its results are removed after each run."""

    def sample(count: int, pause: float) -> list[float]:
        del pause
        taken = []
        for _ in range(count):
            begun = time.perf_counter()
            job()
            taken.append(time.perf_counter() - begun)
            clean()
        return taken

    return sample


def _quietly(*command: object, env: dict[str, str] | None = None) -> None:
    subprocess.run(
        [str(part) for part in command],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
    )


def _debian(top: Path) -> Path:
    """Return a Debian minbase tree; PYC_BENCH_TREE names an existing one."""
    given = os.environ.get("PYC_BENCH_TREE")
    if given:
        return Path(given)
    tree = top / "debian"
    _quietly("debootstrap", "--variant=minbase", _SUITE, tree)
    return tree


def _own(top: Path, name: str) -> Case:
    root = top / "own"

    def pull() -> None:
        with Engine(root, ahead=0) as engine:
            Image.pull(name, insecure=True, progress=False, engine=engine)

    return Case("pycontain", _timed(pull, lambda: shutil.rmtree(root)))


def _skopeo_umoci(top: Path, name: str) -> Case | Absent:
    if shutil.which("skopeo") is None or shutil.which("umoci") is None:
        return Absent("skopeo + umoci", "not installed")
    place = top / "umoci"

    def pull() -> None:
        _quietly("skopeo", "copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{place}/image:x")
        _quietly("umoci", "unpack", "--image", f"{place}/image:x", place / "bundle")

    place.mkdir()

    def clean() -> None:
        shutil.rmtree(place)
        place.mkdir()

    return Case("skopeo + umoci", _timed(pull, clean))


def _podman(top: Path, name: str) -> Case | Absent:
    if shutil.which("podman") is None:
        return Absent("podman", "not installed")
    command = [
        "podman",
        "--root",
        top / "p" / "root",
        "--runroot",
        top / "p" / "run",
        "--tmpdir",
        top / "p" / "tmp",
    ]
    command += ["--storage-driver", "overlay"]

    def clean() -> None:
        _quietly(*command, "rmi", "--all", "--force")
        shutil.rmtree(top / "p", ignore_errors=True)

    return Case("podman pull", _timed(lambda: _quietly(*command, "pull", "--tls-verify=false", name), clean))


@contextlib.contextmanager
def _docker(top: Path, name: str) -> Iterator[Case | Absent]:
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        yield Absent("docker pull", "dockerd is not installed, or this is not root")
        return
    with programs.docker(top / "d") as docker:
        yield Case(
            "docker pull",
            _timed(lambda: _quietly(*docker, "pull", name), lambda: _quietly(*docker, "rmi", "-f", name)),
        )


def _judged(job: str, ours: Summary, other: Summary, bar: float) -> dict[str, object]:
    middle, low, high = ratio(ours, other)
    met = middle <= bar
    print(
        f"{job:28} {ours.p50:8.3f} s  {other.name:16} {other.p50:8.3f} s"
        f"  ratio {middle:6.3f} [{low:.3f}, {high:.3f}]  bar {bar:5.2f}  {'met' if met else 'MISSED'}"
    )
    return {
        "job": job,
        "against": other.name,
        "ours_p50": ours.p50,
        "other_p50": other.p50,
        "ratio": middle,
        "interval": [low, high],
        "bar": bar,
        "met": met,
    }


def _pulls(top: Path, name: str, rounds: int) -> list[dict[str, object]]:
    with contextlib.ExitStack() as stack:
        found = [_own(top, name), _skopeo_umoci(top, name), _podman(top, name)]
        found.append(stack.enter_context(_docker(top, name)))
        for case in found:
            if isinstance(case, Absent):
                print(f"{case.name}: skipped: {case.reason}")
        there = [case for case in found if isinstance(case, Case)]
        ours, *others = interleave(there, rounds, 1, 0)
    return [_judged("pull and unpack", ours, other, _PEER_BAR) for other in others]


def _layer(top: Path, engine: Engine, image: Image, rounds: int) -> list[dict[str, object]]:
    """Measure one compressed layer by our unpacker, digests verified, and by `tar -xzf`."""
    from pycontain._images.layers import LayerBuild, feed_verified

    store, blob = engine._session.store, image.layers[0].digest
    builds: list[LayerBuild] = []

    def ours() -> None:
        builds.append(LayerBuild(store, image.config.diff_ids[0]))
        feed_verified(store, blob, builds[0])
        builds[0].end()
        builds[0].finish(())

    target = top / "tar"
    target.mkdir()

    def clean() -> None:
        shutil.rmtree(target)
        target.mkdir()

    cases = [
        Case("pycontain", _timed(ours, lambda: builds.pop().abandon())),
        Case("tar -xzf", _timed(lambda: _quietly("tar", "-xzf", store.blob_path(blob), "-C", target), clean)),
    ]
    one, other = interleave(cases, rounds, 2, 0)
    return [_judged("unpack of one layer", one, other, _TAR_BAR)]


def _second(top: Path, engine: Engine, image: Image, registry: str) -> list[dict[str, object]]:
    """Count the bytes fetched for an image that shares all layers but one with a local one."""
    with Container(image, engine=engine) as container:
        container.exec("echo more > /more", shell=True, check=True)
        more = container.commit()
    more.push(f"{registry}/pyc/bench:2", insecure=True, progress=False)
    totals: list[int] = []
    with Engine(top / "second", ahead=0) as other:
        Image.pull(f"{registry}/pyc/bench:1", insecure=True, progress=False, engine=other)
        begun = time.perf_counter()
        Image.pull(
            f"{registry}/pyc/bench:2",
            insecure=True,
            progress=lambda progress: totals.append(progress.total),
            engine=other,
        )
        taken = time.perf_counter() - begun
    met = max(totals) == more.layers[-1].size
    print(
        f"second image: {max(totals)} bytes, {taken * 1e3:.1f} ms; its own layer {more.layers[-1].size} bytes"
    )
    return [{"job": "second image", "bytes": max(totals), "seconds": taken, "met": met}]


_MEMORY = """
import resource, sys
from pycontain import Engine, Image
with Engine(sys.argv[1], ahead=0) as engine:
    Image.pull(sys.argv[2], insecure=True, progress=False, engine=engine)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""


def _memory(top: Path, name: str) -> list[dict[str, object]]:
    """Measure the memory of a process that pulls, interpreter included."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(top / "memory"), name], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout)
    met = peak <= _MEMORY_BAR
    print(f"memory of a pull: {peak >> 20} MiB  bar {_MEMORY_BAR >> 20} MiB  {'met' if met else 'MISSED'}")
    return [{"job": "memory of a pull", "bytes": peak, "bar": _MEMORY_BAR, "met": met}]


def images(quick: bool) -> list[dict[str, object]]:
    """Measure a Debian minbase from a registry on the loopback, on tmpfs because disks throttle."""
    rounds = 2 if quick else 6
    where = os.environ.get("PYC_BENCH_IMAGES", "/dev/shm")
    with contextlib.ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyc-", dir=where)))
        tree = _debian(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyc-debian-"))))
        served = stack.enter_context(programs.registry(top / "r"))
        engine = stack.enter_context(Engine(top / "made", ahead=0))
        image = Image.from_rootfs(tree, copy=True, engine=engine)
        name = f"{served.name}/pyc/bench:1"
        image.push(name, insecure=True, progress=False)
        print(f"image: {image.size / 1e6:.0f} MB, {image.layers[0].size / 1e6:.0f} MB compressed, on {where}")
        rows = _pulls(top, name, rounds)
        rows += _layer(top, engine, image, rounds)
        rows += _second(top, engine, image, served.name)
        return rows + _memory(top, name)
