"""Errors for limits that this host cannot enforce, with hints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import evolve

from pycontain._model.limits import CgroupLimits
from pycontain.errors import UnsupportedError

if TYPE_CHECKING:
    from pycontain._cgroups.hierarchies import Cgroups

DELEGATE = "systemd-run --user --scope -p Delegate=yes python app.py"
"""The command by which systemd gives an unprivileged user a cgroup of its own."""


def remedy() -> str:
    """Return a hint how this user gets a missing controller."""
    if os.geteuid() == 0:
        return "mount the controller: `pycontain doctor` lists the present ones"
    return f"run the program in a cgroup of its own: {DELEGATE}"


def refusal(refused: Mapping[str, UnsupportedError]) -> UnsupportedError:
    """Return one error for all limits that this host cannot hold, by their names."""
    names = sorted(refused)
    what = "the limit" if len(names) == 1 else "the limits"
    why = "; ".join(refused[name].feature for name in names)
    optional = ", ".join(map(repr, ["landlock", "time", *names]))
    without = f"security=Security.SANDBOX.evolve(optional={{{optional}}})"
    return UnsupportedError(
        f"{what} {', '.join(names)} ({why})",
        hint=f"{refused[names[0]].hint}; or go without: {without}",
    )


def enforced(
    cgroups: Cgroups, limits: CgroupLimits, asked: frozenset[str], optional: frozenset[str]
) -> CgroupLimits:
    """Return the limits that cgroups hold here, None for the others.

    Args:
        cgroups: The hierarchies of this host.
        limits: Of a container, with the defaults.
        asked: Names of the limits that the caller gave.
        optional: Names of those without which the container may start.

    Raises:
        UnsupportedError: For all limits together that were asked for and cannot be held.
    """
    dropped: dict[str, None] = {}
    refused: dict[str, UnsupportedError] = {}
    for name in asked | {"memory", "pids"}:
        value = getattr(limits, name)
        if value is None:
            continue
        try:
            cgroups.check(CgroupLimits(**{name: value}))
        except UnsupportedError as error:
            if name in asked and name not in optional:
                refused[name] = error
            dropped[name] = None
    if refused:
        raise refusal(refused)
    return evolve(limits, **dropped) if dropped else limits
