"""Records of volumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    import sqlite3

    from pycontain._state.database import Database

_COLUMNS = "name, size, created, labels, owner"


@frozen(kw_only=True)
class VolumeRecord:
    """Record of one volume.

    Attributes:
        name: Unique in the store.
        size: Bytes, or None for no limit.
        created: Seconds since the epoch.
        labels: Labels, for the caller's use.
        owner: Engine that an unnamed volume is removed with, or an empty string.
    """

    name: str
    size: int | None
    created: float
    labels: Mapping[str, str]
    owner: str


def _read(row: tuple[str, int | None, float, str, str]) -> VolumeRecord:
    name, size, created, labels, owner = row
    return VolumeRecord(name=name, size=size, created=created, labels=json.loads(labels), owner=owner)


def volumes(database: Database) -> list[VolumeRecord]:
    """Return all records, sorted by name."""
    return [_read(row) for row in database.rows(f"SELECT {_COLUMNS} FROM volume ORDER BY name")]


def volume(database: Database, name: str) -> VolumeRecord | None:
    """Return the record of a volume, or None."""
    found = database.rows(f"SELECT {_COLUMNS} FROM volume WHERE name = ?", (name,))
    return _read(found[0]) if found else None


def find(records: sqlite3.Connection, name: str) -> VolumeRecord | None:
    """Return the record of a volume in a transaction, or None."""
    row = records.execute(f"SELECT {_COLUMNS} FROM volume WHERE name = ?", (name,)).fetchone()
    return None if row is None else _read(row)


def add(records: sqlite3.Connection, record: VolumeRecord) -> None:
    """Record a volume."""
    records.execute(
        "INSERT INTO volume VALUES (?, ?, ?, ?, ?)",
        (record.name, record.size, record.created, json.dumps(dict(record.labels)), record.owner),
    )


def remove(records: sqlite3.Connection, name: str) -> None:
    """Remove the record of a volume; no-op if there is none."""
    records.execute("DELETE FROM volume WHERE name = ?", (name,))
