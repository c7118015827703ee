"""Leases: the content of the store that sessions use, which no sweep removes.

A session is an operation, a container or a snapshot. A lease ends with its session, or with the process that
owns it; leases of snapshots have no owner.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import sqlite3

Kind = Literal["blob", "layer", "sealed", "volume"]
"""Kinds of content: blobs, layers of images, layers of snapshots, volumes."""
PERMANENT = ""
"""Owner of leases that end only with their session."""


def add(records: sqlite3.Connection, session: str, kind: str, keys: Iterable[str], owner: str) -> None:
    """Lease content for a session; no-op for content that it has leased already."""
    records.executemany(
        "INSERT OR IGNORE INTO pin VALUES (?, ?, ?, ?)", [(session, kind, key, owner) for key in keys]
    )


def release(records: sqlite3.Connection, session: str) -> None:
    """Release everything that a session has leased."""
    records.execute("DELETE FROM pin WHERE session = ?", (session,))


def release_keys(records: sqlite3.Connection, session: str, keys: Iterable[str]) -> None:
    """Release the given content of a session."""
    records.executemany("DELETE FROM pin WHERE session = ? AND key = ?", [(session, key) for key in keys])


def release_kind(records: sqlite3.Connection, session: str, kind: Kind) -> None:
    """Release the content of one kind of a session."""
    records.execute("DELETE FROM pin WHERE session = ? AND kind = ?", (session, kind))


def release_owner(records: sqlite3.Connection, owner: str, kind: Kind | None = None) -> None:
    """Release what the sessions of an owner have leased, of one kind if it is given."""
    if kind is None:
        records.execute("DELETE FROM pin WHERE owner = ?", (owner,))
    else:
        records.execute("DELETE FROM pin WHERE owner = ? AND kind = ?", (owner, kind))


def owners(records: sqlite3.Connection) -> list[str]:
    """Return the owners of leases."""
    rows = records.execute("SELECT DISTINCT owner FROM pin WHERE owner != ?", (PERMANENT,)).fetchall()
    return [owner for (owner,) in rows]


def keys_of(records: sqlite3.Connection, session: str) -> list[str]:
    """Return the keys of everything that a session has leased."""
    rows = records.execute("SELECT key FROM pin WHERE session = ?", (session,)).fetchall()
    return [key for (key,) in rows]


def leased(records: sqlite3.Connection, kind: Kind) -> set[str]:
    """Return the keys of all leased content of one kind."""
    return {key for (key,) in records.execute("SELECT key FROM pin WHERE kind = ?", (kind,))}


def sessions(records: sqlite3.Connection, kind: Kind, key: str) -> list[str]:
    """Return the sessions that have leased something."""
    rows = records.execute("SELECT session FROM pin WHERE kind = ? AND key = ?", (kind, key)).fetchall()
    return [session for (session,) in rows]
