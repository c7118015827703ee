"""Interleaved measuring: every round runs all cases, forwards and then backwards (A B B A)."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

RESULTS = Path(__file__).parent / "results"


@frozen
class Case:
    """One way to do a job: `sample(count, pause)` gives seconds per repetition."""

    name: str
    sample: Callable[[int, float], list[float]]


@frozen
class Absent:
    """A peer that is not here."""

    name: str
    reason: str


@frozen
class Summary:
    """Seconds."""

    name: str
    samples: list[float] = field(repr=False)

    @property
    def p50(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def p99(self) -> float:
        """The 99th percentile."""
        return sorted(self.samples)[min(len(self.samples) - 1, int(len(self.samples) * 0.99))]


def interleave(cases: Sequence[Case], rounds: int, count: int, pause: float) -> list[Summary]:
    """Return samples of every case, taken in turn."""
    samples: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(rounds):
        order = list(cases) if number % 2 == 0 else list(reversed(cases))
        for case in order:
            samples[case.name].extend(case.sample(count, pause))
    return [Summary(name, values) for name, values in samples.items()]


def ratio(one: Summary, other: Summary) -> tuple[float, float, float]:
    """Return the ratio of the medians with the 95 % interval of a bootstrap."""
    generator = random.Random(1)
    drawn = sorted(
        statistics.median(generator.choices(one.samples, k=len(one.samples)))
        / statistics.median(generator.choices(other.samples, k=len(other.samples)))
        for _ in range(300)
    )
    return one.p50 / other.p50, drawn[7], drawn[292]


def repeated(job: Callable[[], object]) -> Callable[[int, float], list[float]]:
    """Return a sampler that times `job` in this process, with a pause before each."""

    def sample(count: int, pause: float) -> list[float]:
        taken = []
        for _ in range(count):
            if pause:
                time.sleep(pause)
            begun = time.perf_counter()
            job()
            taken.append(time.perf_counter() - begun)
        return taken

    return sample


def imported(module: str) -> Case:
    """Return a case: import of a module in a new interpreter, less one that imports nothing."""

    def run(code: str) -> float:
        begun = time.perf_counter()
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
        os.waitpid(pid, 0)
        return time.perf_counter() - begun

    def sample(count: int, pause: float) -> list[float]:
        del pause
        return [run(f"import {module}") - run("pass") for _ in range(count)]

    return Case(f"import {module}", sample)


def split(found: Sequence[Case | Absent]) -> list[Case]:
    """Return the available cases and print the names of the others."""
    for one in found:
        if isinstance(one, Absent):
            print(f"{one.name}: skipped: {one.reason}")
    return [one for one in found if isinstance(one, Case)]


def available() -> int:
    """Return the bytes of available memory of the host."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def alone(module: str, *arguments: str) -> list[Any]:
    """Run a module in its own network namespace and return the JSON values that it prints."""
    command = ["unshare", "--net", sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def machine() -> dict[str, object]:
    """Return the machine and versions that the figures belong to."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "load": Path("/proc/loadavg").read_text().split()[0],
        "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def save(name: str, rows: list[dict[str, object]]) -> None:
    """Write results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "rows": rows}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def row(job: str, ours: Summary, other: Summary, bar: float | None) -> dict[str, object]:
    """Print a comparison and keep it; without a bar it is judged by nothing."""
    middle, low, high = ratio(ours, other)
    wanted = "" if bar is None else f"  bar {bar:5.3f}  {'met' if middle <= bar else 'MISSED'}"
    print(
        f"{job:28} {ours.p50 * 1e3:8.3f} ms (p99 {ours.p99 * 1e3:8.3f})"
        f"  {other.name:22} {other.p50 * 1e3:8.3f} ms  ratio {middle:6.3f} [{low:.3f}, {high:.3f}]{wanted}"
    )
    return {
        "job": job,
        "against": other.name,
        "ours_p50": ours.p50,
        "ours_p99": ours.p99,
        "other_p50": other.p50,
        "other_p99": other.p99,
        "ratio": middle,
        "interval": [low, high],
        "bar": bar,
        "met": None if bar is None else middle <= bar,
    }
