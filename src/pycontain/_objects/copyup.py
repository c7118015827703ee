"""Initial content of volumes, copied from the image of the first container, as docker does."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from attrs import evolve

from pycontain._images.defaults import is_empty_place
from pycontain._images.extract import extract
from pycontain._images.write import archive
from pycontain._model.mounts import VolumeMount
from pycontain._runtime.network import NONE, NetworkSpec
from pycontain._runtime.spec import default_name, new_id
from pycontain._runtime.users import open_inside
from pycontain._state.locks import PATIENCE, lock_within
from pycontain._volumes import filesystem, records

if TYPE_CHECKING:
    from pycontain._objects.container import Container


def copy_up(container: Container) -> None:
    """Fill the new volumes of a container.

    Raises:
        ImageError: The content cannot be copied.
    """
    store = container._session.store
    for place, what in container.spec.mounts.items():
        if not isinstance(what, VolumeMount) or not records.is_fresh(store, what.name):
            continue
        home = records.home_of(store, what.name)
        lock = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock_within(lock, fcntl.LOCK_EX, home, PATIENCE)  # only one of two concurrent starts fills it
            if records.is_fresh(store, what.name):
                if not is_empty_place(container.spec.image.directories, place):
                    _fill(container, place, what)
                records.used(store, what.name)
        finally:
            os.close(lock)


def _fill(container: Container, place: str, what: VolumeMount) -> None:
    """Copy the image's content at a path from a temporary container that lacks the volume."""
    engine, new = container._engine, new_id()
    spec = evolve(
        container.spec.renamed(new),
        name=default_name(new),
        command=None,
        init=True,
        mounts={},
        network=NONE,
        network_spec=NetworkSpec(),  # addresses and ports belong to the actual container
    )
    with type(container)._of(spec, engine) as source:
        flags = os.O_RDONLY | os.O_DIRECTORY
        inside = open_inside(source._live(), place, flags)
        try:
            root = filesystem.mount(what.path) if what.image else os.open(what.path, flags | os.O_CLOEXEC)
            try:
                first_id = source._live().block or 0
                store = engine._session.store
                chunks = archive(store, inside, first_id=first_id, one_mount=True, exact=True)
                extract(store, root, chunks, first_id=records.first_id_of(store))
            finally:
                os.close(root)
        finally:
            os.close(inside)
