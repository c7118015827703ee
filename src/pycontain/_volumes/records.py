"""Records, directories and leases of volumes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from attrs import evolve

from pycontain._state.owner import STORE_BLOCK, is_alive
from pycontain._state.paths import private_directory
from pycontain._state.tables import leases
from pycontain._state.tables import volumes as tables
from pycontain._state.tables.volumes import VolumeRecord
from pycontain._volumes import filesystem
from pycontain.errors import Conflict, NotFound

if TYPE_CHECKING:
    import sqlite3

    from pycontain._images.store import Store

_FRESH = "fresh"
"""Marker file of a volume that no container has used yet."""


def home_of(store: Store, name: str) -> str:
    """Return the directory of a volume."""
    return os.path.join(store.roots.data, "volumes", name)


def content_of(store: Store, record: VolumeRecord) -> str:
    """Return the path to mount: a directory, or the image of a volume with a size."""
    return os.path.join(home_of(store, record.name), "data" if record.size is None else "image")


def first_id_of(store: Store) -> int:
    """Return the id on disk of a container's uid 0 in a volume."""
    return STORE_BLOCK if store.privileged else 0


def is_fresh(store: Store, name: str) -> bool:
    """Return whether no container has used the volume yet."""
    return os.path.exists(os.path.join(home_of(store, name), _FRESH))


def used(store: Store, name: str) -> None:
    """Mark a volume as used."""
    try:
        os.unlink(os.path.join(home_of(store, name), _FRESH))
    except FileNotFoundError:
        pass


def create(store: Store, record: VolumeRecord) -> VolumeRecord:
    """Create a volume, or return the existing one of this name.

    Raises:
        Conflict: It exists with another size.
        UnsupportedError: The host cannot enforce a size.
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


def _enter(store: Store, record: VolumeRecord, made: str) -> VolumeRecord:
    """Record a volume and move its directory into place, unless another process did."""
    place = home_of(store, record.name)
    private_directory(os.path.dirname(place))
    with store.database.writing(durable=True) as rows:
        there = tables.find(rows, record.name)
        if there is not None:
            return there
        try:
            os.rename(made, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # After a crash before the record, or after the loss of all records, the content is kept.
            record = evolve(record, size=_size_of(store, record.name))
        tables.add(rows, record)
    return record


def _size_of(store: Store, name: str) -> int | None:
    try:
        return os.stat(os.path.join(home_of(store, name), "image")).st_size
    except FileNotFoundError:
        return None


def unrecorded(store: Store, *, adopt: bool) -> list[str]:
    """Return the names of volumes without a record, after a loss of the records; adopt: record them."""
    try:
        there = os.listdir(os.path.join(store.roots.data, "volumes"))
    except FileNotFoundError:
        return []
    found = []
    with store.database.writing(durable=True) as rows:
        for name in sorted(there):
            if tables.find(rows, name) is None:
                found.append(name)
                if adopt:
                    tables.add(rows, new(name, _size_of(store, name), {}, ""))
    return found


def get(store: Store, name: str) -> VolumeRecord | None:
    """Return the record of a volume, or None."""
    return tables.volume(store.database, name)


def every(store: Store) -> list[VolumeRecord]:
    """Return all records, sorted by name."""
    return tables.volumes(store.database)


def new(name: str, size: int | None, labels: Mapping[str, str], owner: str) -> VolumeRecord:
    """Return a record with the current time."""
    return VolumeRecord(name=name, size=size, created=time.time(), labels=dict(labels), owner=owner)


def lease(store: Store, container: str, names: Iterable[str]) -> None:
    """Lease volumes for a container until `release` or the end of this process.

    Raises:
        NotFound: One of the volumes does not exist.
    """
    with store.database.writing() as rows:
        for name in names:
            if tables.find(rows, name) is None:
                raise NotFound(f"no volume {name!r}", hint="create it again, for it was removed")
            leases.add(rows, f"container-{container}", "volume", [name], store.owner.name)


def release(store: Store, container: str) -> None:
    """Release the volumes of a container."""
    with store.database.writing() as rows:
        leases.release_kind(rows, f"container-{container}", "volume")


def release_all(store: Store) -> None:
    """Release the volumes of every container of this engine."""
    with store.database.writing() as rows:
        leases.release_owner(rows, store.owner.name, "volume")


def users(store: Store, name: str) -> list[str]:
    """Return the ids of the containers that use a volume."""
    with store.database.writing() as rows:
        return _users(store, rows, name)


def _users(store: Store, rows: sqlite3.Connection, name: str) -> list[str]:
    store.release_dead(rows)
    return sorted(one.removeprefix("container-") for one in leases.sessions(rows, "volume", name))


def remove(store: Store, name: str, discard: Callable[[str], None]) -> None:
    """Remove a volume with its content.

    Args:
        store: The store.
        name: Name of the volume.
        discard: Called with the name of a directory to remove, below the owner's live directory.

    Raises:
        NotFound: There is no such volume.
        Conflict: A container uses it.
    """
    dead = f"dead-{os.urandom(8).hex()}"
    with store.database.writing(durable=True) as rows:
        if tables.find(rows, name) is None:
            raise NotFound(f"no volume {name!r}")
        having = _users(store, rows, name)
        if having:
            raise Conflict(
                f"volume {name!r} is in use by container {having[0][:12]}",
                hint="remove the container first",
            )
        tables.remove(rows, name)
        try:
            os.rename(home_of(store, name), os.path.join(store.owner.live, dead))
        except FileNotFoundError:
            return
    discard(dead)


def unowned(store: Store, *, ended: bool) -> list[VolumeRecord]:
    """Return unnamed volumes whose engine has ended; with `ended`, also those of this engine."""
    own = store.owner.name
    return [
        one
        for one in every(store)
        if one.owner and (ended if one.owner == own else not is_alive(store.roots, one.owner))
    ]
