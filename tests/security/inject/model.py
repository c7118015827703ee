"""Values of fault injection: aims, results of a run, and the record of a clean run."""

from __future__ import annotations

import collections
from typing import Any

from attrs import frozen

PATIENCE = 10.0
"""Seconds for one run; a longer one hangs."""
WAYS = {
    "plain": "a launcher that runs, without warm containers",
    "fresh": "the launcher itself starts first",
    "precloned": "the container is made of a pre-cloned child",
    "warm": "the container is warm",
}


class Unable(Exception):
    """An error of a host that cannot run the injection, with the reason."""


@frozen
class Aim:
    """One system call of one process, counted from 1, and the injected result.

    kind: 'error' with an errno's name, 'delay' with seconds, or 'signal' with a number.  way: one of WAYS.
    """

    role: str
    name: str
    n: int
    kind: str
    value: Any
    way: str = "plain"

    def __str__(self) -> str:
        where = "" if self.way == "plain" else f", {self.way}"
        return f"{self.name} #{self.n} of the {self.role}{where}: {self.kind} {self.value}"


@frozen
class Run:
    """The result of one run.  where: the step or the error that was reported."""

    aim: Aim | None
    verdict: str
    where: str = ""
    call: str = ""
    names_step: bool = False
    details: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()

    @property
    def findings(self) -> list[str]:
        """Return one line for each problem of the run."""
        head = f"{self.aim or 'no injection'} {self.call}"
        found = []
        if self.verdict not in ("refused", "same", "missed"):
            found.append(f"{self.verdict}: {head} [{self.where}] {'; '.join(self.details)}")
        if self.leaks:
            found.append(f"leak: {head} [{self.verdict}: {self.where}] {'; '.join(self.leaks)}")
        return found


@frozen
class Clean:
    """Runs without injection: both views, and for each way every (process, name, call) in order."""

    views: tuple[str, ...]
    calls: dict[str, list[tuple[str, str, str]]]

    def counts(self, way: str = "plain") -> collections.Counter[tuple[str, str]]:
        """Return how often each process makes each call."""
        return collections.Counter((role, name) for role, name, _ in self.calls[way])

    @property
    def names(self) -> set[str]:
        """Return the names of all system calls of a start."""
        return {name for _, name in self.counts()}
