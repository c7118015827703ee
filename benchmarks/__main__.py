"""Run the benchmarks: `python -m benchmarks [JOB ...]`, with the jobs of JOBS."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import threading
from pathlib import Path

from benchmarks import peers, plot
from benchmarks.branching import branching
from benchmarks.files import files
from benchmarks.images import images
from benchmarks.measure import Case, available, imported, interleave, repeated, row, save, split
from benchmarks.networks import networks
from benchmarks.zygote import calls
from pycontain import Container, Image

BARS = {"floor": 1.5, "bwrap": 1 / 2, "crun": 1 / 4, "runc": 1 / 10, "docker-py": 1 / 100}


def start(quick: bool) -> list[dict[str, object]]:
    """Measure cold starts, burst and paced, against the floor and the peers."""
    rows = []
    with peers.workbench() as top, contextlib.ExitStack() as stack:
        image = Image.from_rootfs(top / "root")

        def ours() -> None:
            with Container(image) as container:
                container.exec(["/true"])

        def host_image() -> None:
            with Container() as container:
                container.exec(["/usr/bin/true"])

        ours()
        host_image()
        found = [
            Case("pycontain", repeated(ours)),
            peers.floor(top),
            peers.bubblewrap(top),
            peers.oci("crun", top),
            peers.oci("runc", top),
            stack.enter_context(peers.docker(top)),
            Case("pycontain, host image", repeated(host_image)),
        ]
        cases = split(found)
        for label, pause, rounds, count in (
            ("start, burst", 0.0, 4 if quick else 12, 10),
            ("start, paced", 0.05, 2 if quick else 8, 6),
        ):
            summaries = {one.name: one for one in interleave(cases, rounds, count, pause)}
            for name, bar in BARS.items():
                if name in summaries:
                    rows.append(row(label, summaries["pycontain"], summaries[name], bar))
            rows.append(
                row(f"{label}, host image", summaries["pycontain, host image"], summaries["pycontain"], 9.9)
            )
    return rows


def exec_(quick: bool) -> list[dict[str, object]]:
    """Measure exec in a running container against subprocess.run on the host."""
    true = str(peers.NATIVE / "true")
    rows = []
    with peers.workbench() as top, Container(Image.from_rootfs(top / "root")) as container:
        cases = [
            Case("pycontain exec", repeated(lambda: container.exec(["/true"]))),
            Case("subprocess.run", repeated(lambda: subprocess.run([true], capture_output=True, check=True))),
        ]
        for label, pause in (("exec, burst", 0.0), ("exec, paced", 0.02)):
            one, other = interleave(cases, 4 if quick else 20, 25, pause)
            rows.append(row(label, one, other, 1.3))
    return rows


_SCALE = """
import sys, time
from pycontain import Container, Image
heap = bytearray(int(sys.argv[1]) << 20)
for at in range(0, len(heap), 4096):
    heap[at] = 1
image = Image.from_rootfs(sys.argv[2])
def once():
    with Container(image) as c:
        c.exec(['/true'])
once()
print('up', flush=True)
for line in sys.stdin:
    begun = time.perf_counter()
    for _ in range(int(line)):
        once()
    print((time.perf_counter() - begun) / int(line), flush=True)
"""


def _caller(megabytes: int, root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _SCALE, str(megabytes), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def scale(quick: bool) -> list[dict[str, object]]:
    """Compare a caller of 4 GB with an empty one, and two threads with one."""
    rows = []
    rounds = 6 if quick else 30
    with peers.workbench() as top:
        root = top / "root"
        callers = {"4 GB caller": _caller(4096, root), "empty caller": _caller(0, root)}

        def sampler(name: str) -> Case:
            process = callers[name]

            def sample(count: int, pause: float) -> list[float]:
                del pause
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{count}\n")
                process.stdin.flush()
                return [float(process.stdout.readline())]

            return Case(name, sample)

        one, other = interleave([sampler(name) for name in callers], rounds, 10, 0)
        rows.append(row("start, 4 GB caller", one, other, 1.1))
        for process in callers.values():
            process.communicate()
        image = Image.from_rootfs(root)

        def burst() -> None:
            for _ in range(20):
                with Container(image) as container:
                    container.exec(["/true"])

        def two() -> None:
            threads = [threading.Thread(target=burst) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        two()
        # Twice the work in the same time would be a ratio of 0.5 per container.
        cases = [
            Case(
                "two threads", lambda count, pause: [seconds / 2 for seconds in repeated(two)(count, pause)]
            ),
            Case("one thread", repeated(burst)),
        ]
        one, other = interleave(cases, rounds, 1, 0)
        rows.append(row("start, two threads", one, other, 1 / 1.7))
        # The kernel's own gain by a second core is the upper bound for every engine.
        pair = [case for case in (peers.floors(top, 2), peers.floors(top, 1)) if isinstance(case, Case)]
        if len(pair) == 2:
            one, other = interleave(pair, rounds // 2, 1, 0)
            rows.append(row("floor, two at once", one, other, 1 / 1.7))
    return rows


def importing(quick: bool) -> list[dict[str, object]]:
    """Measure the imports of pycontain and attrs, each less an interpreter that imports nothing."""
    names = ("pycontain", "pycontain.lowlevel, pycontain._objects.run", "attrs")
    one, all_, other = interleave([imported(name) for name in names], 4 if quick else 15, 5, 0)
    return [row("import", one, other, 2.0), row("import, and all it loads later", all_, other, 2.0)]


def density(quick: bool) -> list[dict[str, object]]:
    """Measure the memory of an idle container, kernel memory included."""
    count, bar = 100 if quick else 1000, 1 << 20
    with peers.workbench() as top:
        image = Image.from_rootfs(top / "root")
        with Container(image) as container:
            container.exec(["/true"])
        before = available()
        containers = [Container(image).start() for _ in range(count)]
        each = (before - available()) / count
        for container in containers:
            container.remove()
    met = "met" if each <= bar else "MISSED"
    print(f"{count} live containers{'':12} {each / 1024:8.1f} KiB each  bar {bar / 1024:.0f} KiB  {met}")
    return [{"job": "density", "containers": count, "bytes_each": each, "bar": bar, "met": each <= bar}]


JOBS = {
    "start": start,
    "exec": exec_,
    "scale": scale,
    "import": importing,
    "density": density,
    "images": images,
    "branching": branching,
    "files": files,
    "zygote": calls,
    "networks": networks,
}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*", choices=[*JOBS, []])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    for name in options.jobs or JOBS:
        rows = JOBS[name](options.quick)
        save(name, rows)
        if name == "start":
            plot.bars(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
