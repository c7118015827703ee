"""Implementation of snapshot, fork and rollback of containers."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from attrs import evolve

from pycontain._images import snapshot_layers
from pycontain._images.extract import extract
from pycontain._images.layers import LayerBuild, opened
from pycontain._images.store_errors import translate_store_errors
from pycontain._images.write import archive
from pycontain._objects import snapshot as values
from pycontain._objects.commit import processes_frozen, sealed_layers
from pycontain._objects.image import Image
from pycontain._runtime.replace_root import SEAL, replace_root
from pycontain._runtime.spec import default_name, new_id
from pycontain._runtime.state import ContainerState
from pycontain.errors import PathError, StartError, StateError

if TYPE_CHECKING:
    from pycontain._images.image import LocalImage
    from pycontain._images.store import Store
    from pycontain._objects.container import Container
    from pycontain._objects.snapshot import Snapshot
    from pycontain._runtime.running import Running

MOST_LAYERS = 48
"""Number of layers of a root at which a snapshot first merges the snapshot layers."""
_SYS_ADMIN = "SYS_ADMIN"


def snapshot(container: Container) -> Snapshot:
    """Implement `Container.snapshot`."""
    engine, running = container._engine, container._live()
    store = engine._session.store
    with translate_store_errors(store.roots.data), container._state.lock, store.leasing() as lease:
        image = container.spec.image
        layer = snapshot_layers.new_layer(running.first_id)
        below = image.sealed
        lease.add("sealed", layer, *below)
        if len(image.directories) >= MOST_LAYERS and len(below) > 1:
            below = (snapshot_layers.new_layer(running.first_id),)
            lease.add("sealed", *below)
            _merge(store, image, below[0])
        chain = (layer, *below)
        made = snapshot_layers.new_record(values.describe_base(image), "sealed", chain)
        snapshot_layers.keep(store, made, values.leases_of(image))
        try:
            if not _seal(container, running, chain):
                snapshot_layers.mark_copied(store, made.id)
                made = evolve(made, kind="copied")
                _copy(container, running, layer)
        except BaseException:
            snapshot_layers.forget(store, made.id)
            raise
    base = image.base
    assert isinstance(base, Image)
    return values.snapshot_of(engine, made, base)


def _merge(store: Store, image: LocalImage, layer: str) -> None:
    """Merge all snapshot layers of an image into one, because every layer is a mount of every root."""
    place = snapshot_layers.make_place(store, layer)
    os.mkdir(place, 0o755)
    os.chmod(place, 0o755)
    with opened([place]) as (root,):
        for path, first_id in sealed_layers(image):
            with opened([path]) as (fd,):
                extract(
                    store,
                    root,
                    archive(store, fd, first_id=first_id, whiteouts=True, exact=True),
                    first_id=snapshot_layers.first_id_of(layer),
                    lowers=image.base.directories,
                )


def _seal(container: Container, running: Running, chain: tuple[str, ...]) -> bool:
    """Make the container's upper directory a layer, and continue the container above it.

    Returns:
        False if something can still write to the directory: a process of the container, a file that this
        process has open, or a descriptor that was passed out of the container.  Nothing is changed then.
    """
    if _SYS_ADMIN in container.spec.security.capabilities or container.status == "paused":
        return False  # its own mounts could not be moved to the new root
    engine = container._engine
    with running.quiesced() as quiet:
        if not quiet:
            return False
        image = values.with_sealed(engine._session.store, container.spec.image.base, chain)
        place = snapshot_layers.make_place(engine._session.store, chain[0])
        upper = running.upper_path
        try:
            os.rename(upper, place)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EXDEV):
                return False  # a process inside changed the owner of the directory
            raise PathError(
                f"cannot seal {upper}: {error.strerror}", path=upper, errno=error.errno or 0
            ) from error
        try:
            replace_root(running, image)
        except BaseException as error:
            os.rename(place, upper)
            if isinstance(error, StartError) and error.step == SEAL:
                return False  # a descriptor that can write may be open outside of the container
            raise
        container.spec = evolve(container.spec, image=image)
        engine._session.leases.lease_image(image, container)
    return True


def _copy(container: Container, running: Running, layer: str) -> None:
    """Copy the container's upper directory to a layer while all processes are paused."""
    store = container._session.store
    build = LayerBuild(store, None, owners=store.owners, first_id=running.first_id)
    try:
        with processes_frozen(container), opened([running.upper_path]) as fds:
            for chunk in archive(store, fds[0], first_id=running.first_id, whiteouts=True, exact=True):
                build.feed(chunk)
        build.end()
        build.finish(container.spec.image.directories)
        os.rename(build.tree, snapshot_layers.make_place(store, layer))
    finally:
        build.abandon()


def fork(container: Container, count: int) -> list[Container]:
    """Implement `Container.fork`."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"n must be a non-negative int, got {count!r}")
    made: list[Container] = []
    if count == 0:
        return made
    base = snapshot(container)
    try:
        for _ in range(count):
            new = new_id()
            spec = container.spec.renamed(new)
            spec = evolve(
                spec, name=default_name(new), image=base.image, network_spec=spec.network_spec.for_another()
            )
            made.append(type(container)._of(spec, container._engine))
        for one in made:
            one.start()
    except BaseException:
        for one in made:
            with contextlib.suppress(Exception):
                one.remove()
        raise
    finally:
        snapshot_layers.forget(container._session.store, base.id)  # the containers hold its layers
    return made


def rollback(container: Container, to: Snapshot) -> None:
    """Implement `Container.rollback`."""
    image = to.image
    own = container.spec.image.base
    if (image.base.directories, image.base.trees) != (own.directories, own.trees):
        raise ValueError(
            f"snapshot must be of image {container.spec.image.name}, got {to.id} of {image.name}"
        )
    with container._state.lock:
        if container._state.current is ContainerState.REMOVED:
            raise StateError(f"container {container.name} is removed")
        container._session.leases.lease_image(image, container)
        aside = _put_aside(container)
        container._end()
        main = container._main
        if main is not None:
            main.close()
            container._main = None
        container.spec = evolve(container.spec, image=image)
        try:
            container.start()
        finally:
            if aside is not None:
                container._session.cleanup.discard(aside)
    container._session.leases.prune()
    container._session.leases.sweep_snapshot_layers()


def _put_aside(container: Container) -> str | None:
    """Rename the container's directory, so that the next start can use its name before it is deleted."""
    running = container._running
    if running is None or running.cleanup_job is not None:
        return None
    live = running.session.owner.live
    dead = f"dead-{os.urandom(8).hex()}"
    os.rename(os.path.join(live, running.spec.id), os.path.join(live, dead))
    running.directory_moved = True
    return dead
