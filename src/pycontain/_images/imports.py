"""Imports of root file systems as images of one layer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pycontain._images.archives import opened_to_read
from pycontain._images.lookup import tag_name
from pycontain._images.write import (
    Written,
    adopt_archive,
    archive,
    compose,
    now,
    write_layer,
)
from pycontain._kernel import hostpath
from pycontain.oci import Digest, History, ImageConfig, Platform

if TYPE_CHECKING:
    from pycontain._images.store import Store
    from pycontain._state.tables.images import ImageRecord


def import_archive(store: Store, path: str, tag: str | None) -> ImageRecord:
    """Import a tar archive, compressed or not, as an image of one layer.

    Raises:
        ImageError: The archive is damaged or exceeds a limit.
    """
    names = [tag_name(tag)] if tag is not None else []
    with store.leasing() as lease, opened_to_read(path) as file:
        written = adopt_archive(store, file.read, lambda digest: lease.add("blob", digest))
        return _compose(store, written, names, None)


def import_tree(store: Store, path: str, tag: str | None) -> ImageRecord:
    """Import a directory, with owners, times and extended attributes, as an image of one layer."""
    names = [tag_name(tag)] if tag is not None else []

    def add_lease(digest: Digest) -> None:
        lease.add("blob", digest)

    top = hostpath.open_directory(path)
    try:
        with store.leasing() as lease:
            written = write_layer(store, archive(store, top), add_lease)
            return _compose(store, written, names, os.path.basename(path))
    finally:
        os.close(top)


def _compose(store: Store, written: Written, names: list[str], source: str | None) -> ImageRecord:
    # Without a creation time, so that equal content gives equal digests.
    history = History(created_by=f"pycontain import {source}" if source else "pycontain import")
    config = ImageConfig(
        platform=Platform.host(), created=now() if os.environ.get("SOURCE_DATE_EPOCH") else ""
    )
    return compose(store, None, [written], config, [history], names)
