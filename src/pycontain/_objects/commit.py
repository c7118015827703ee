"""Changes of a container: diff, commit and export."""

from __future__ import annotations

import bisect
import contextlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

from attrs import evolve, frozen

from pycontain._images.archives import replacing
from pycontain._images.image import LocalImage
from pycontain._images.imports import import_tree
from pycontain._images.layers import opened
from pycontain._images.lookup import tag_name
from pycontain._images.snapshot_layers import first_id_of
from pycontain._images.store_errors import translate_store_errors
from pycontain._images.write import archive, compose, now, write_layer
from pycontain._kernel import native
from pycontain._kernel.hostpath import BENEATH_WITHOUT_LINKS
from pycontain._model.change import Change
from pycontain._objects.image import Image
from pycontain._runtime.users import open_inside
from pycontain.errors import ImageError
from pycontain.oci import ContainerConfig, Digest, History, ImageConfig, Manifest, Platform

if TYPE_CHECKING:
    from pycontain._images.store import Lease, Store
    from pycontain._objects.container import Container
    from pycontain._objects.engine import Engine

_ENGINES = ("etc/hostname", "etc/hosts", "etc/resolv.conf", "proc", "dev", "tmp", "sys")
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


def _upper(container: Container) -> str:
    """Return the upper directory of a running container."""
    running = container._live()
    return running.upper_path


def _left_out(container: Container) -> list[str]:
    """Return the paths that belong to the engine, and those of mounts."""
    trees = [place for _, place in container.spec.image.trees]
    return [*_ENGINES, *(place.strip("/") for place in (*container.spec.mounts, *trees))]


@contextlib.contextmanager
def processes_frozen(container: Container) -> Iterator[None]:
    """Freeze all processes of a container during the block, if the host supports it.

    Commands that are started meanwhile wait; `Container.status` stays 'running'.
    """
    group = container._live().group
    if container.status == "paused" or group is None or not group.freezable:
        yield
        return
    group.freeze(True)
    try:
        yield
    finally:
        group.freeze(False)


