"""Ingestion of an image into the store: find the missing layers, build them, record the image."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pycontain._images.defaults import defaults_of
from pycontain._images.layers import LayerBuild, discard, feed_verified
from pycontain._images.store import Lease, sync_directory
from pycontain._state.locks import PATIENCE, exclusive
from pycontain._state.tables import images as tables
from pycontain._state.tables.images import ImageRecord, LayerRecord
from pycontain.errors import ImageError, StateError
from pycontain.oci import ImageConfig, Manifest

if TYPE_CHECKING:
    from pycontain._images.store import Store


@contextlib.contextmanager
def ingesting(store: Store, lease: Lease, manifest: Manifest, config: ImageConfig) -> Iterator[Ingest]:
    """Lock the missing layers of an image and yield their ingest; abandon it unless concluded.

    Raises:
        ImageError: Manifest and configuration disagree on the layers, or no container can start from
            the configuration.
    """
    if len(manifest.layers) != len(config.diff_ids):
        raise ImageError(
            f"the manifest has {len(manifest.layers)} layers, the configuration {len(config.diff_ids)}"
        )
    defaults_of(config)
    lease.add("blob", manifest.digest, manifest.config.digest, *(layer.digest for layer in manifest.layers))
    lease.add("layer", *config.chain_ids)
    with contextlib.ExitStack() as stack:
        # Every process takes the locks in sorted order, so two pulls that share layers cannot deadlock.
        for chain in sorted(chain for chain in set(config.chain_ids) if store.layer(chain) is None):
            stack.enter_context(
                exclusive(os.path.join(store.partial, f"{chain.hex}.layer"), patience=PATIENCE)
            )
        ingest = Ingest(store, manifest, config)
        try:
            yield ingest
        finally:
            ingest.abandon()


class Ingest:
    """The layers of one image: records of those in the store, builds of the missing ones."""

    def __init__(self, store: Store, manifest: Manifest, config: ImageConfig) -> None:
        self._store, self.manifest, self.config = store, manifest, config
        self._chains = config.chain_ids
        self._mutex = threading.Lock()
        self._there: list[LayerRecord | None] = [store.layer(chain) for chain in self._chains]
        self._builds: dict[int, LayerBuild] = {}
        self._ended: set[int] = set()
        self._finished: set[int] = set()

    def lacks_tree(self, position: int) -> bool:
        """Return whether the layer still has to be unpacked."""
        return self._there[position] is None

    def lacks_blob(self, position: int) -> bool:
        """Return whether the layer's content still has to be fetched."""
        layer = self.manifest.layers[position]
        return not self._store.has_blob(layer.digest, layer.size)

    @property
    def missing(self) -> list[int]:
        """Return the positions of the layers whose tree or content is missing."""
        return [at for at in range(len(self._chains)) if self.lacks_tree(at) or self.lacks_blob(at)]

    def build(self, position: int) -> LayerBuild:
        """Begin to build a layer."""
        build = LayerBuild(self._store, self.config.diff_ids[position])
        with self._mutex:
            self._builds[position] = build
        return build

    def begin_again(self, position: int) -> None:
        """Discard the build of a layer, so that it can be built anew."""
        with self._mutex:
            build = self._builds.pop(position, None)
            self._ended.discard(position)
        if build is not None:
            build.abandon()

    def ended(self, position: int) -> None:
        """Finish a layer whose stream is complete, and the layers above that waited for it."""
        with self._mutex:
            self._ended.add(position)
            for at in range(len(self._chains)):
                if at in self._finished or not self.lacks_tree(at):
                    continue
                if at not in self._ended:
                    return
                blob = self.manifest.layers[at].digest
                self._builds[at].finish(self._lowers(at), functools.partial(feed_verified, self._store, blob))
                self._finished.add(at)

    def _tree(self, position: int) -> tuple[str, bool]:
        record = self._there[position]
        if record is not None:
            return self._store.layer_path(record.chain), record.root_opaque
        build = self._builds[position]
        assert build.report is not None
        return build.tree, build.report.root_opaque

    def _lowers(self, position: int) -> list[str]:
        """Return the visible directories below a layer, the uppermost first."""
        result = []
        for at in reversed(range(position)):
            path, opaque = self._tree(at)
            result.append(path)
            if opaque:
                break
        return result

    def conclude(self, names: Sequence[str] = (), origin: tuple[str, str] | None = None) -> ImageRecord:
        """Move the layers into the store and record the image.

        Args:
            names: References that will name the image.
            origin: Registry and repository of the content, for cross-repository mounts.

        Raises:
            ImageError: A layer or its content is missing.
            StateError: The engine is closed.
        """
        store = self._store
        for at, layer in enumerate(self.manifest.layers):
            if (self.lacks_tree(at) and at not in self._finished) or self.lacks_blob(at):
                raise ImageError(f"layer {layer.digest} is missing")
        if store.closing.is_set():
            raise StateError("the engine is closed")
        moved = sorted(self._builds)
        if moved or not store.images():
            store.sync()  # the first image also needs the store's own directories on disk
        else:
            store.sync_blob_names()
        for at in moved:
            self._move(at)
        if moved:
            sync_directory(store.layers)
        return self._record(names, origin)

    def _move(self, position: int) -> None:
        store, build = self._store, self._builds[position]
        chain = self._chains[position]
        target = os.path.dirname(store.layer_path(chain))
        if store.layer(chain) is not None:
            raise ImageError(f"layer {chain} was added by another process", hint="try again")
        if os.path.lexists(target):  # a killed process moved the tree and wrote no record
            stale = f"stale-{os.urandom(8).hex()}"
            os.rename(target, os.path.join(store.owner.live, stale))
            discard(store, stale)
        os.rename(build.directory, target)

    def _record(self, names: Sequence[str], origin: tuple[str, str] | None) -> ImageRecord:
        digest, now = self.manifest.digest, time.time()
        size = 0
        with self._store.database.writing(durable=True) as records:
            for at, chain in enumerate(self._chains):
                known = self._there[at]
                report = None if known is not None else self._builds[at].report
                if report is not None:
                    layer = LayerRecord(
                        chain, self.config.diff_ids[at], report.size, report.entries, report.root_opaque
                    )
                    tables.put_layer(records, layer, self._chains[at - 1] if at else None, now)
                size += known.size if known is not None else report.size if report is not None else 0
            blobs = [layer.digest for layer in self.manifest.layers]
            record = ImageRecord(digest, self.manifest.config.digest, size, now)
            tables.add_image(records, record, zip(self._chains, blobs, strict=True))
            tables.set_tags(records, names, digest, now)
            if origin is not None:
                tables.add_origins(records, blobs, *origin)
        self._builds.clear()
        return record

    def abandon(self) -> None:
        """Remove the builds that were not concluded."""
        builds, self._builds = self._builds, {}
        with contextlib.ExitStack() as stack:
            for build in builds.values():
                stack.callback(build.abandon)
