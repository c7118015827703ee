"""Volumes as the store knows them: a record, a directory, and who uses it."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from pycontain._state.owner import STORE_BLOCK, is_alive
from pycontain._state.paths import private_directory
from pycontain._volumes import filesystem
from pycontain.errors import Conflict, NotFound

if TYPE_CHECKING:
    import sqlite3

    from pycontain._images.store import Store

_FRESH = "fresh"
"""A file beside a volume that no container has had yet."""


@frozen(kw_only=True)
class Record:
    """One volume.  size: bytes, or None.  owner: of one without a name, the engine that it ends with."""

    name: str
    size: int | None
    created: float
    labels: Mapping[str, str]
    owner: str


def home_of(store: Store, name: str) -> str:
    """The directory of everything about a volume."""
    return os.path.join(store.roots.data, "volumes", name)


def content_of(store: Store, record: Record) -> str:
    """What is mounted: a directory, or the image of a file system where the volume has a size."""
    return os.path.join(home_of(store, record.name), "data" if record.size is None else "image")


def first_id_of(store: Store) -> int:
    """What a guest's 0 is on the disk in a volume."""
    return STORE_BLOCK if store.privileged else 0


def is_fresh(store: Store, name: str) -> bool:
    """Has no container had it yet?"""
    return os.path.exists(os.path.join(home_of(store, name), _FRESH))


def used(store: Store, name: str) -> None:
    """A container has it now."""
    try:
        os.unlink(os.path.join(home_of(store, name), _FRESH))
    except FileNotFoundError:
        pass


def create(store: Store, record: Record) -> Record:
    """The volume of this name: a new one, or the one that there is.

    Raises Conflict when that one has another size, UnsupportedError for a size that cannot be held.
    """
    found = get(store, record.name)
    if found is None:
        made = os.path.join(store.owner.live, f"volume-{os.urandom(8).hex()}")
        _make(made, record.size, store.privileged)
        try:
            found = _enter(store, record, made)
        finally:
            if os.path.exists(made):
                _remove_empty(made)
    if record.size is not None and found.size != record.size:
        raise Conflict(
            f"volume {record.name!r} exists with another size: {found.size or 'none'}",
            hint="remove it first, or leave out size",
        )
    return found