class _Reader:
    """File object over an iterator of chunks, for tarfile."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._held = chunks, b""

    def read(self, size: int) -> bytes:
        while len(self._held) < size and (chunk := next(self._chunks, b"")):
            self._held += chunk
        part, self._held = self._held[:size], self._held[size:]
        return part


def diff(container: Container) -> list[Change]:
    """Implement `Container.diff`."""
    store, running = container._session.store, container._live()
    image, left_out = container.spec.image, _left_out(container)
    found: dict[str, Change] = {}
    layers = [*sealed_layers(image), (_upper(container), running.first_id)]
    with opened(image.base.directories) as lowers:
        for path, first_id in layers:
            with opened([path]) as fds:
                chunks = archive(
                    store, fds[0], first_id=first_id, whiteouts=True, headers=True, left_out=left_out
                )
                _take(found, sorted(found), chunks, lowers)
    return sorted(found.values(), key=lambda change: change.path)


def sealed_layers(image: LocalImage) -> list[tuple[str, int]]:
    """Return the snapshot layers, the lowest first: directory, and host id of id 0 in the container."""
    paths = image.directories[: len(image.sealed)]
    return [(path, first_id_of(layer)) for path, layer in zip(paths, image.sealed, strict=True)][::-1]


def _take(
    found: dict[str, Change], before: Sequence[str], chunks: Iterator[bytes], lowers: Sequence[int]
) -> None:
    """Apply the changes of one more layer to `found`."""
    # The archive comes from our packer, so tarfile reads no bytes that a guest chose freely.
    with tarfile.open(fileobj=_Reader(chunks), mode="r|") as entries:  # type: ignore[call-overload]
        for entry in entries:
            entries.members.clear()  # bounds memory: a member takes a kilobyte, and a guest makes many
            path = entry.name.strip("/")
            directory, _, name = path.rpartition("/")
            if path in ("", "."):
                continue
            if name == _OPAQUE:
                _forget_below(found, before, directory)
                continue
            if name.startswith(_WHITEOUT):
                hidden = f"{directory}/{name.removeprefix(_WHITEOUT)}".lstrip("/")
                _forget_below(found, before, hidden)
                found.pop(hidden, None)
                if any(_is_there(lower, hidden) for lower in lowers):
                    found[hidden] = Change("/" + hidden, "deleted")
                continue
            there = any(_is_there(lower, path) for lower in lowers)
            found[path] = Change("/" + path, "changed" if there else "added")


def _forget_below(found: dict[str, Change], before: Sequence[str], directory: str) -> None:
    """Remove the paths of earlier layers (`before`, sorted) below a directory; there may be many of them."""
    prefix = directory + "/"
    at = bisect.bisect_left(before, prefix)
    while at < len(before) and before[at].startswith(prefix):
        found.pop(before[at], None)
        at += 1


def _is_there(lower: int, path: str) -> bool:
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = int(
        native.lib.pcx_openat2(
            lower, path.encode("utf-8", "surrogateescape"), flags, BENEATH_WITHOUT_LINKS, 0
        )
    )
    if fd < 0:
        return False
    os.close(fd)
    return True


def _base(image: LocalImage, store: Store, lease: Lease) -> tuple[Manifest, ImageConfig]:
    """Return the manifest and configuration of the image below, importing a directory into the store."""
    image = image.base
    if image.manifest is not None:
        return image.manifest, image.config
    if image.trees or len(image.directories) != 1:
        raise ImageError(
            f"cannot commit changes to {image.name}: its directories are used in place",
            hint="use an image of the store, or call export",
        )
    digest = import_tree(store, image.directories[0], None).digest
    manifest = store.manifest(digest)
    lease.add("blob", digest, manifest.config.digest, *(layer.digest for layer in manifest.layers))
    return manifest, store.config(manifest.config.digest)


@frozen
class ImageMetadata:
    """Metadata of a new image.

    Attributes:
        reference: Name, or None for no name.
        config: Configuration, or None for that of the image below.
        author: Author, for the history.
        message: Comment, for the history.
    """

    reference: str | None
    config: ContainerConfig | None
    author: str
    message: str


def commit(container: Container, metadata: ImageMetadata) -> Image:
    """Implement `Container.commit`."""
    upper = _upper(container)
    with processes_frozen(container):
        return commit_layers(
            container._engine,
            container.spec.image,
            [(upper, container._live().first_id)],
            metadata,
            _left_out(container),
        )


def commit_layers(
    engine: Engine,
    image: LocalImage,
    uppers: Sequence[tuple[str, int]],
    metadata: ImageMetadata,
    left_out: Sequence[str] = _ENGINES,
) -> Image:
    """Add an image to the store from an image, its snapshot layers, and further directories.

    Args:
        engine: The engine of the store.
        image: The image below.
        uppers: Directories, each with the host id of id 0 in the container.
        metadata: Metadata of the new image.
        left_out: Relative paths to leave out.
    """
    names = [] if metadata.reference is None else [tag_name(metadata.reference)]
    store = engine._session.store
    layers = [*sealed_layers(image), *uppers]
    with translate_store_errors(store.roots.data), store.leasing() as lease:

        def add_lease(digest: Digest) -> None:
            lease.add("blob", digest)

        manifest, below = _base(image, store, lease)
        written = []
        for path, first_id in layers:
            with opened([path]) as fds:
                chunks = archive(store, fds[0], first_id=first_id, whiteouts=True, left_out=left_out)
                written.append(write_layer(store, chunks, add_lease))
        moment = now()
        history = History(
            created=moment, created_by="pycontain commit", author=metadata.author, comment=metadata.message
        )
        whole = evolve(
            below,
            platform=below.platform if manifest.layers else Platform.host(),
            container=metadata.config or below.container,
            created=moment,
            author=metadata.author or below.author,
        )
        record = compose(store, (manifest, below), written, whole, [history] * len(written), names)
    return Image._stored(engine, record.digest, metadata.reference or str(record.digest))


def export(container: Container, target: str | os.PathLike[str] | IO[bytes]) -> None:
    """Implement `Container.export`."""
    store = container._session.store
    first_id = container._live().block or 0  # id 0 of the container in this process's view of the mount
    root = open_inside(container._live(), "/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with replacing(target) as file:
            for chunk in archive(store, root, first_id=first_id, one_mount=True):
                file.write(chunk)
    finally:
        os.close(root)
