"""Snapshot layers: upper directories of containers, kept as lower layers of snapshots and forks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from pycontain._state.paths import private_directory
from pycontain._state.tables import leases
from pycontain._state.tables import snapshots as tables
from pycontain._state.tables.snapshots import Kind, SnapshotRecord
from pycontain.errors import NotFound

if TYPE_CHECKING:
    from pycontain._images.store import Store


def new_layer(first_id: int) -> str:
    """Return a new layer id, which contains the id on disk of the container's uid 0."""
    return f"{os.urandom(8).hex()}-{first_id:x}"


def first_id_of(layer: str) -> int:
    """Return the id on disk of the container's uid 0 in a layer."""
    return int(layer.partition("-")[2], 16)


def home(store: Store) -> str:
    """Return the directory of all snapshot layers."""
    return private_directory(os.path.join(store.roots.data, "sealed"))


def path_of(store: Store, layer: str) -> str:
    """Return the directory of a layer for overlayfs."""
    return os.path.join(store.roots.data, "sealed", layer, "fs")


def make_place(store: Store, layer: str) -> str:
    """Create the parent directory of a leased layer and return the path to move the layer to."""
    private_directory(os.path.join(home(store), layer))
    return path_of(store, layer)


def keep(store: Store, record: SnapshotRecord, leased: Collection[tuple[str, str]]) -> None:
    """Record a snapshot with leases on everything it needs, before its layer exists."""
    session = f"snapshot-{record.id}"
    with store.database.writing() as records:
        tables.add(records, record)
        for kind, key in leased:
            leases.add(records, session, kind, [key], leases.PERMANENT)
        leases.add(records, session, "sealed", record.sealed, leases.PERMANENT)


def new_record(base: str, kind: Kind, sealed: Sequence[str]) -> SnapshotRecord:
    """Return a record with a new id and the current time."""
    return SnapshotRecord(
        id=os.urandom(8).hex(), kind=kind, created=time.time(), base=base, sealed=tuple(sealed)
    )


def records(store: Store) -> list[SnapshotRecord]:
    """Return all snapshots, the newest first."""
    return tables.snapshots(store.database)


def record(store: Store, name: str) -> SnapshotRecord:
    """Return a snapshot by its id.

    Raises:
        NotFound: There is none.
    """
    for one in records(store):
        if one.id == name:
            return one
    raise NotFound(f"no snapshot {name!r} in {store.roots.data}")


def mark_copied(store: Store, name: str) -> None:
    """Record that the layer of a snapshot was copied."""
    with store.database.writing() as rows:
        tables.set_kind(rows, name, "copied")


def forget(store: Store, name: str) -> bool:
    """Delete the record of a snapshot; return whether there was one.  `sweep` removes its layers."""
    with store.database.writing() as rows:
        leases.release(rows, f"snapshot-{name}")
        return tables.remove(rows, name)


def sweep(store: Store, discard: Callable[[str], None]) -> None:
    """Remove the layers that no snapshot and no live container uses.

    Args:
        store: The store.
        discard: Called with the name of a directory to remove, below the owner's live directory.
    """
    if not os.path.isdir(os.path.join(store.roots.data, "sealed")):
        return
    doomed = []
    with store.database.writing() as rows:
        store.release_dead(rows)
        kept = leases.leased(rows, "sealed")
        for layer in os.listdir(home(store)):
            if layer in kept:
                continue
            dead = f"dead-{os.urandom(8).hex()}"
            os.rename(os.path.join(home(store), layer), os.path.join(store.owner.live, dead))
            doomed.append(dead)
    for name in doomed:
        discard(name)


def missing(store: Store, one: SnapshotRecord) -> str | None:
    """Return a layer of a snapshot that is missing on disk, or None."""
    for layer in one.sealed:
        with contextlib.suppress(OSError):
            if os.path.isdir(path_of(store, layer)):
                continue
        return layer
    return None
