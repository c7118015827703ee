"""Reconstruction of unreadable records from the store's content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pycontain._images.ingest import ingesting
from pycontain._images.pull import unpack_blob
from pycontain.errors import ImageError, NotFound
from pycontain.oci import Digest, ImageConfig, Manifest
from pycontain.oci.document import MANIFEST_MOST

if TYPE_CHECKING:
    from pycontain._images.store import Store


def rebuild(store: Store) -> tuple[Digest, ...]:
    """Put the records aside and record the complete images among the blobs again.

    Names of images are lost. Layers are unpacked again, since the records of their trees are lost too.
    """
    store.database.put_aside()
    found = []
    for manifest, config in _whole_images(store):
        try:
            with store.leasing() as lease, ingesting(store, lease, manifest, config) as ingest:
                for at in range(len(manifest.layers)):
                    if ingest.lacks_tree(at):
                        unpack_blob(store, ingest, at)
                ingest.conclude()
        except (ImageError, NotFound):
            continue  # some of its content is missing or damaged
        found.append(manifest.digest)
    return tuple(found)


def _whole_images(store: Store) -> Iterator[tuple[Manifest, ImageConfig]]:
    directory = os.path.join(store.blobs, "sha256")
    for name in sorted(os.listdir(directory)):
        if os.stat(os.path.join(directory, name), follow_symlinks=False).st_size > MANIFEST_MOST:
            continue
        try:
            manifest = store.manifest(Digest(f"sha256:{name}"))
            config = store.config(manifest.config.digest)
        except (ImageError, NotFound, OSError):
            continue  # a layer, a configuration, or damaged
        yield manifest, config