def _make(directory: str, size: int | None, privileged: bool) -> None:
    private_directory(directory)
    if size is None:
        data = os.path.join(directory, "data")
        os.mkdir(data, 0o755)
        os.chmod(data, 0o755)
        if privileged:
            os.chown(data, STORE_BLOCK, STORE_BLOCK)
    else:
        try:
            filesystem.make(os.path.join(directory, "image"), size)
        except BaseException:
            os.rmdir(directory)
            raise
    os.close(os.open(os.path.join(directory, _FRESH), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _remove_empty(directory: str) -> None:
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
    os.rmdir(directory)


def _enter(store: Store, record: Record, made: str) -> Record:
    """The name is this volume's, unless another process was faster."""
    place = home_of(store, record.name)
    private_directory(os.path.dirname(place))
    with store.database.writing(durable=True) as rows:
        there = _row(rows, record.name)
        if there is not None:
            return there
        try:
            os.rename(made, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # A crash came before its record, or all records were lost since: what is in it stays.
            record = evolve(record, size=_size_of(store, record.name))
        _insert(rows, record)
    return record


def _insert(rows: sqlite3.Connection, record: Record) -> None:
    rows.execute(
        "INSERT INTO volume VALUES (?, ?, ?, ?, ?)",
        (record.name, record.size, record.created, json.dumps(dict(record.labels)), record.owner),
    )


def _size_of(store: Store, name: str) -> int | None:
    try:
        return os.stat(os.path.join(home_of(store, name), "image")).st_size
    except FileNotFoundError:
        return None


def unrecorded(store: Store, *, adopt: bool) -> list[str]:
    """The names of volumes without a record, as all are when the records were lost.  adopt: record them."""
    try:
        there = os.listdir(os.path.join(store.roots.data, "volumes"))
    except FileNotFoundError:
        return []
    found = []
    with store.database.writing(durable=True) as rows:
        for name in sorted(there):
            if _row(rows, name) is None:
                found.append(name)
                if adopt:
                    _insert(rows, new(name, _size_of(store, name), {}, ""))
    return found


_COLUMNS = "name, size, created, labels, owner"


def _read(row: tuple[str, int | None, float, str, str]) -> Record:
    name, size, created, labels, owner = row
    return Record(name=name, size=size, created=created, labels=json.loads(labels), owner=owner)


def _row(rows: sqlite3.Connection, name: str) -> Record | None:
    row = rows.execute(f"SELECT {_COLUMNS} FROM volume WHERE name = ?", (name,)).fetchone()
    return None if row is None else _read(row)


def get(store: Store, name: str) -> Record | None:
    """The volume of this name."""
    found = store.database.rows(f"SELECT {_COLUMNS} FROM volume WHERE name = ?", (name,))
    return _read(found[0]) if found else None


def every(store: Store) -> list[Record]:
    """All volumes, by name."""
    return [_read(row) for row in store.database.rows(f"SELECT {_COLUMNS} FROM volume ORDER BY name")]


def new(name: str, size: int | None, labels: Mapping[str, str], owner: str) -> Record:
    """A record of now."""
    return Record(name=name, size=size, created=time.time(), labels=dict(labels), owner=owner)


def lease(store: Store, container: str, names: Iterable[str]) -> None:
    """Lease volumes for a container until `release` or the end of this process.

    Raises:
        NotFound: One of the volumes does not exist.
    """
    with store.database.writing() as rows:
        for name in names:
            if _row(rows, name) is None:
                raise NotFound(f"no volume {name!r}", hint="create it again, for it was removed")
            rows.execute(
                "INSERT OR IGNORE INTO pin VALUES (?, 'volume', ?, ?)",
                (f"container-{container}", name, store.owner.name),
            )


def release(store: Store, container: str) -> None:
    """Release the volumes of a container."""
    with store.database.writing() as rows:
        rows.execute("DELETE FROM pin WHERE session = ? AND kind = 'volume'", (f"container-{container}",))


def release_all(store: Store) -> None:
    """Release the volumes of every container of this engine."""
    with store.database.writing() as rows:
        rows.execute("DELETE FROM pin WHERE owner = ? AND kind = 'volume'", (store.owner.name,))


def users(store: Store, name: str) -> list[str]:
    """The ids of the containers that have a volume."""
    with store.database.writing() as rows:
        return _users(store, rows, name)


def _users(store: Store, rows: sqlite3.Connection, name: str) -> list[str]:
    store.release_dead(rows)
    found = rows.execute("SELECT session FROM pin WHERE kind = 'volume' AND key = ?", (name,)).fetchall()
    return sorted(session.removeprefix("container-") for (session,) in found)


def remove(store: Store, name: str, discard: Callable[[str], None]) -> None:
    """Forget a volume and remove its content.  Raises NotFound; Conflict while a container has it.

    discard: called with a name below the owner's live directory.
    """
    dead = f"dead-{os.urandom(8).hex()}"
    with store.database.writing(durable=True) as rows:
        if _row(rows, name) is None:
            raise NotFound(f"no volume {name!r}")
        having = _users(store, rows, name)
        if having:
            raise Conflict(
                f"volume {name!r} is in use by container {having[0][:12]}",
                hint="remove the container first",
            )
        rows.execute("DELETE FROM volume WHERE name = ?", (name,))
        try:
            os.rename(home_of(store, name), os.path.join(store.owner.live, dead))
        except FileNotFoundError:
            return
    discard(dead)


def unowned(store: Store, *, ended: bool) -> list[Record]:
    """Volumes without a name whose engine is gone, or this one with `ended`."""
    own = store.owner.name
    return [
        one
        for one in every(store)
        if one.owner and (ended if one.owner == own else not is_alive(store.roots, one.owner))
    ]
