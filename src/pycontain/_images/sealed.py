"""Snapshot layers: upper directories of containers, kept as lower layers of snapshots and forks."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal

from attrs import frozen

from pycontain._state.paths import private_directory
from pycontain.errors import NotFound

if TYPE_CHECKING:
    import sqlite3

    from pycontain._images.store import Store

Kind = Literal["sealed", "copied"]
KEPT = ""
"""Owner of leases that end with their snapshot instead of with a process."""


@frozen(kw_only=True)
class Record:
    """Record of a snapshot.

    Attributes:
        id: Unique id.
        kind: Whether its own layer was moved or copied.
        created: Seconds since the epoch.
        base: The image below it, as JSON.
        sealed: Its layers, the uppermost first.
    """

    id: str
    kind: Kind
    created: float
    base: str
    sealed: tuple[str, ...]


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


def keep(store: Store, record: Record, leased: Collection[tuple[str, str]]) -> None:
    """Record a snapshot with leases on everything it needs, before its layer exists."""
    with store.database.writing() as records:
        records.execute(
            "INSERT INTO snapshot VALUES (?, ?, ?, ?, ?)",
            (record.id, record.kind, record.created, record.base, json.dumps(record.sealed)),
        )
        records.executemany(
            "INSERT OR IGNORE INTO pin VALUES (?, ?, ?, ?)",
            [
                (f"snapshot-{record.id}", kind, key, KEPT)
                for kind, key in (*leased, *(("sealed", layer) for layer in record.sealed))
            ],
        )


def new_record(base: str, kind: Kind, sealed: Sequence[str]) -> Record:
    """Return a record with a new id and the current time."""
    return Record(id=os.urandom(8).hex(), kind=kind, created=time.time(), base=base, sealed=tuple(sealed))


def records(store: Store) -> list[Record]:
    """Return all snapshots, the newest first."""
    rows = store.database.rows(
        "SELECT id, kind, created, base, sealed FROM snapshot ORDER BY created DESC, id"
    )
    return [
        Record(id=row[0], kind=row[1], created=row[2], base=row[3], sealed=tuple(json.loads(row[4])))
        for row in rows
    ]


def record(store: Store, name: str) -> Record:
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
        rows.execute("UPDATE snapshot SET kind = 'copied' WHERE id = ?", (name,))


def forget(store: Store, name: str) -> bool:
    """Delete the record of a snapshot; return whether there was one.  `sweep_sealed` removes its layers."""
    with store.database.writing() as rows:
        rows.execute("DELETE FROM pin WHERE session = ?", (f"snapshot-{name}",))
        return rows.execute("DELETE FROM snapshot WHERE id = ?", (name,)).rowcount > 0


def sweep_sealed(store: Store, discard: Callable[[str], None]) -> None:
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
        kept = _leased(rows)
        for layer in os.listdir(home(store)):
            if layer in kept:
                continue
            dead = f"dead-{os.urandom(8).hex()}"
            os.rename(os.path.join(home(store), layer), os.path.join(store.owner.live, dead))
            doomed.append(dead)
    for name in doomed:
        discard(name)


def _leased(rows: sqlite3.Connection) -> set[str]:
    return {row[0] for row in rows.execute("SELECT key FROM pin WHERE kind = 'sealed'")}


def missing(store: Store, one: Record) -> str | None:
    """Return a layer of a snapshot that is missing on disk, or None."""
    for layer in one.sealed:
        with contextlib.suppress(OSError):
            if os.path.isdir(path_of(store, layer)):
                continue
        return layer
    return None
