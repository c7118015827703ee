"""The verdict on one run."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from tests.security.inject.model import Aim, Run


def _difference(clean: tuple[str, ...], seen: tuple[str, ...]) -> tuple[str, ...]:
    lines = []
    for number, (before, after) in enumerate(zip(clean, seen, strict=False)):
        old, new = before.splitlines(), after.splitlines()
        lines += [f"view {number}: - {line}" for line in old if line not in new]
        lines += [f"view {number}: + {line}" for line in new if line not in old]
    return tuple(lines)


def _innermost(said: str) -> tuple[str, ...]:
    """Return three lines: the innermost frames of a lab that hung, or the last output of one that died."""
    lines = [line.strip() for line in said.splitlines() if "tests/security" not in line]
    at = next((at for at, line in enumerate(lines) if line.startswith("Timeout")), None)
    return tuple(lines[-3:] if at is None else lines[at + 2 : at + 5])


def judge(aim: Aim | None, report: dict[str, Any], clean: tuple[str, ...]) -> Run:
    """Judge one run.  A guest that ran with another view counts as weaker in any case."""
    for kind in ("hang", "crash"):
        if kind in report:
            return Run(aim, kind, details=_innermost(report[kind]))
    views, leaks = tuple(report["views"]), tuple(report["leaks"])
    run = Run(aim, "same", call=report.get("hit", ""), leaks=leaks)
    ran = [(before, now) for before, now in zip(clean, views, strict=False) if now]
    different = _difference(*zip(*ran, strict=True)) if ran else ()
    if different:
        return evolve(run, verdict="weaker", where=report["error"] or "", details=different[:12])
    if report["error"]:
        verdict = "refused" if report["typed"] else "untyped"
        return evolve(run, verdict=verdict, where=report["error"], names_step=bool(report["step"]))
    if views != clean:  # a command that wrote nothing, and whose failure was reported
        reported = all(code != 0 for code, view in zip(report["codes"], views, strict=True) if not view)
        return evolve(
            run, verdict="refused" if reported else "wrong", where=f"return codes {report['codes']}"
        )
    if any(report["codes"]):
        return evolve(run, verdict="wrong", where=f"the guest ran, return codes {report['codes']}")
    if aim is not None and not run.call:
        return evolve(run, verdict="missed")
    return run
