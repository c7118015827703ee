"""Snapshot: a saved root file system of a container."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve, field, frozen

from pycontain._images.image import LocalImage
from pycontain._objects.image import Image, engine_of
from pycontain.errors import ImageError

if TYPE_CHECKING:
    from pycontain._images.store import Store
    from pycontain._objects.engine import Engine
    from pycontain._state.tables.snapshots import Kind, SnapshotRecord
    from pycontain.oci import ContainerConfig

AnyImage = TypeVar("AnyImage", bound=LocalImage)


@frozen(kw_only=True)
class Snapshot:
    """The root file system of a container at one moment, which can be used as an image.

    It exists until `remove`, also when its container, this process and the engine have ended.

    Attributes:
        id: Id of the snapshot.
        kind: 'sealed' if the container's directory became a layer, to which no descriptor can write any more;
            'copied' if processes ran in the container, or a descriptor that can write was open outside of it.
        created: Time of creation, in UTC.
        image: The image with the layers of the snapshot.
    """

    id: str
    kind: Kind
    created: datetime
    image: Image = field(repr=False)
    _engine: Engine | None = field(default=None, repr=False, eq=False)

    @classmethod
    def get(cls, id: str, *, engine: Engine | None = None) -> Snapshot:
        """Return a snapshot of the store.

        Args:
            id: Id of the snapshot.
            engine: The engine to use; the default one of this process without it.

        Raises:
            NotFound: The snapshot does not exist.
            ImageError: The image or a layer of the snapshot is missing.
        """
        from pycontain._images import snapshot_layers

        chosen = engine_of(engine)
        return _known(chosen, snapshot_layers.record(chosen._session.store, id))

    @classmethod
    def list(cls, *, engine: Engine | None = None) -> builtins.list[Snapshot]:
        """Return the snapshots of the store, the newest first, without damaged ones."""
        from pycontain._images import snapshot_layers

        chosen = engine_of(engine)
        found = []
        for record in snapshot_layers.records(chosen._session.store):
            try:
                found.append(_known(chosen, record))
            except ImageError:
                continue
        return found

    def remove(self) -> None:
        """Remove the snapshot and those of its layers that nothing else uses.  Idempotent."""
        from pycontain._images import snapshot_layers

        chosen = engine_of(self._engine)
        snapshot_layers.forget(chosen._session.store, self.id)
        chosen._session.leases.sweep_snapshot_layers()

    def commit(
        self,
        reference: str | None = None,
        *,
        config: ContainerConfig | None = None,
        author: str = "",
        message: str = "",
    ) -> Image:
        """Add an image to the store: the snapshot's image and a layer for each step of the snapshot.

        Args:
            reference: Name of the image, or None for no name.
            config: Configuration of the image, in place of that of the snapshot's image.
            author: Author, for the history of the image.
            message: Comment, for the history of the image.

        Raises:
            InvalidReference: The name is malformed.
            ImageError: The snapshot's image is not in the store.
        """
        from pycontain._objects.commit import ImageMetadata, commit_layers

        chosen = engine_of(self._engine)
        return commit_layers(chosen, self.image, (), ImageMetadata(reference, config, author, message))


def describe_base(image: LocalImage) -> str:
    """Return a description of an image without its snapshot layers, for the store."""
    base = image.base
    if base.manifest is not None:
        document: dict[str, Any] = {"digest": str(base.manifest.digest), "name": base.name}
    elif base.trees:
        document = {"host": True}
    else:
        document = {
            "name": base.name,
            "directories": base.directories,
            "env": dict(base.env),
            "user": base.user,
            "workdir": base.workdir,
        }
    return json.dumps(document)


def leases_of(image: LocalImage) -> builtins.list[tuple[str, str]]:
    """Return the layers and blobs of the store that a snapshot of an image needs."""
    if image.manifest is None:
        return []
    blobs = [image.manifest.digest, image.manifest.config.digest, *(one.digest for one in image.layers)]
    return [*(("layer", chain) for chain in image.config.chain_ids), *(("blob", blob) for blob in blobs)]


def _known(engine: Engine, record: SnapshotRecord) -> Snapshot:
    """Return the snapshot of a record of the store.

    Raises:
        ImageError: A layer of the snapshot is missing.
    """
    from pycontain._images import snapshot_layers

    store = engine._session.store
    lost = snapshot_layers.missing(store, record)
    if lost is not None:
        raise ImageError(
            f"snapshot {record.id} is damaged: its layer {lost} is gone", hint="remove the snapshot"
        )
    return snapshot_of(engine, record, _base(engine, json.loads(record.base)))


def snapshot_of(engine: Engine, record: SnapshotRecord, base: Image) -> Snapshot:
    """Return the snapshot of a record and the image below it."""
    return Snapshot(
        id=record.id,
        kind=record.kind,
        created=datetime.fromtimestamp(record.created, UTC),
        image=with_sealed(engine._session.store, base, record.sealed),
        engine=engine,
    )


def with_sealed(store: Store, base: AnyImage, layers: tuple[str, ...]) -> AnyImage:
    """Return an image with snapshot layers above it, the uppermost first."""
    from pycontain._images.snapshot_layers import path_of

    paths = tuple(path_of(store, layer) for layer in layers)
    return evolve(base, directories=(*paths, *base.directories), sealed=layers)


def _base(engine: Engine, document: Mapping[str, Any]) -> Image:
    if document.get("host"):
        return engine._host_image()
    if "digest" in document:
        from pycontain.oci import Digest

        return Image._stored(engine, Digest(document["digest"]), document["name"])
    return Image(
        name=document["name"],
        directories=tuple(document["directories"]),
        env=document["env"],
        user=document["user"],
        workdir=document["workdir"],
    )
