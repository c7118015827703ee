"""Pre-cloned children: namespaces, ids and cgroups made before a start, without resources of a container.

A launcher from which containers are started in quick succession keeps one.  It is used once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._cgroups.group import Group
from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import RequestKind
from pycontain._model.limits import CgroupLimits
from pycontain._runtime.cleanup import CleanupJob
from pycontain._runtime.root_plan import CgroupEntry

if TYPE_CHECKING:
    from pycontain._runtime.root_plan import RootPlan
    from pycontain._runtime.session import Session


@frozen(eq=False)
class PreclonedChild:
    """A child that waits in a launcher.

    Args:
        group: Its cgroups.
        block: Its block of user ids.
        namespaces: Flags of clone(2) for its namespaces.
        flags: Flags of its plan.
    """

    group: Group
    block: int
    namespaces: int
    flags: int


class PreclonedChildren:
    """The pre-cloned children of one engine."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._number = 0

    def take(self, launcher: Launcher, root_plan: RootPlan, limits: CgroupLimits) -> PreclonedChild | None:
        """Return the child that waits in a launcher if a container of this plan can be started in it."""
        child: PreclonedChild | None = launcher.precloned
        if child is None or not root_plan.init or not root_plan.fits_one_message:
            return None
        if (child.namespaces, child.flags) != (root_plan.namespaces, root_plan.flags):
            return None
        if not child.group.can_hold(limits):
            return None
        launcher.precloned = None
        return child

    def refill(self, launcher: Launcher, root_plan: RootPlan) -> None:
        """Let a child wait in a launcher, unless one does or no container of this plan can use one."""
        cgroups = self._session.cgroups
        if launcher.precloned is not None or not root_plan.init or not root_plan.privileged:
            return
        if not cgroups.usable:
            return
        block = self._session.owner.blocks.acquire()
        self._number += 1
        group = Group(cgroups, f"s{self._number}", block)
        script = group.creation_script(CgroupLimits())
        parents = [fd for fd, _ in group.parents()]
        entry = CgroupEntry(group.enters_unified, group.tasks_count, len(parents))
        plan = root_plan.precloned_plan(block, entry)
        # Recorded before it exists, so that all of it is removed when the launcher ends.
        launcher.precloned = PreclonedChild(group, block, root_plan.namespaces, root_plan.flags)
        native.send(launcher.socket, request(RequestKind.PREPARE, plan + script, value=len(plan)), parents)

    def discard(self) -> None:
        """Remove the cgroups of the children, whose launchers are closed already."""
        for child in self._session.launchers.precloned():
            self._session.cleanup.put(CleanupJob(child.group.name, child.group, -1, child.block, False))
