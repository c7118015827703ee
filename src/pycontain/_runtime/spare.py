"""Spares: children with namespaces, ids and groups made ahead, and nothing of any container in them.

One waits in each launcher from which containers are started in quick succession.  It is used once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._cgroups.group import Group
from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import request
from pycontain._runtime.collect import Remains

if TYPE_CHECKING:
    from pycontain._engine import Engine
    from pycontain._model.limits import CgroupLimits
    from pycontain._runtime.compile import Template

_MOST_BULK = 64 << 10
"""Bytes of a plan that go in one message with a spare's script in any case."""

_SUCCESSION = 1.0
"""Seconds between two starts within which a third is expected."""


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
        self._last = float("-inf")
        self._due: Template | None = None

    def take(self, launcher: Launcher, template: Template, limits: CgroupLimits) -> Spare | None:
        """The spare that waits in this launcher, if the template can be started in it."""
        spare: Spare | None = launcher.spare
        if spare is None or not template.init or template.bulk > _MOST_BULK:
            return None
        if (spare.namespaces, spare.flags) != (template.namespaces, template.flags):
            return None
        if not spare.group.takes(limits):
            return None
        launcher.spare = None
        return spare

    def started(self, launcher: Launcher, template: Template) -> None:
        """A container was started: where they follow each other, the next one will want a spare.

        It is asked for when one ends, since it would take processor and locks from the first command
        of this one; where starts follow each other without an end between, at once.
        """
        now = time.monotonic()
        soon, self._last = now - self._last < _SUCCESSION, now
        pending, self._due = self._due is not None, template if soon else None
        if soon and pending:
            self._refill(launcher, template)

    def ended(self) -> None:
        """A container ended: time for the spare that is due."""
        template, self._due = self._due, None
        if template is None or self._engine.closed or not self._engine.launchers.idle:
            return
        with self._engine.launchers.borrow() as launcher:
            self._refill(launcher, template)

    def _refill(self, launcher: Launcher, template: Template) -> None:
        cgroups = self._engine.cgroups
        if launcher.spare is not None or not template.init or not template.privileged:
            return
        if cgroups.unified is None and not cgroups.layout.legacy:
            return
        block = self._engine.owner.blocks.acquire()
        self._number += 1
        group = Group(cgroups, f"s{self._number}", block)
        script = group.ahead()
        parents = [fd for fd, _ in group.parents()]
        plan = template.spare(block, len(parents), group.entrances, cgroups.unified is not None)
        # Known before it exists: whatever of it comes to be is removed with the launcher's engine.
        launcher.spare = Spare(group, block, template.namespaces, template.flags)
        native.send(launcher.socket, request(native.PREPARE, plan + script, value=len(plan)), parents)

    def discard(self) -> None:
        """Remove what the spares leave; their launchers are closed already."""
        for spare in self._engine.launchers.spares():
            self._engine.collector.put(Remains(spare.group.name, spare.group, -1, spare.block, False))
