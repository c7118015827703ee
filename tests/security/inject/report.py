"""The results of a set of runs, as text."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from attrs import frozen

from tests.security.inject.model import WAYS, Clean, Run


@frozen
class Total:
    """The results of a set of runs."""

    clean: Clean
    runs: tuple[Run, ...]
    left: int = 0
    seconds: float = 0.0

    @property
    def findings(self) -> list[str]:
        """Return the findings of all runs."""
        return [line for run in self.runs for line in run.findings]

    def __str__(self) -> str:
        verdicts = collections.Counter(run.verdict for run in self.runs)
        verdicts["leak"] = sum(bool(run.leaks) for run in self.runs)
        refused = [run for run in self.runs if run.verdict == "refused"]
        named = sum(run.names_step for run in refused)
        aims = [run.aim for run in self.runs if run.aim is not None]
        everything = {(way, *call[:2]) for way in WAYS for call in self.clean.calls[way]}
        lines = [
            f"{len({name for _, _, name in everything})} system calls by name, "
            f"{len(self.clean.calls['plain'])} in a plain start with two execs; "
            f"injected: {len({one.name for one in aims})} by name, "
            f"{len({(one.way, one.role, one.name, one.n) for one in aims})} in all",
            f"{len(self.runs)} runs in {self.seconds:.0f} s, {self.left} left out: "
            + ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())),
            f"{named} of {len(refused)} refusals name a step",
        ]
        for way, meaning in WAYS.items():
            counts = self.clean.counts(way)
            lines += ["", f"who calls what, and how often: {way}, {meaning}"]
            for role in dict.fromkeys(role for role, _ in counts):
                if way != "plain" and role not in ("newborn", "launcher", "child"):
                    continue
                own = (f"{name} {n}" for (who, name), n in sorted(counts.items()) if who == role)
                lines.append(f"  {role}: " + ", ".join(own))
        lines += ["", "what goes on as if nothing had happened:", *_grouped(self.runs, "same")]
        lines += ["", "refused without the name of a step:", *_grouped(self.runs, "refused", named=False)]
        lines += ["", "aims that met nothing:", *_grouped(self.runs, "missed")]
        lines += ["", f"{len(self.findings)} findings", *(f"  {line}" for line in self.findings)]
        return "\n".join(lines)


def _grouped(runs: Sequence[Run], verdict: str, *, named: bool | None = None) -> list[str]:
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.verdict != verdict or run.aim is None or (named is not None and run.names_step != named):
            continue
        aim = run.aim
        key = f"  {aim.way}, {aim.role}: {aim.name} {aim.kind} {aim.value} [{run.where[:100]}]"
        found.setdefault(key, []).append(str(run.aim.n))
    return [f"{key} #{','.join(numbers)}" for key, numbers in found.items()]
