"""Calls into a prepared interpreter against commands in the same container."""

from __future__ import annotations

import importlib
import sys

from benchmarks.measure import Case, Summary, interleave, ratio, repeated
from pycontain import CallError, Container, Zygote

_HEAVY = ("numpy", "http.client")
"""What is imported: the first of these that the interpreter inside has."""

_BAR = 1 / 10


def _heavy(name: str) -> str:
    return importlib.import_module(name).__name__


def _prepared(container: Container) -> tuple[str, Zygote]:
    for name in _HEAVY:
        try:
            return name, container.zygote([name])
        except CallError as error:
            print(f"{name}: skipped: {error}")
    raise RuntimeError("no module to import")


def _row(job: str, ours: Summary, other: Summary, bar: float | None) -> dict[str, object]:
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


def calls(quick: bool) -> list[dict[str, object]]:
    """c.call of a trivial function and of one that needs a heavy import, against exec."""
    rows = []
    with Container() as container:
        name, zygote = _prepared(container)
        python = sys.executable
        cases = [
            Case("call", repeated(lambda: container.call(int))),
            Case(f"call, {name}", repeated(lambda: zygote.call(_heavy, name))),
            Case("exec true", repeated(lambda: container.exec(["/usr/bin/true"]))),
            Case("exec python3 -c pass", repeated(lambda: container.exec([python, "-c", "pass"]))),
            Case(f"exec, import {name}", repeated(lambda: container.exec([python, "-c", f"import {name}"]))),
        ]
        for case in cases:
            case.sample(1, 0)
        for label, pause in (("burst", 0.0), ("paced", 0.05)):
            call, heavy, true, bare, command = interleave(cases, 2 if quick else 8, 10, pause)
            rows += [
                _row(f"call, {label}", call, true, None),
                _row(f"call, {label}", call, bare, None),
                _row(f"call with {name}, {label}", heavy, command, _BAR),
            ]
    return rows
