"""Warm containers: created before they are requested, and taken by the next container with equal options.

A warm container has namespaces, cgroups with their limits, a root file system and an agent, but no name, and
no code of a guest has run in it.  Where options differ, a pre-cloned child is kept instead.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

from attrs import define

from pycontain._kernel.pidfd import wait_dead
from pycontain._runtime.compile import known_root_plan
from pycontain._runtime.launch import Launch
from pycontain._runtime.precloned import PreclonedChildren
from pycontain._runtime.root_plan import RootPlan
from pycontain._runtime.signals import shielded
from pycontain._runtime.spec import new_id
from pycontain.errors import PycontainError

if TYPE_CHECKING:
    from pycontain._kernel.launcher import Launcher
    from pycontain._runtime.running import Running
    from pycontain._runtime.session import Session
    from pycontain._runtime.spec import ContainerSpec

_SUCCESSION = 1.0
"""Seconds between two starts within which a third is expected."""
_MOST_WARM = 8
"""Warm containers of all kinds together, with those that a `Container` has reserved and not started."""


@define(eq=False)
class WarmContainer:
    """One warm container.

    Args:
        launch: Its launch, which was requested and not concluded.
        hostname: The host name that was asked for, or None.
        sources: Identity of each path that it mounts, at the time of the launch.
        holder: The object that has reserved it.
    """

    launch: Launch
    hostname: str | None
    sources: list[tuple[int, ...]]
    holder: weakref.ref[object] | None = None

    @property
    def free(self) -> bool:
        """Return whether no live object has reserved it."""
        return self.holder is None or self.holder() is None

    def fits(self, root_plan: RootPlan | None, hostname: str | None) -> bool:
        """Return whether it equals a container of this plan and host name."""
        return self.launch.root_plan is root_plan and self.hostname == hostname


class WarmContainers:
    """The warm containers and pre-cloned children of one engine.

    Args:
        session: The session.
        most: The most warm containers of one kind.
    """

    def __init__(self, session: Session, most: int) -> None:
        self.precloned = PreclonedChildren(session)
        self._session = session
        self._most = most
        self._stock: list[WarmContainer] = []
        self._unfit: weakref.WeakSet[RootPlan] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._last = float("-inf")
        self._before: tuple[RootPlan, str | None] | None = None
        self._due: Launch | None = None

    def reserve(self, spec: ContainerSpec, holder: object) -> ContainerSpec:
        """Return the spec, with the id of a warm container that fits it if there is one.

        Args:
            spec: The container to be started later.
            holder: While this object lives, no other one gets the warm container.
        """
        if not self._stock:
            return spec
        root_plan = known_root_plan(self._session, spec)
        with self._lock:
            for one in self._stock:
                if one.free and one.fits(root_plan, _hostname_of(spec)):
                    one.holder = weakref.ref(holder)
                    return spec.renamed(one.launch.spec.id)
        return spec

    def take(self, spec: ContainerSpec) -> Running | None:
        """Return the warm container that was reserved for a spec, or None if there is none or it is stale."""
        warm = next((one for one in list(self._stock) if one.launch.spec.id == spec.id), None)
        if warm is None:
            return None
        launch = warm.launch
        try:
            if warm.sources == _sources_of(launch.root_plan):
                running = launch.conclude(spec)
                if not wait_dead(launch.pidfd, 0):
                    self._session.registry.add(running)
                    self._session.disk.add(running)
                    self._session.kernel_memory.add(running)
                    self._note(launch)
                    self._pop(spec.id)  # last, so that an interrupt before this does not lose it
                    return running
        except (PycontainError, OSError):
            self._unfit.add(launch.root_plan)  # the start from the beginning that follows reports the cause
        except BaseException:
            self._pop(spec.id)
            shielded(launch.abandon)
            raise
        self._pop(spec.id)
        launch.abandon()
        self._session.cleanup.settle()  # its cgroups and directory have the names that its successor needs
        return None

    def _pop(self, name: str) -> WarmContainer | None:
        with self._lock:
            for at, one in enumerate(self._stock):
                if one.launch.spec.id == name:
                    return self._stock.pop(at)
        return None

    def started(self, launcher: Launcher, launch: Launch) -> None:
        """Note a start, and prepare for the next one if starts follow each other without an end between.

        Otherwise that waits for the end of a container, because it would take processor time and kernel
        locks from the first command of this one.
        """
        pending = self._due is not None
        self._note(launch)
        if not self._most:
            return
        if self._due is not None and pending:
            self.precloned.refill(launcher, launch.root_plan)

    def _note(self, launch: Launch) -> None:
        now = time.monotonic()
        soon, self._last = now - self._last < _SUCCESSION, now
        self._due = launch if soon else None

    def ended(self) -> None:
        """Note the end of a container, and create what the next start is expected to need."""
        session, launch, self._due = self._session, self._due, None
        if not self._most or launch is None or session.closed or not session.launchers.idle:
            return
        kind = launch.root_plan, _hostname_of(launch.spec)
        again, self._before = kind == self._before, kind
        while again and self._wanted(*kind):
            self._make(launch.spec, kind[1])
        if not again:
            with session.launchers_for(launch.spec.network_spec).borrow() as launcher:
                self.precloned.refill(launcher, launch.root_plan)

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
            if len(self._stock) >= _MOST_WARM:
                return False
            return sum(one.free and one.fits(root_plan, hostname) for one in self._stock) < self._most

    def _make(self, spec: ContainerSpec, hostname: str | None) -> None:
        """Request a container like this one; the answer is read when it is taken, or by its launcher."""
        session = self._session
        launch = Launch(session, spec.renamed(new_id()))
        warm = WarmContainer(launch, hostname, _sources_of(launch.root_plan))
        try:
            with session.launchers_for(spec.network_spec).borrow() as launcher:
                launch.prepare(warm=True)
                launch.ask(launcher)
            with self._lock:
                self._stock.append(warm)
        except BaseException as error:
            self._pop(launch.spec.id)
            shielded(launch.abandon)
            self._unfit.add(launch.root_plan)
            if not isinstance(error, PycontainError | OSError):
                raise

    def discard(self) -> None:
        """End and remove every warm container."""
        while self._stock:
            with self._lock:
                one = self._stock.pop()
            one.launch.abandon()
        self._session.cleanup.settle()  # a holder of its id starts from the beginning, under the same names

    def forget(self) -> None:
        """Close the descriptors in a forked child; the containers are the parent's."""
        for one in self._stock:
            one.launch.forget()
        self._stock.clear()


def _hostname_of(spec: ContainerSpec) -> str | None:
    """Return the host name if it was asked for, None if it follows from the id."""
    return None if spec.hostname == spec.id[:12] else spec.hostname


def _sources_of(root_plan: RootPlan) -> list[tuple[int, ...]]:
    """Return the identity of each path to be mounted; of a layer's root with the times of its entries."""
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
        # A warm container has the mounts below a bound directory as they were when it was created.
        with open("/proc/self/mountinfo", "rb") as file:
            found.append((hash(file.read()),))
    return found
