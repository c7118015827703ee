"""Leases of an engine's containers: store content that is not removed while a container needs it."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from pycontain._runtime.cleanup import Cleanup
from pycontain.errors import Conflict, ImageError, NotFound, StateError

if TYPE_CHECKING:
    from pycontain._images.image import LocalImage
    from pycontain._images.store import Lease, Store


class Holder(Protocol):
    """A container that holds leases, as long as it exists and has not given them back."""

    id: str

    @property
    def name(self) -> str:
        """Return its name, for errors."""


class Leases:
    """Leases of layers, snapshot layers and volumes; they end with this process too.

    Args:
        owner: Name of the engine.
        store: Returns the store, or raises StateError after the engine was closed.
        cleanup: Removes trees in the background.
    """

    def __init__(self, owner: str, store: Callable[[], Store], cleanup: Cleanup) -> None:
        self._owner = owner
        self._store = store
        self._cleanup = cleanup
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._chains: weakref.WeakKeyDictionary[Holder, tuple[str, ...]] = weakref.WeakKeyDictionary()

    def lease_image(self, image: LocalImage, holder: Holder) -> None:
        """Lease the layers of a container's image, in place of those of an earlier image."""
        chains = image.config.chain_ids if image.manifest is not None else ()
        if not chains and not image.sealed:
            return
        store = self._store()
        with self._lock:
            if self._lease is None:
                from pycontain._images.store import Lease

                self._lease = Lease(store, f"engine-{self._owner}")
            if not any(held[: len(chains)] == chains for held in self._chains.values()):
                self._lease.add("layer", *chains)
            if image.sealed:
                self._lease.add("sealed", *image.sealed)
            self._chains[holder] = (*chains, *image.sealed)

    def release_image(self, holder: Holder) -> None:
        """Give back the leases of a removed container; the store learns of it by `prune`.  Idempotent."""
        with self._lock:
            self._chains.pop(holder, None)

    def prune(self) -> None:
        """Remove the records of leases that no container holds any longer."""
        with self._lock:
            if self._lease is not None:
                self._lease.keep_only({chain for chains in self._chains.values() for chain in chains})

    def holders(self, image: LocalImage) -> list[Holder]:
        """Return the containers of this engine that hold leases of an image."""
        with self._lock:
            chains = image.config.chain_ids
            return [one for one, held in self._chains.items() if held[: len(chains)] == chains]

    def lease_volumes(self, holder: Holder, names: Iterable[str]) -> None:
        """Lease the volumes of a container until it releases them or is no longer referenced.

        Raises:
            NotFound: One of the volumes does not exist.
        """
        from pycontain._volumes import records

        records.lease(self._store(), holder.id, names)
        weakref.finalize(holder, self._release_dropped, holder.id)

    def _release_dropped(self, container: str) -> None:
        with contextlib.suppress(ImageError, StateError):
            self.release_volumes(container)

    def release_volumes(self, container: str) -> None:
        """Release the volumes of the container of this id."""
        from pycontain._volumes import records

        records.release(self._store(), container)

    def sweep_snapshot_layers(self) -> None:
        """Remove snapshot layers that no snapshot and no container uses, in the background."""
        from pycontain._images import snapshot_layers

        snapshot_layers.sweep(self._store(), self._cleanup.discard)

    def remove_anonymous_volumes(self) -> None:
        """Remove volumes without a name whose engine no longer exists."""
        self._remove_anonymous(self._store(), ended=False)

    def close(self, store: Store) -> None:
        """Release everything and remove this engine's volumes without a name.

        Raises:
            ImageError: The records of the store cannot be written.
        """
        from pycontain._volumes import records

        records.release_all(store)
        self._remove_anonymous(store, ended=True)
        if self._lease is not None:
            self._lease.release()

    def forget(self) -> None:
        """Drop the lease in a forked child without releasing it: it is the parent's."""
        self._lease = None

    def _remove_anonymous(self, store: Store, *, ended: bool) -> None:
        from pycontain._volumes import records

        for one in records.unowned(store, ended=ended):
            with contextlib.suppress(Conflict, NotFound):
                records.remove(store, one.name, self._cleanup.discard)
