"""Calls into a prepared interpreter against commands in the same container."""

from __future__ import annotations

import importlib
import sys

from benchmarks.measure import Case, interleave, repeated, row
from pycontain import CallError, Container, Zygote

_HEAVY = ("numpy", "http.client")
"""Modules to import: the first that the interpreter inside has is used."""

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


def calls(quick: bool) -> list[dict[str, object]]:
    """Measure c.call of a trivial function, and of one with a heavy import, against exec."""
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
                row(f"call, {label}", call, true, None),
                row(f"call, {label}", call, bare, None),
                row(f"call with {name}, {label}", heavy, command, _BAR),
            ]
    return rows
