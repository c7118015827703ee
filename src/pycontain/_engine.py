"""The engine: one store, its launchers, its cgroups, and the containers of this process."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING

from pycontain._cgroups import view
from pycontain._cgroups.group import Group
from pycontain._cgroups.hierarchies import Cgroups, remove_owner
from pycontain._cgroups.refusals import enforced
from pycontain._kernel.features import Features, features
from pycontain._kernel.launcher import Launcher, LauncherPool, sub_id_maps
from pycontain._model.limits import CgroupLimits
from pycontain._runtime.cancel import Interrupts
from pycontain._runtime.cleanup import Cleanup
from pycontain._runtime.disk import DiskWatch
from pycontain._runtime.leases import Leases
from pycontain._runtime.recover import recover
from pycontain._runtime.running import Cause
from pycontain._runtime.warm import WarmContainers
from pycontain._security import policy
from pycontain._state.owner import BLOCK, Owner
from pycontain._state.paths import Roots, record_shared
from pycontain.errors import Conflict, ImageError, NotFound, StateError

if TYPE_CHECKING:
    from pycontain._images.bounds import LayerLimits
    from pycontain._images.store import Store
    from pycontain._images.sweep import Swept
    from pycontain._networks.bridge import Bridge
    from pycontain._networks.manager import NetworkManager
    from pycontain._objects.container import Container
    from pycontain._objects.image import Image
    from pycontain._objects.network import Network
    from pycontain._objects.volume import Volume
    from pycontain._runtime.compile import RootPlan
    from pycontain._runtime.network import Linkage
    from pycontain._runtime.running import Running
    from pycontain._runtime.spec import ContainerSpec

_RLIMIT_NPROC, _RLIMIT_DATA = "nproc", "data"


class Engine:
    """A store and everything live in it that belongs to this process.

    root: where to keep state; without it PYCONTAIN_ROOT, else the system's or the user's
    directories.  warm: how many warm containers of one kind may wait for the next
    start; 0 for none.  layer_limits: how much a layer of an image may hold.  Making an
    engine collects what dead processes left in the same root.  Raises PathError when the root cannot
    be used, StartError when no launcher starts, ValueError for a negative number.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        warm: int = 2,
        layer_limits: LayerLimits | None = None,
    ) -> None:
        self._layer_limits = layer_limits
        if warm < 0:
            raise ValueError(f"warm must be 0 or a number of containers, got {warm}")
        self.roots = Roots.of(root)
        record_shared(self.roots)
        self.features: Features = features()
        maps = None if self.features.privileged else sub_id_maps()
        self.sub_ids = int(maps[0][5]) + 1 if maps else 0
        self._maps = maps
        self.owner = Owner(self.roots)
        try:
            self._open(warm)
        except BaseException:
            self.owner.close()
            raise
        self.closed = False
        _engines.add(self)
        if self._recovered:
            self._let_go_of_dead()

    def _open(self, warm: int) -> None:
        self.cgroups = Cgroups(self.owner.name)
        self.launchers = LauncherPool(plain=not self.features.privileged, maps=self._maps, views=self._views)
        self.cleanup = Cleanup(self.owner, self._make_helper)
        self.leases = Leases(self.owner.name, lambda: self.store, self.cleanup)
        self.warm = WarmContainers(self, warm)
        self.disk = DiskWatch(self)
        self._lock = threading.Lock()
        self._viewing = threading.Lock()
        self._making = threading.Lock()
        self._running: dict[str, Running] = {}
        self._containers: dict[str, Container] = {}
        self._names: dict[str, str] = {}
        self._host_image: Image | None = None
        self._host_locks: dict[str, int] = {}
        self._store: Store | None = None
        self._network_manager: NetworkManager | None = None
        self._rootless_netns: LauncherPool | None = None
        self.interrupts = Interrupts(self._list_running)
        self._held: dict[object, CgroupLimits] = {}
        self.root_plans: dict[object, RootPlan] = {}
        self._recovered = recover(self.roots, self.cgroups.layout, self._make_helper)

    def _views(self) -> list[tuple[str, bytes]]:
        """Return the entries of the /sys that containers see."""
        with self._viewing:
            return [(entry.path, entry.encode()) for entry in view.entries(self.cgroups)]

    def _make_helper(self) -> Launcher:
        return Launcher(plain=not self.features.privileged, maps=self._maps)

    @property
    def id_maps(self) -> tuple[list[str], list[str]] | None:
        """Of a plain user with sub-ids: inside, outside, count, of users and of groups."""
        return self._maps

    @property
    def ids_inside(self) -> int:
        """How many ids of users and groups a container has, from 0 on."""
        return BLOCK if self.features.privileged else self.sub_ids or 1

    @property
    def containers(self) -> list[Container]:
        """The containers of this process that live."""
        with self._lock:
            return [self._containers[name] for name in self._running if name in self._containers]

    def host_image(self, paths: tuple[str, ...] = ()) -> Image:
        """Return `Image.host()` for this store; without more paths it is made once."""
        with self._making:
            if paths or self._host_image is None:
                from pycontain._objects.image import host_image

                image, lock = host_image(self.roots.data, paths)
                if self._host_locks.setdefault(image.directories[0], lock) != lock:
                    os.close(lock)
                if paths:
                    return image
                self._host_image = image
            return self._host_image

    @property
    def store(self) -> Store:
        """The images of this root."""
        self.check_open()
        with self._making:
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
                    make_launcher=self._make_helper,
                )
            return self._store

    @property
    def images(self) -> list[Image]:
        """The images of the store, the newest first."""
        from pycontain._objects.image import Image

        return Image.list(engine=self)

    @property
    def volumes(self) -> list[Volume]:
        """The volumes of the store, by name."""
        from pycontain._objects.volume import Volume

        return Volume.list(engine=self)

    @property
    def networks(self) -> list[Network]:
        """The networks of this engine, by name."""
        from pycontain._objects.network import Network

        return Network.list(engine=self)

    @property
    def bridges(self) -> list[Bridge]:
        """What stands behind them."""
        manager = self._network_manager
        return [] if manager is None else sorted(manager.bridges.values(), key=lambda one: one.name)

    @property
    def network_manager(self) -> NetworkManager:
        """What its networks stand on, made on first use.  Raises UnsupportedError, StartError."""
        self.check_open()
        with self._making:
            if self._network_manager is None:
                from pycontain._networks.manager import NetworkManager

                self._network_manager = NetworkManager(
                    self.owner.name, self._rootless_netns_pool(), rootless=not self.features.privileged
                )
            return self._network_manager

    def _rootless_netns_pool(self) -> LauncherPool:
        """A launcher for networks: root's so that it waits for no start, a plain user's to be in one."""
        if self._rootless_netns is None:
            plain = not self.features.privileged
            self._rootless_netns = LauncherPool(
                plain=plain, maps=self._maps, size=1, rootless_netns=plain, views=self._views
            )
        return self._rootless_netns

    def birthplace(self, linkage: Linkage) -> LauncherPool:
        """The launchers of which a container of these networks is born.

        A plain user's networks are in a namespace of one launcher, which has rights over its children's.
        """
        if self.features.privileged or not linkage.in_rootless_netns:
            return self.launchers
        with self._making:
            return self._rootless_netns_pool()

    def find_named(self, name: str) -> Running:
        """The container of this engine that lives under this name or id.  Raises NotFound."""
        with self._lock:
            for running in self._running.values():
                if name in (running.spec.name, running.spec.id, running.spec.id[:12]):
                    return running
        raise NotFound(f"no container {name!r} lives in this engine")

    def fsck(self, *, repair: bool = False) -> list[str]:
        """What is damaged in the store, a line each; nothing to say is a good sign.

        repair: forget what is damaged, so that a pull or load brings it again; record volumes that have
        lost their record.
        """
        from pycontain._images.fsck import check
        from pycontain._images.store_errors import translate_store_errors
        from pycontain._volumes.records import unrecorded

        with translate_store_errors(self.roots.data):
            found = [str(one) for one in check(self.store, repair=repair)]
            lost = unrecorded(self.store, adopt=repair)
        return found + [f"volume {name}: has no record{'; recorded' * repair}" for name in lost]

    def sweep(self) -> Swept:
        """Remove content and layers that no image names and nobody uses."""
        from pycontain._images.store_errors import translate_store_errors
        from pycontain._images.sweep import sweep

        self.leases.prune()
        self.leases.sweep_sealed()
        with translate_store_errors(self.roots.data):
            return sweep(self.store)

    def info(self) -> dict[str, object]:
        """What this engine is and stands on."""
        return {
            "root": self.roots.data,
            "run": self.roots.run,
            "privileged": self.features.privileged,
            "sub_ids": self.sub_ids,
            "cgroups": self.cgroups.layout.name,
            "controllers": sorted({*self.cgroups.layout.controllers, *self.cgroups.layout.legacy}),
            "landlock_abi": self.features.landlock,
            "time_namespace": self.features.time_namespace,
            "containers": len(self._running),
        }

    def doctor(self) -> list[str]:
        """What this host lacks and what to do about it, a line each; nothing to say is a good sign."""
        from pycontain._runtime.doctor import examine

        return [str(check) for check in examine(self) if not check.ok]

    def prune(self) -> int:
        """Remove what dead processes left, whose number is returned, and content that no image names."""
        from pycontain._rootfs.host import prune as prune_host_images

        self.settle()
        recovered = recover(self.roots, self.cgroups.layout, self._make_helper)
        prune_host_images(os.path.join(self.roots.data, "host"))
        if os.path.exists(os.path.join(self.roots.data, "store.db")):
            self.leases.remove_anonymous_volumes()
            self.sweep()
        return recovered

    def _let_go_of_dead(self) -> None:
        """What only containers of dead processes had in the store."""
        if any(os.path.isdir(os.path.join(self.roots.data, name)) for name in ("sealed", "volumes")):
            with contextlib.suppress(ImageError):
                self.leases.remove_anonymous_volumes()
                self.leases.sweep_sealed()

    def settle(self) -> None:
        """Wait until everything that ended containers left is removed."""
        self.cleanup.settle()

    def kill_all(self) -> None:
        """End every container of this engine at once; the engine goes on.

        Commands that run in them raise ContainerEnded in their threads.  The containers are 'exited' then.
        """
        self._end_all(Cause("cancelled", "Engine.kill_all ended it"))

    def _end_all(self, cause: Cause) -> None:
        running = self._list_running()
        # All are killed first, so that each wait below is for a process that is dying already.
        for one in running:
            one.kill(cause)
        for one in running:
            one.end(cause)

    def _list_running(self) -> list[Running]:
        with self._lock:
            return list(self._running.values())

    def close(self) -> None:
        """End every container of this engine and remove its state.  Idempotent."""
        if self.closed:
            return
        self.closed = True
        store = self._store
        if store is not None:
            store.closing.set()
        self.interrupts.close()
        self._end_all(Cause("cancelled", "its engine was closed"))
        self.disk.close()
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
        self._unlock_host_images()
        _engines.discard(self)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forget(self) -> None:
        """In a forked child: let go of everything without ending it."""
        self.closed = True
        if self._store is not None:
            self._store.forget()
        self._store = None
        self.leases.forget()
        for one in self._running.values():
            one.forget()
        for part in (self.warm, self.interrupts, self.disk, self._network_manager, self._rootless_netns):
            if part is not None:
                part.forget()
        self._network_manager = self._rootless_netns = None
        self.launchers.forget()
        self.cleanup.forget()
        self.cgroups.forget()
        self.owner.forget()
        self._unlock_host_images()

    def _unlock_host_images(self) -> None:
        """Let other engines prune the skeletons of the host image."""
        while self._host_locks:
            os.close(self._host_locks.popitem()[1])

    def claim(self, spec: ContainerSpec) -> None:
        """A container is about to start under its name.  Raises Conflict when another live one has it."""
        with self._lock:
            if self._names.setdefault(spec.name, spec.id) != spec.id:
                raise Conflict(f"the name {spec.name!r} is another live container's")

    def release(self, spec: ContainerSpec) -> None:
        """Its name is free again."""
        with self._lock:
            if self._names.get(spec.name) == spec.id:
                del self._names[spec.name]

    def adopt(self, running: Running) -> None:
        """A container of this engine lives."""
        with self._lock:
            if self.closed:
                raise StateError("the engine is closed")
            self._running[running.spec.id] = running

    def register(self, container: Container) -> None:
        """Whose handle it is."""
        with self._lock:
            self._containers[container.id] = container

    def find(self, name: str) -> Running | None:
        """What lives under this id."""
        with self._lock:
            return self._running.get(name)

    def unregister(self, running: Running) -> None:
        """A container of this engine ended."""
        with self._lock:
            if self._running.get(running.spec.id) is running:
                del self._running[running.spec.id]
                self._containers.pop(running.spec.id, None)

    def check_open(self) -> None:
        """Raise StateError for a closed engine."""
        if self.closed:
            raise StateError("the engine is closed")

    def enforceable(
        self, limits: CgroupLimits, asked: frozenset[str], optional: frozenset[str]
    ) -> CgroupLimits:
        """The limits that cgroups hold here.  Raises UnsupportedError for one asked for that they cannot."""
        key = (limits, asked, optional)
        try:
            if (found := self._held.get(key)) is not None:
                return found
        except TypeError:  # io_max and hugetlb are mappings
            return enforced(self.cgroups, limits, asked, optional)
        held = enforced(self.cgroups, limits, asked, optional)
        if len(self._held) > 256:
            self._held.clear()
        self._held[key] = held
        return held

    def plan_group(self, name: str, block: int | None) -> Group | None:
        """The cgroups of a container, not made yet, or None where this user may make none."""
        return Group(self.cgroups, name, block) if self.cgroups.usable else None

    def encode_security(self, spec: ContainerSpec) -> bytes:
        """The security buffer of a container."""
        held = self.enforceable(spec.limits, spec.asked, spec.security.optional)
        fallback = dict(spec.rlimits)
        named = {*spec.rlimits, *spec.security.rlimits}
        # Where no cgroup counts processes, the user namespace's own RLIMIT_NPROC does (user_namespaces(7)).
        if held.pids is None and spec.limits.pids is not None and _RLIMIT_NPROC not in named:
            fallback[_RLIMIT_NPROC] = spec.limits.pids
        if (
            held.memory is None
            and "memory" in spec.asked
            and spec.limits.memory is not None
            and _RLIMIT_DATA not in named
        ):
            fallback[_RLIMIT_DATA] = spec.limits.memory
        return policy.encode(
            spec.security,
            fallback,
            landlock_abi=self.features.landlock,
            supervise=not self.cgroups.kills,
            by_agent=spec.init,
        )


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_default: Engine | None = None
_default_lock = threading.Lock()


def default_engine() -> Engine:
    """The engine of this process, made on first use."""
    global _default
    with _default_lock:
        if _default is None or _default.closed:
            _default = Engine()
        return _default


def _close_all() -> None:
    for engine in list(_engines):
        engine.close()


def _after_fork() -> None:
    global _default, _default_lock
    _default, _default_lock = None, threading.Lock()
    for engine in list(_engines):
        engine.forget()
    _engines.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
