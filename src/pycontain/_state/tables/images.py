"""Records of images: their names, layers, and the repositories that are known to have their blobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain.oci import Digest

if TYPE_CHECKING:
    import sqlite3

    from pycontain._state.database import Database


@frozen
class ImageRecord:
    """The record of an image.

    Attributes:
        digest: The digest of the manifest.
        config_digest: The digest of the configuration.
        size: Bytes of the unpacked layers.
        added: Seconds since the epoch.
    """

    digest: Digest
    config_digest: Digest
    size: int
    added: float


@frozen
class LayerRecord:
    """The record of an unpacked layer.

    Attributes:
        chain: The chain id.
        diff: The diff id.
        size: Bytes of content.
        entries: Number of files, directories and links.
        root_opaque: Whether the layer hides all layers below it.
    """

    chain: Digest
    diff: Digest
    size: int
    entries: int
    root_opaque: bool


# Images ----------------------------------------------------------------------------------------------------


def images(database: Database) -> list[ImageRecord]:
    """Return the records of all images, the newest first."""
    rows = database.rows("SELECT digest, config, size, added FROM image ORDER BY added DESC, digest")
    return [ImageRecord(Digest(row[0]), Digest(row[1]), row[2], row[3]) for row in rows]


def image(database: Database, digest: Digest) -> ImageRecord | None:
    """Return the record of an image, or None."""
    rows = database.rows("SELECT config, size, added FROM image WHERE digest = ?", (digest,))
    return ImageRecord(digest, Digest(rows[0][0]), rows[0][1], rows[0][2]) if rows else None


def has_image(records: sqlite3.Connection, digest: Digest) -> bool:
    """Return whether an image is recorded."""
    return records.execute("SELECT 1 FROM image WHERE digest = ?", (digest,)).fetchone() is not None


def add_image(
    records: sqlite3.Connection, record: ImageRecord, parts: Iterable[tuple[Digest, Digest]]
) -> None:
    """Record an image, unless it is recorded already.

    Args:
        records: A transaction.
        record: The image.
        parts: Chain id and blob of each layer, the lowest first.
    """
    records.execute(
        "INSERT OR IGNORE INTO image VALUES (?, ?, ?, ?)",
        (record.digest, record.config_digest, record.size, record.added),
    )
    records.executemany(
        "INSERT OR IGNORE INTO part VALUES (?, ?, ?, ?)",
        [(record.digest, at, chain, blob) for at, (chain, blob) in enumerate(parts)],
    )


def remove_image(records: sqlite3.Connection, digest: Digest) -> bool:
    """Remove the record of an image and its names; return whether it existed."""
    records.execute("DELETE FROM tag WHERE digest = ?", (digest,))
    return records.execute("DELETE FROM image WHERE digest = ?", (digest,)).rowcount > 0


def parts(database: Database, digest: Digest) -> list[tuple[Digest, Digest]]:
    """Return chain id and blob of each layer of an image, the lowest first."""
    rows = database.rows("SELECT chain, blob FROM part WHERE image = ? ORDER BY position", (digest,))
    return [(Digest(chain), Digest(blob)) for chain, blob in rows]


def blobs_in_use(records: sqlite3.Connection) -> set[str]:
    """Return the digests of the manifests, configurations and layers of all images."""
    rows = records.execute(
        "SELECT blob FROM part UNION SELECT config FROM image UNION SELECT digest FROM image"
    )
    return {digest for (digest,) in rows}


def chains_in_use(records: sqlite3.Connection) -> set[str]:
    """Return the chain ids of the layers of all images."""
    return {chain for (chain,) in records.execute("SELECT chain FROM part")}


# Names -----------------------------------------------------------------------------------------------------


def tags(database: Database, digest: Digest | None = None) -> dict[str, Digest]:
    """Return names with their digests, of one image if one is given."""
    rows = database.rows("SELECT name, digest FROM tag ORDER BY name")
    return {name: Digest(found) for name, found in rows if digest in (None, found)}


def set_tags(records: sqlite3.Connection, names: Iterable[str], digest: Digest, changed: float) -> None:
    """Give an image names, which other images lose; `changed` is in seconds since the epoch."""
    records.executemany(
        "INSERT INTO tag VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
        " SET digest = excluded.digest, changed = excluded.changed",
        [(name, digest, changed) for name in names],
    )


def remove_tag(records: sqlite3.Connection, name: str) -> bool:
    """Remove a name; return whether it existed."""
    return records.execute("DELETE FROM tag WHERE name = ?", (name,)).rowcount > 0


# Layers ----------------------------------------------------------------------------------------------------


def layer(database: Database, chain: Digest) -> LayerRecord | None:
    """Return the record of an unpacked layer, or None."""
    rows = database.rows("SELECT diff, size, entries, root_opaque FROM layer WHERE chain = ?", (chain,))
    if not rows:
        return None
    diff, size, entries, opaque = rows[0]
    return LayerRecord(chain, Digest(diff), size, entries, bool(opaque))


def put_layer(records: sqlite3.Connection, record: LayerRecord, parent: Digest | None, added: float) -> None:
    """Record an unpacked layer.

    Args:
        records: A transaction.
        record: The layer.
        parent: The chain id of the layer below, or None.
        added: Seconds since the epoch.
    """
    records.execute(
        "INSERT OR REPLACE INTO layer VALUES (?, ?, ?, ?, ?, ?, ?)",
        (record.chain, record.diff, parent, record.size, record.entries, record.root_opaque, added),
    )


def remove_layer(records: sqlite3.Connection, chain: str) -> None:
    """Remove the record of a layer; no-op if there is none."""
    records.execute("DELETE FROM layer WHERE chain = ?", (chain,))


def layer_sizes(records: sqlite3.Connection) -> dict[str, int]:
    """Return the bytes of each unpacked layer by its chain id."""
    return dict(records.execute("SELECT chain, size FROM layer"))


# Origins ---------------------------------------------------------------------------------------------------


def origins(database: Database, blob: Digest, registry: str) -> list[str]:
    """Return the repositories of a registry that are known to have a blob."""
    rows = database.rows(
        "SELECT repository FROM origin WHERE blob = ? AND registry = ? ORDER BY repository", (blob, registry)
    )
    return [row[0] for row in rows]


def add_origins(records: sqlite3.Connection, blobs: Iterable[Digest], registry: str, repository: str) -> None:
    """Record that a repository has blobs."""
    records.executemany(
        "INSERT OR IGNORE INTO origin VALUES (?, ?, ?)", [(blob, registry, repository) for blob in blobs]
    )


def remove_unused_origins(records: sqlite3.Connection) -> None:
    """Remove the origins of blobs that are not layers of any image."""
    records.execute("DELETE FROM origin WHERE blob NOT IN (SELECT blob FROM part)")
