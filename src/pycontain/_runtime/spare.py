"""Spares: children with namespaces, ids and groups made ahead, and nothing of any container in them.

One waits in each launcher from which containers are started in quick succession.  It is used once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._cgroups.group import Group
from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import request
from pycontain._model.limits import CgroupLimits
from pycontain._runtime.cleanup import CleanupJob
from pycontain._runtime.compile import CgroupEntry

if TYPE_CHECKING:
    from pycontain._engine import Engine
    from pycontain._runtime.compile import RootPlan


@frozen(eq=False)
class Spare:
    """What waits in a launcher: a child of these namespaces, born in this group with this block of ids."""

    group: Group
    block: int
    namespaces: int
    flags: int


class Spares:
    """The spares of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._number = 0

    def take(self, launcher: Launcher, root_plan: RootPlan, limits: CgroupLimits) -> Spare | None:
        """The spare that waits in this launcher, if a container with this root plan can be started in it."""
        spare: Spare | None = launcher.spare
        if spare is None or not root_plan.init or not root_plan.fits_one_message:
            return None
        if (spare.namespaces, spare.flags) != (root_plan.namespaces, root_plan.flags):
            return None
        if not spare.group.can_hold(limits):
            return None
        launcher.spare = None
        return spare

    def refill(self, launcher: Launcher, root_plan: RootPlan) -> None:
        """Let a child wait in this launcher, if none does and the root plan allows it."""
        cgroups = self._engine.cgroups
        if launcher.spare is not None or not root_plan.init or not root_plan.privileged:
            return
        if not cgroups.usable:
            return
        block = self._engine.owner.blocks.acquire()
        self._number += 1
        group = Group(cgroups, f"s{self._number}", block)
        script = group.creation_script(CgroupLimits())
        parents = [fd for fd, _ in group.parents()]
        plan = root_plan.spare(block, CgroupEntry(group.enters_unified, group.tasks_count, len(parents)))
        # Known before it exists: whatever of it comes to be is removed with the launcher's engine.
        launcher.spare = Spare(group, block, root_plan.namespaces, root_plan.flags)
        native.send(launcher.socket, request(native.PREPARE, plan + script, value=len(plan)), parents)

    def discard(self) -> None:
        """Remove what the spares leave; their launchers are closed already."""
        for spare in self._engine.launchers.spares():
            self._engine.cleanup.put(CleanupJob(spare.group.name, spare.group, -1, spare.block, False))
