"""What a container had written at one moment: to begin from, to return to, to keep."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from pycontain._objects.image import Image, engine_of
from pycontain.errors import ImageError

if TYPE_CHECKING:
    from pycontain._images.sealed import Kind, Record
    from pycontain._images.store import Store
    from pycontain._objects.engine import Engine
    from pycontain.oci import ContainerConfig


@frozen(kw_only=True)
class Snapshot:
    """A root file system as it was, by its id, on the image that it was made of.

    It outlives its container, this process and the engine, until `remove`.  Use it as an image.

    kind: 'sealed', the container's own directory, which no descriptor can write to any more; 'copied', where
    processes of the container were alive, or a descriptor that can write was open outside of it.
    created: when, in UTC.  image: what a container of it begins with.
    """

    id: str
    kind: Kind
    created: datetime
    image: Image = field(repr=False)
    _engine: Engine | None = field(default=None, repr=False, eq=False)

    @classmethod
    def get(cls, id: str, *, engine: Engine | None = None) -> Snapshot:
        """A snapshot of the store.  Raises NotFound, ImageError where what it stands on is gone."""
        from pycontain._images import sealed

        chosen = engine_of(engine)
        return _known(chosen, sealed.record(chosen._session.store, id))

    @classmethod
    def list(cls, *, engine: Engine | None = None) -> builtins.list[Snapshot]:
        """Every snapshot of the store, the newest first; those that are damaged are left out."""
        from pycontain._images import sealed

        chosen = engine_of(engine)
        found = []
        for record in sealed.records(chosen._session.store):
            try:
                found.append(_known(chosen, record))
            except ImageError:
                continue
        return found

    def remove(self) -> None:
        """Forget it; what it holds goes when no other snapshot or container stands on it.  Idempotent."""
        from pycontain._images import sealed

        chosen = engine_of(self._engine)
        sealed.forget(chosen._session.store, self.id)
        chosen._session.leases.sweep_sealed()

    def commit(
        self,
        reference: str | None = None,
        *,
        config: ContainerConfig | None = None,
        author: str = "",
        message: str = "",
    ) -> Image:
        """The image below and a layer for each step of the snapshot, as an image of the store.

        Raises as `Container.commit` does.
        """
        from pycontain._objects.commit import Made, commit_layers

        chosen = engine_of(self._engine)
        return commit_layers(chosen, self.image, (), Made(reference, config, author, message))


def described(image: Image) -> str:
    """What an image is apart from its sealed layers, for the store."""
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


def pins_of(image: Image) -> builtins.list[tuple[str, str]]:
    """What of the image below a snapshot keeps in the store."""
    if image.manifest is None:
        return []
    blobs = [image.manifest.digest, image.manifest.config.digest, *(one.digest for one in image.layers)]
    return [*(("layer", chain) for chain in image.config.chain_ids), *(("blob", blob) for blob in blobs)]


def _known(engine: Engine, record: Record) -> Snapshot:
    from pycontain._images import sealed

    store = engine._session.store
    lost = sealed.missing(store, record)
    if lost is not None:
        raise ImageError(
            f"snapshot {record.id} is damaged: its layer {lost} is gone", hint="remove the snapshot"
        )
    return value(engine, record, _base(engine, json.loads(record.base)))


def value(engine: Engine, record: Record, base: Image) -> Snapshot:
    """The snapshot of a record and the image below it."""
    return Snapshot(
        id=record.id,
        kind=record.kind,
        created=datetime.fromtimestamp(record.created, UTC),
        image=upon(engine._session.store, base, record.sealed),
        engine=engine,
    )


def upon(store: Store, base: Image, layers: tuple[str, ...]) -> Image:
    """The image with sealed layers above it, the uppermost first."""
    from pycontain._images.sealed import path_of

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
