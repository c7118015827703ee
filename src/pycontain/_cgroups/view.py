"""The cgroups and processors that a container sees below /sys, as entries for a launcher (sysview.c)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._cgroups import translate
from pycontain._cgroups.layout import write
from pycontain._cgroups.steps import make_missing

if TYPE_CHECKING:
    from pycontain._cgroups.hierarchies import Cgroups
    from pycontain._model.limits import CgroupLimits

_SYSTEM = ("devices/system/cpu", "devices/system/node")
_OWN = ("memory", "cpu", "cpuset")
_EXPECTED = ("cpu", "cpuacct", "cpuset")
"""Controllers of v1 without any of which a JVM ignores the limits of all the others."""
_COMMON = "common"
_LIMITS = frozenset({"memory", "cpu"})
"""Controllers of v2 without which there is nothing to see there."""


@frozen
class Entry:
    """An entry of the /sys of a launcher's containers.

    kind: 's' to show `path` of the host at `place` below /sys, or make a directory there without a path;
    'c' to keep it at `place` beside the root; 't' to join the group whose `tasks` file is `path`.
    """

    kind: str
    place: str
    path: str = ""

    def encode(self) -> bytes:
        """Return the bytes that sysview.c reads."""
        return f"{self.kind}{self.place}\0".encode() + os.fsencode(self.path) + b"\0"


def _old(cgroups: Cgroups, names: tuple[str, ...]) -> list[str]:
    layout = cgroups.layout
    return [name for name in names if name in layout.legacy and name not in layout.controllers]


def _both(cgroups: Cgroups) -> bool:
    """Return whether v2 has controllers to show beside those of v1."""
    return bool(cgroups.layout.legacy)


def _common(cgroups: Cgroups, controller: str) -> str:
    """Return the v1 group of containers that have none of their own, made when first asked for.

    It weighs as much as one task of the host's on each processor.
    """
    above = cgroups.legacy(controller)
    directory = f"{above}/{_COMMON}"
    if cgroups.note(directory):
        make_missing(controller, directory)
        if controller == "cpu":
            for path in (os.path.dirname(above), above, directory):
                write(f"{path}/cpu.shares", str(1024 * (os.cpu_count() or 1)))
    return directory


def entries(cgroups: Cgroups) -> list[Entry]:
    """Return what every container of an owner sees, and the directories of which it sees its own group.

    A container of v1 is in no group of its own for controllers that its limits do not need.  Its launcher
    joins a common one there, so that the files shown agree with /proc/self/cgroup.
    """
    shown = [Entry("s", place, f"/sys/{place}") for place in _SYSTEM if os.path.isdir(f"/sys/{place}")]
    shown.append(Entry("s", "fs/cgroup"))
    for name in _old(cgroups, _OWN):
        shown.append(Entry("c", f"c/{name}", cgroups.legacy(name)))
        shown.append(Entry("s", f"fs/cgroup/{name}"))
    for name in _old(cgroups, _EXPECTED):
        path = _common(cgroups, name)
        shown.append(Entry("t", name, f"{path}/tasks"))
        if name not in _OWN:
            shown.append(Entry("s", f"fs/cgroup/{name}", path))
    if cgroups.unified is not None and cgroups.layout.controllers & _LIMITS:
        shown.append(Entry("c", "c/unified", cgroups.unified))
        if _both(cgroups):
            shown.append(Entry("s", "fs/cgroup/unified"))
    return shown


def groups(cgroups: Cgroups, limits: CgroupLimits, name: str) -> list[tuple[str, str]]:
    """Return the groups of a container called `name`: the place beside a launcher's root, and below /sys."""
    wanted = {"memory", *translate.v1(limits)}
    found = [
        (f"c/{one}/{name if one in wanted else _COMMON}", f"fs/cgroup/{one}") for one in _old(cgroups, _OWN)
    ]
    if cgroups.unified is not None and cgroups.layout.controllers & _LIMITS:
        found.append((f"c/unified/{name}", "fs/cgroup/unified" if _both(cgroups) else "fs/cgroup"))
    return found
