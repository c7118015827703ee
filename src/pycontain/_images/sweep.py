"""Garbage collection: remove content that no image names and no live process has leased."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._images.layers import discard
from pycontain._images.store import ALGORITHMS
from pycontain._state.locks import is_locked, unlink_unlocked
from pycontain._state.tables import images as tables
from pycontain._state.tables import leases

if TYPE_CHECKING:
    from pycontain._images.store import Store


@frozen(kw_only=True)
class Swept:
    """The result of a sweep.

    Attributes:
        blobs: Number of removed blobs.
        layers: Number of removed layers.
        size: Bytes of the removed blobs and of the content of the removed layers.
    """

    blobs: int = 0
    layers: int = 0
    size: int = 0


def sweep(store: Store) -> Swept:
    """Remove garbage.

    Safe beside pulls, which lease content before they check for it. Names are removed in the one
    transaction during which no lease can be added; the bytes follow after it.
    """
    doomed: list[str] = []
    blobs = size = 0
    with store.database.writing() as records:
        over = set(store.unreleased)
        for session in over:
            leases.release(records, session)
        store.release_dead(records)
        named = tables.chains_in_use(records) | leases.leased(records, "layer")
        sizes = tables.layer_sizes(records)
        for name in os.listdir(store.layers):
            chain = f"{'sha256' if len(name) == 64 else 'sha512'}:{name}"
            if chain in named or is_locked(os.path.join(store.partial, f"{name}.layer")):
                continue
            tables.remove_layer(records, chain)
            dead = f"dead-{os.urandom(8).hex()}"
            os.rename(os.path.join(store.layers, name), os.path.join(store.owner.live, dead))
            doomed.append(dead)
            size += sizes.get(chain, 0)
        spared = tables.blobs_in_use(records) | leases.leased(records, "blob")
        dead = f"dead-{os.urandom(8).hex()}"
        os.mkdir(os.path.join(store.owner.live, dead), 0o700)
        doomed.append(dead)
        for path in _garbage(store, spared):
            size += os.stat(path, follow_symlinks=False).st_size
            os.rename(path, os.path.join(store.owner.live, dead, str(blobs)))
            blobs += 1
        tables.remove_unused_origins(records)
    store.unreleased -= over
    for name in doomed:
        discard(store, name)
    _sweep_partial(store)
    return Swept(blobs=blobs, layers=len(doomed) - 1, size=size)


def _garbage(store: Store, spared: set[str]) -> list[str]:
    found = []
    for algorithm in ALGORITHMS:
        directory = os.path.join(store.blobs, algorithm)
        found += [
            os.path.join(directory, name)
            for name in os.listdir(directory)
            if f"{algorithm}:{name}" not in spared
        ]
    return found


def _sweep_partial(store: Store) -> None:
    """Remove unlocked partial downloads, which interrupted pulls left."""
    for name in os.listdir(store.partial):
        unlink_unlocked(os.path.join(store.partial, name))
