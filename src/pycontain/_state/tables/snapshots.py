"""Records of snapshots."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from attrs import frozen

if TYPE_CHECKING:
    import sqlite3

    from pycontain._state.database import Database

Kind = Literal["sealed", "copied"]


@frozen(kw_only=True)
class SnapshotRecord:
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


def snapshots(database: Database) -> list[SnapshotRecord]:
    """Return all snapshots, the newest first."""
    rows = database.rows("SELECT id, kind, created, base, sealed FROM snapshot ORDER BY created DESC, id")
    return [
        SnapshotRecord(id=row[0], kind=row[1], created=row[2], base=row[3], sealed=tuple(json.loads(row[4])))
        for row in rows
    ]


def add(records: sqlite3.Connection, record: SnapshotRecord) -> None:
    """Record a snapshot."""
    records.execute(
        "INSERT INTO snapshot VALUES (?, ?, ?, ?, ?)",
        (record.id, record.kind, record.created, record.base, json.dumps(record.sealed)),
    )


def set_kind(records: sqlite3.Connection, name: str, kind: Kind) -> None:
    """Change the kind of a snapshot."""
    records.execute("UPDATE snapshot SET kind = ? WHERE id = ?", (kind, name))


def remove(records: sqlite3.Connection, name: str) -> bool:
    """Remove the record of a snapshot; return whether it existed."""
    return records.execute("DELETE FROM snapshot WHERE id = ?", (name,)).rowcount > 0
