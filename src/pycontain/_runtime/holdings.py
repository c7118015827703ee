"""What of the store an engine's containers stand on: no sweep takes it before they are removed or gone."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from pycontain._runtime.cleanup import Cleanup
from pycontain.errors import Conflict, ImageError, NotFound, StateError

if TYPE_CHECKING:
    from pycontain._images.store import Pins, Store
    from pycontain._objects.container import Container
    from pycontain._objects.image import Image


class Holdings:
    """Layers, sealed layers and volumes that are in use.

    store: makes the store, or raises StateError when the engine is closed.
    """

    def __init__(self, owner: str, store: Callable[[], Store], cleanup: Cleanup) -> None:
        self._owner = owner
        self._store = store
        self._cleanup = cleanup
        self._lock = threading.Lock()
        self._pins: Pins | None = None
        self._users: weakref.WeakKeyDictionary[Container, tuple[str, ...]] = weakref.WeakKeyDictionary()

    def hold(self, image: Image, container: Container) -> None:
        """The layers of this container's image."""
        chains = image.config.chain_ids if image.manifest is not None else ()
        if not chains and not image.sealed:
            return
        store = self._store()
        with self._lock:
            if self._pins is None:
                from pycontain._images.store import Pins

                self._pins = Pins(store, f"engine-{self._owner}")
            if not any(held[: len(chains)] == chains for held in self._users.values()):
                self._pins.add("layer", *chains)
            if image.sealed:
                self._pins.add("sealed", *image.sealed)
            self._users[container] = (*chains, *image.sealed)

    def let_go(self) -> None:
        """Images that no container has any more are no longer held."""
        with self._lock:
            if self._pins is None:
                return
            for container in [one for one in self._users if one._removed]:
                del self._users[container]
            needed = {chain for chains in self._users.values() for chain in chains}
            self._pins.keep_only(needed)

    def users(self, image: Image) -> list[Container]:
        """Containers that are not removed and have this image."""
        with self._lock:
            chains = image.config.chain_ids
            users = [one for one, held in self._users.items() if held[: len(chains)] == chains]
            return [one for one in users if not one._removed]

    def hold_volumes(self, container: Container) -> None:
        """The volumes of a container.  Raises NotFound for one that is not there."""
        from pycontain._volumes import records

        records.hold(self._store(), container.id, container._volumes)
        weakref.finalize(container, self._dropped, container.id)

    def _dropped(self, container: str) -> None:
        with contextlib.suppress(ImageError, StateError):
            self.let_go_volumes(container)

    def let_go_volumes(self, container: str) -> None:
        """The container of this id has no volume any more."""
        from pycontain._volumes import records

        records.let_go(self._store(), container)

    def sweep_sealed(self) -> None:
        """What no snapshot and no container stands on any more is removed, behind the caller's back."""
        from pycontain._images import sealed

        sealed.sweep_sealed(self._store(), self._cleanup.discard)

    def drop_volumes(self) -> None:
        """Volumes without a name go with their engine: of engines that are gone."""
        self._drop(self._store(), ended=False)

    def end(self, store: Store) -> None:
        """The engine ends: nothing of it holds anything.  Raises ImageError."""
        from pycontain._volumes import records

        records.let_go_all(store)
        self._drop(store, ended=True)
        if self._pins is not None:
            self._pins.release()

    def forget(self) -> None:
        """In a forked child: the parent's are the parent's."""
        self._pins = None

    def _drop(self, store: Store, *, ended: bool) -> None:
        from pycontain._volumes import records

        for one in records.unowned(store, ended=ended):
            with contextlib.suppress(Conflict, NotFound):
                records.remove(store, one.name, self._cleanup.discard)
