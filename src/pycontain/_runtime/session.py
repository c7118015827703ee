"""The state of one engine in this process: its helper processes, cgroups, store and live containers.

Modules of this room take a `Session` and values.  The public `Engine` is a facade of it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING

from pycontain._cgroups import view
from pycontain._cgroups.hierarchies import Cgroups, remove_owner
from pycontain._cgroups.refusals import enforced
from pycontain._kernel.features import Features, features
from pycontain._kernel.launcher import Launcher, LauncherPool, sub_id_maps
from pycontain._model.limits import CgroupLimits
from pycontain._runtime.cancel import Interrupts
from pycontain._runtime.cleanup import Cleanup
from pycontain._runtime.disk import DiskWatch
from pycontain._runtime.kernel_memory import KernelMemoryWatch
from pycontain._runtime.leases import Leases
from pycontain._runtime.recover import recover
from pycontain._runtime.registry import Registry
from pycontain._runtime.running import Cause
from pycontain._runtime.warm import WarmContainers
from pycontain._state.owner import BLOCK, Owner
from pycontain._state.paths import Roots, record_shared
from pycontain.errors import ImageError, StateError

if TYPE_CHECKING:
    from pycontain._images.bounds import LayerLimits
    from pycontain._images.store import Store
    from pycontain._networks.manager import NetworkManager
    from pycontain._networks.network import Bridge
    from pycontain._runtime.network import NetworkSpec
    from pycontain._runtime.root_plan import RootPlan

_MOST_ENFORCED = 256
"""Answers of `Session.enforceable` that are kept."""

_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """Everything that an engine has in this process.

    Args:
        root: Where to keep state; None for PYCONTAIN_ROOT, or else the directories of the system or the user.
        warm: The most warm containers of one kind.
        layer_limits: Limits of an image's layer, None for the defaults.

    Attributes:
        roots: Directories of the store and of the run-time state.
        features: Features of this kernel.
        sub_ids: The number of ids inside a rootless container with subordinate ids, or 0.
        owner: The claim of this session on everything that it creates.
        cgroups: The cgroups of this session.
        launchers: The processes that start containers.
        cleanup: Removal of what ended containers leave.
        leases: Store content that containers use.
        registry: The live containers.
        warm: The warm containers.
        disk: Enforcement of disk limits.
        kernel_memory: Enforcement of memory limits for kernel memory that no cgroup counts.
        interrupts: Ctrl-C for commands of other threads.
        root_plans: Compiled plans of containers that were started, by their options.

    Raises:
        PathError: The root cannot be used.
        StartError: The helper that removes what dead processes left does not start.
    """

    def __init__(
        self, root: str | os.PathLike[str] | None, warm: int, layer_limits: LayerLimits | None
    ) -> None:
        self._layer_limits = layer_limits
        self.roots = Roots.of(root)
        record_shared(self.roots)
        self.features: Features = features()
        self.id_maps = None if self.features.privileged else sub_id_maps()
        self.sub_ids = int(self.id_maps[0][5]) + 1 if self.id_maps else 0
        self.owner = Owner(self.roots)
        try:
            recovered = self._open(warm)
        except BaseException:
            self.owner.close()
            raise
        _sessions.add(self)
        if recovered:
            self._drop_leases_of_dead()

    def _open(self, warm: int) -> int:
        self.cgroups = Cgroups(self.owner.name)
        self.launchers = LauncherPool(
            plain=not self.features.privileged, maps=self.id_maps, views=self._views
        )
        self.cleanup = Cleanup(self.owner, self.make_helper)
        self.leases = Leases(self.owner.name, lambda: self.store, self.cleanup)
        self.registry = Registry()
        self.warm = WarmContainers(self, warm)
        self.disk = DiskWatch(self)
        self.kernel_memory = KernelMemoryWatch(self)
        self.interrupts = Interrupts(self.registry.live)
        self.root_plans: dict[object, RootPlan] = {}
        self._views_lock = threading.Lock()
        self._lock = threading.Lock()
        self._locks: dict[str, int] = {}
        self._store: Store | None = None
        self._network_manager: NetworkManager | None = None
        self._rootless_netns: LauncherPool | None = None
        self._enforced: dict[object, CgroupLimits] = {}
        return self.recover()

    @property
    def closed(self) -> bool:
        """Return whether the session is closed."""
        return self.registry.closed

    def check_open(self) -> None:
        """Raise StateError if the session is closed."""
        if self.registry.closed:
            raise StateError("the engine is closed")

    @property
    def ids_inside(self) -> int:
        """Return the number of user and group ids inside a container, from 0 on."""
        return BLOCK if self.features.privileged else self.sub_ids or 1

    def make_helper(self) -> Launcher:
        """Start a launcher apart from the pool, for cleanup or files.

        Raises:
            StartError: It does not start.
        """
        return Launcher(plain=not self.features.privileged, maps=self.id_maps)

    def _views(self) -> list[tuple[str, bytes]]:
        """Return the entries of the /sys that containers see."""
        with self._views_lock:
            return [(entry.path, entry.encode()) for entry in view.entries(self.cgroups)]

    @property
    def store(self) -> Store:
        """Return the image store, opened on first use.

        Raises:
            StateError: The session is closed.
            ImageError: The store cannot be used.
        """
        self.check_open()
        with self._lock:
            if self._store is None:
                from pycontain._images.bounds import LayerLimits
                from pycontain._images.store import Store

                privileged = self.features.privileged
                self._store = Store(
                    self.roots,
                    self.owner,
                    self._layer_limits or LayerLimits(),
                    privileged=privileged,
                    owners=privileged or bool(self.sub_ids),
                    landlock=self.features.landlock,
                    make_launcher=self.make_helper,
                )
            return self._store

    @property
    def bridges(self) -> list[Bridge]:
        """Return the bridges of the networks, by name."""
        manager = self._network_manager
        return [] if manager is None else sorted(manager.bridges.values(), key=lambda one: one.name)

    @property
    def network_manager(self) -> NetworkManager:
        """Return the manager of the networks, made on first use.

        Raises:
            UnsupportedError: This host cannot have networks.
            StartError: Its launcher does not start.
            StateError: The session is closed.
        """
        self.check_open()
        with self._lock:
            if self._network_manager is None:
                from pycontain._networks.manager import NetworkManager

                self._network_manager = NetworkManager(
                    self.owner.name, self._network_launchers(), rootless=not self.features.privileged
                )
            return self._network_manager

    def _network_launchers(self) -> LauncherPool:
        """Return the launcher of networks, apart from the pool so that it waits for no start."""
        if self._rootless_netns is None:
            rootless = not self.features.privileged
            self._rootless_netns = LauncherPool(
                plain=rootless, maps=self.id_maps, size=1, rootless_netns=rootless, views=self._views
            )
        return self._rootless_netns

    def launchers_for(self, network_spec: NetworkSpec) -> LauncherPool:
        """Return the launchers that can start a container on these networks.

        Rootless networks are in a namespace of one launcher, which has rights over those of its children.
        """
        if self.features.privileged or not network_spec.in_rootless_netns:
            return self.launchers
        with self._lock:
            return self._network_launchers()

    def enforceable(
        self, limits: CgroupLimits, asked: frozenset[str], optional: frozenset[str]
    ) -> CgroupLimits:
        """Return the limits that the cgroups of this host enforce.

        Args:
            limits: The limits of a container, with the defaults.
            asked: Names of those that the caller gave.
            optional: Names of those that the caller does not insist on.

        Raises:
            UnsupportedError: A limit that the caller gave cannot be enforced.
        """
        key = (limits, asked, optional)
        try:
            if (found := self._enforced.get(key)) is not None:
                return found
        except TypeError:  # io_max and hugetlb are mappings
            return enforced(self.cgroups, limits, asked, optional)
        held = enforced(self.cgroups, limits, asked, optional)
        if len(self._enforced) > _MOST_ENFORCED:
            self._enforced.clear()
        self._enforced[key] = held
        return held

    def keep_locked(self, path: str, lock: int) -> None:
        """Keep a lock of a path until the session is closed; a second lock of a path is released."""
        if self._locks.setdefault(path, lock) != lock:
            os.close(lock)

    def _unlock(self) -> None:
        while self._locks:
            os.close(self._locks.popitem()[1])

    def recover(self) -> int:
        """Remove what sessions of dead processes left in the same root; return their number."""
        return recover(self.roots, self.cgroups.layout, self.make_helper)

    def _drop_leases_of_dead(self) -> None:
        if any(os.path.isdir(os.path.join(self.roots.data, name)) for name in ("sealed", "volumes")):
            with contextlib.suppress(ImageError):
                self.leases.remove_anonymous_volumes()
                self.leases.sweep_snapshot_layers()

    def end_all(self, cause: Cause) -> None:
        """End every container; running commands raise ContainerEnded in their threads."""
        running = self.registry.live()
        # All are killed first, so that each wait below is for a process that is dying already.
        for one in running:
            one.kill(cause)
        for one in running:
            one.end(cause)

    def close(self) -> None:
        """End every container and remove all state of this session.  Idempotent."""
        if self.registry.closed:
            return
        self.registry.closed = True
        store = self._store
        if store is not None:
            store.closing.set()
        self.interrupts.close()
        self.end_all(Cause("cancelled", "its engine was closed"))
        self.disk.close()
        self.kernel_memory.close()
        self.warm.discard()
        if self._network_manager is not None:
            self._network_manager.close()
        if self._rootless_netns is not None:
            self._rootless_netns.end()
        self.launchers.end()
        self.warm.precloned.discard()
        if store is not None:
            with contextlib.suppress(ImageError):
                self.leases.close(store)
            store.close()
        for name in os.listdir(self.owner.live):  # left by an interrupted removal
            self.cleanup.discard(name)
        self.cleanup.close()
        self.launchers.close()
        if self._rootless_netns is not None:
            self._rootless_netns.close()
        if not self.cgroups.remove():
            remove_owner(self.owner.name, self.cgroups.layout)
        with contextlib.suppress(OSError):
            self.owner.close()
        self._unlock()
        _sessions.discard(self)

    def forget(self) -> None:
        """Close the descriptors in a forked child; everything is the parent's."""
        self.registry.closed = True
        if self._store is not None:
            self._store.forget()
        self._store = None
        self.leases.forget()
        self.registry.forget()
        watches = (self.disk, self.kernel_memory)
        networks = (self._network_manager, self._rootless_netns)
        for part in (self.warm, self.interrupts, *watches, *networks):
            if part is not None:
                part.forget()
        self._network_manager = self._rootless_netns = None
        self.launchers.forget()
        self.cleanup.forget()
        self.cgroups.forget()
        self.owner.forget()
        self._unlock()


def close_all() -> None:
    """Close every session of this process."""
    for session in list(_sessions):
        session.close()


def _close_at_exit() -> None:
    """Close every session, and warn of containers that the program left running."""
    left = [running.spec.name for session in _sessions for running in session.registry.live()]
    close_all()
    for name in left:
        import warnings

        warnings.warn(f"container {name} was still running at exit", ResourceWarning, stacklevel=1)


def _after_fork() -> None:
    for session in list(_sessions):
        session.forget()
    _sessions.clear()


atexit.register(_close_at_exit)
os.register_at_fork(after_in_child=_after_fork)
