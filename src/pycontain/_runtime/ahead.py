"""What is made before it is asked for: whole containers, and where those do not fit, spares.

A container that was made ahead has everything but a name: namespaces, groups with their limits,
root file system, agent.  Nobody's code has run in it.  The next `Container` of the same options
takes it over, and its id.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

from attrs import define

from pycontain._kernel.pidfd import wait_dead
from pycontain._runtime.compile import RootPlan, known_root_plan
from pycontain._runtime.launch import Launch
from pycontain._runtime.signals import shielded
from pycontain._runtime.spare import Spares
from pycontain._runtime.spec import new_id
from pycontain.errors import PycontainError

if TYPE_CHECKING:
    from pycontain._engine import Engine
    from pycontain._kernel.launcher import Launcher
    from pycontain._objects.container import Container
    from pycontain._runtime.running import Running
    from pycontain._runtime.spec import ContainerSpec

_SUCCESSION = 1.0
"""Seconds between two starts within which a third is expected."""
_MOST_HELD = 8
"""Containers that wait, of every kind together, also those that a `Container` holds and has not started."""


@define(eq=False)
class Standby:
    """A container that waits.  sources: what stood at the paths it mounts.  holder: who will start it."""

    launch: Launch
    hostname: str | None
    sources: list[tuple[int, ...]]
    holder: weakref.ref[Container] | None = None

    @property
    def free(self) -> bool:
        """Has nobody its id?"""
        return self.holder is None or self.holder() is None

    def fits(self, root_plan: RootPlan | None, hostname: str | None) -> bool:
        """Is it what such a container would be?"""
        return self.launch.root_plan is root_plan and self.hostname == hostname


class Ahead:
    """What one engine has made ahead."""

    def __init__(self, engine: Engine, most: int) -> None:
        self.spares = Spares(engine)
        self._engine = engine
        self._most = most
        self._stock: list[Standby] = []
        self._unfit: weakref.WeakSet[RootPlan] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._last = float("-inf")
        self._before: tuple[RootPlan, str | None] | None = None
        self._due: Launch | None = None

    def named(self, spec: ContainerSpec, holder: Container) -> ContainerSpec:
        """The spec, by the id of a container that waits for such a one if there is one."""
        if not self._stock:
            return spec
        root_plan = known_root_plan(self._engine, spec)
        with self._lock:
            for one in self._stock:
                if one.free and one.fits(root_plan, _hostname_of(spec)):
                    one.holder = weakref.ref(holder)
                    return spec.renamed(one.launch.spec.id)
        return spec

    def take(self, spec: ContainerSpec) -> Running | None:
        """The container that waits for this one, if it does and may still be used."""
        standby = next((one for one in list(self._stock) if one.launch.spec.id == spec.id), None)
        if standby is None:
            return None
        launch = standby.launch
        try:
            if standby.sources == _sources_of(launch.root_plan):
                running = launch.conclude(spec)
                if not wait_dead(launch.pidfd, 0):
                    self._engine.adopt(running)
                    self._engine.disk.add(running)
                    self._note(launch)
                    self._pop(spec.id)  # only now: until then it is known to be here, whatever interrupts
                    return running
        except (PycontainError, OSError):
            self._unfit.add(launch.root_plan)  # a start from the beginning will tell what is wrong
        except BaseException:
            self._pop(spec.id)
            shielded(launch.abandon)
            raise
        self._pop(spec.id)
        launch.abandon()
        self._engine.settle()  # the names are its successor's
        return None

    def _pop(self, name: str) -> Standby | None:
        with self._lock:
            for at, one in enumerate(self._stock):
                if one.launch.spec.id == name:
                    return self._stock.pop(at)
        return None

    def started(self, launcher: Launcher, launch: Launch) -> None:
        """A container was started.  What the next one will want is made when one ends.

        It would take processor and locks from the first command of this one; where starts follow each
        other without an end between, it is made at once.
        """
        pending = self._due is not None
        self._note(launch)
        if not self._most:
            return
        if self._due is not None and pending:
            self.spares.refill(launcher, launch.root_plan)

    def _note(self, launch: Launch) -> None:
        now = time.monotonic()
        soon, self._last = now - self._last < _SUCCESSION, now
        self._due = launch if soon else None

    def ended(self) -> None:
        """A container ended: time for what is due."""
        engine, launch, self._due = self._engine, self._due, None
        if not self._most or launch is None or engine.closed or not engine.launchers.idle:
            return
        kind = launch.root_plan, _hostname_of(launch.spec)
        again, self._before = kind == self._before, kind
        while again and self._wanted(*kind):
            self._make(launch.spec, kind[1])
        if not again:
            with engine.birthplace(launch.spec.linkage).borrow() as launcher:
                self.spares.refill(launcher, launch.root_plan)

    def _wanted(self, root_plan: RootPlan, hostname: str | None) -> bool:
        if (
            not root_plan.init
            or root_plan.joins
            or root_plan.shares
            or not root_plan.fits_one_message
            or root_plan in self._unfit
        ):
            return False
        with self._lock:
            if len(self._stock) >= _MOST_HELD:
                return False
            return sum(one.free and one.fits(root_plan, hostname) for one in self._stock) < self._most

    def _make(self, spec: ContainerSpec, hostname: str | None) -> None:
        """Ask for a container like this one; who takes it, or its launcher, hears what became of it."""
        engine = self._engine
        launch = Launch(engine, spec.renamed(new_id()))
        standby = Standby(launch, hostname, _sources_of(launch.root_plan))
        try:
            with engine.birthplace(spec.linkage).borrow() as launcher:
                launch.prepare(ahead=True)
                launch.ask(launcher)
            with self._lock:
                self._stock.append(standby)
        except BaseException as error:
            self._pop(launch.spec.id)
            shielded(launch.abandon)
            self._unfit.add(launch.root_plan)
            if not isinstance(error, PycontainError | OSError):
                raise

    def discard(self) -> None:
        """End and remove every container that waits."""
        while self._stock:
            with self._lock:
                one = self._stock.pop()
            one.launch.abandon()
        self._engine.settle()  # who holds one's id starts from the beginning, under the same names

    def forget(self) -> None:
        """For a forked child: the parent's are the parent's."""
        for one in self._stock:
            one.launch.forget()
        self._stock.clear()


def _hostname_of(spec: ContainerSpec) -> str | None:
    """The host name where it was asked for; None where it follows from the id."""
    return None if spec.hostname == spec.id[:12] else spec.hostname


def _sources_of(root_plan: RootPlan) -> list[tuple[int, ...]]:
    """What stands now at the paths to be mounted; a layer's root tells of changes right below it."""
    found: list[tuple[int, ...]] = []
    for at, (path, _) in enumerate(root_plan.sources):
        try:
            seen = os.stat(path)
        except OSError:
            found.append((0,))
            continue
        layer = at < root_plan.layers
        found.append((seen.st_dev, seen.st_ino, *((seen.st_mtime_ns, seen.st_ctime_ns) if layer else ())))
    if root_plan.binds:
        # Mounts below a bound directory show inside too, as they were when the container was made.
        with open("/proc/self/mountinfo", "rb") as file:
            found.append((hash(file.read()),))
    return found
