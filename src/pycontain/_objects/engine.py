"""The public facade of a session: one store and the containers of this process in it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, cast

from pycontain._model.sizes import shown
from pycontain._runtime.running import Cause
from pycontain._runtime.session import Session

if TYPE_CHECKING:
    from pycontain._images.bounds import LayerLimits
    from pycontain._images.sweep import Swept
    from pycontain._objects.container import Container
    from pycontain._objects.image import Image
    from pycontain._objects.network import Network
    from pycontain._objects.volume import Volume


class Engine:
    """A store, and the containers, networks and volumes of this process in it.

    A new engine removes what dead processes left in the same root.  As a context manager it is closed at the
    end.

    Args:
        root: The directory for all state; without one PYCONTAIN_ROOT, or else the directories of the system
            (as root) or of the user.
        ahead: How many warm containers of one kind may wait for the next start; 0 for none.
        layer_limits: Limits of what an image's layer may contain.

    Raises:
        PathError: The root cannot be used.
        StartError: A helper process does not start.
        ValueError: `ahead` is negative.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        ahead: int = 2,
        layer_limits: LayerLimits | None = None,
    ) -> None:
        if ahead < 0:
            raise ValueError(f"ahead must be 0 or a number of containers, got {shown(ahead)}")
        self._session = Session(root, ahead, layer_limits)
        self._lock = threading.Lock()
        self._host: Image | None = None

    @property
    def containers(self) -> list[Container]:
        """The running containers of this process."""
        handles = (running.handle for running in self._session.registry.live())
        return [cast("Container", one) for one in handles if one is not None]

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

    def _host_image(self, paths: tuple[str, ...] = ()) -> Image:
        """Return `Image.host()` for this store; without more paths it is made once."""
        with self._lock:
            if paths or self._host is None:
                from pycontain._objects.image_sources import host_image

                image, lock = host_image(self._session.roots.data, paths)
                self._session.keep_locked(image.directories[0], lock)
                if paths:
                    return image
                self._host = image
            return self._host

    def fsck(self, *, repair: bool = False) -> list[str]:
        """Check the store.

        Args:
            repair: Remove the records of damaged images, so that a pull or load brings them again, and record
                volumes that have lost their record.

        Returns:
            One line for each damage; none for a healthy store.

        Raises:
            ImageError: The store cannot be read.
        """
        from pycontain._images.fsck import check
        from pycontain._images.store_errors import translate_store_errors
        from pycontain._volumes.records import unrecorded

        store = self._session.store
        with translate_store_errors(self._session.roots.data):
            found = [str(one) for one in check(store, repair=repair)]
            lost = unrecorded(store, adopt=repair)
        return found + [f"volume {name}: has no record{'; recorded' * repair}" for name in lost]

    def sweep(self) -> Swept:
        """Remove content and layers that no image has and no container uses.

        Returns:
            The number of removed objects and bytes.
        """
        from pycontain._images.store_errors import translate_store_errors
        from pycontain._images.sweep import sweep

        self._session.leases.prune()
        self._session.leases.sweep_snapshot_layers()
        with translate_store_errors(self._session.roots.data):
            return sweep(self._session.store)

    def info(self) -> dict[str, object]:
        """Return the directories of this engine, what this host has, and the number of containers."""
        session = self._session
        layout = session.cgroups.layout
        return {
            "root": session.roots.data,
            "run": session.roots.run,
            "privileged": session.features.privileged,
            "sub_ids": session.sub_ids,
            "cgroups": layout.name,
            "controllers": sorted({*layout.controllers, *layout.legacy}),
            "landlock_abi": session.features.landlock,
            "time_namespace": session.features.time_namespace,
            "containers": len(session.registry),
        }

    def doctor(self) -> list[str]:
        """Examine this host.

        Returns:
            One line for each thing that containers lack, with the command that would provide it.
        """
        from pycontain._objects.doctor import examine

        return [str(check) for check in examine(self) if not check.ok]

    def prune(self) -> int:
        """Remove what dead processes left, and content that no image has.

        Returns:
            The number of dead processes.
        """
        from pycontain._rootfs.host import prune as prune_host_images

        session = self._session
        session.cleanup.settle()
        recovered = session.recover()
        prune_host_images(os.path.join(session.roots.data, "host"))
        if os.path.exists(os.path.join(session.roots.data, "store.db")):
            session.leases.remove_anonymous_volumes()
            self.sweep()
        return recovered

    def settle(self) -> None:
        """Wait until everything that ended containers left is removed."""
        self._session.cleanup.settle()

    def kill_all(self) -> None:
        """End every container of this engine at once; new ones can be started.

        Commands that run in them raise ContainerEnded in their threads.  The status of the containers is
        'exited' then.
        """
        self._session.end_all(Cause("cancelled", "Engine.kill_all ended it"))

    def close(self) -> None:
        """End every container of this engine and remove its state.  Idempotent."""
        self._session.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Engine {self._session.roots.data}{' (closed)' * self._session.closed}>"


_default: Engine | None = None
_default_lock = threading.Lock()


def default_engine() -> Engine:
    """Return the engine of this process, made on first use."""
    global _default
    with _default_lock:
        if _default is None or _default._session.closed:
            _default = Engine()
        return _default


def _after_fork() -> None:
    global _default, _default_lock
    _default, _default_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
