"""The image store: blobs by digest, unpacked layers by chain id, and records that name them.

On the disk, below the engine's data directory::

    blobs/sha256/<hex>       content as registries have it; never changed once it has its name
    layers/<hex>/fs          an unpacked layer, as overlayfs takes it
    partial/<hex>            a blob on its way, locked by whoever fetches it, resumed by the next
    live/<owner>/            what a session makes before it has a name; collected with its owner
    store.db                 records: images, tags, layers, pins

Order of writing (crash safety): content, fsync; rename to its name, fsync of the directory; then the
record, fsync of SQLite's log.  What has no record is no image: a kill or a loss of power leaves
either the whole or what the next sweep removes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._images.bounds import LayerLimits
from pycontain._kernel.native import checked, lib
from pycontain._state.database import Database
from pycontain._state.owner import is_alive
from pycontain._state.paths import Roots, private_directory
from pycontain.errors import DigestMismatch, ImageError, NotFound, StateError
from pycontain.oci import Digest, ImageConfig, Manifest, parse_manifest
from pycontain.oci.document import CONFIG_MOST, MANIFEST_MOST

if TYPE_CHECKING:
    import sqlite3

    from pycontain._kernel.launcher import Launcher
    from pycontain._state.owner import Owner

ALGORITHMS = ("sha256", "sha512")
"""Whose digests content goes by."""


_PATIENCE = 30.0
"""Seconds for which work of other threads is waited for when the engine closes."""


@frozen
class Record:
    """An image in the store.  size: bytes of its unpacked layers.  added: seconds since the epoch."""

    digest: Digest
    config_digest: Digest
    size: int
    added: float


@frozen
class LayerRecord:
    """An unpacked layer.  size: bytes of content.  root_opaque: nothing below it shows."""

    chain: Digest
    diff: Digest
    size: int
    entries: int
    root_opaque: bool


def sync_directory(path: str) -> None:
    """What was made, renamed or removed in a directory is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Store:
    """The images of an engine's data directory; safe to share between threads and processes."""

    def __init__(
        self,
        roots: Roots,
        owner: Owner,
        limits: LayerLimits,
        *,
        privileged: bool,
        owners: bool,
        landlock: int,
        make_launcher: Callable[[], Launcher],
    ) -> None:
        self.roots, self.owner, self.limits = roots, owner, limits
        self.privileged, self.owners, self.landlock = privileged, owners, landlock
        self.make_launcher = make_launcher
        data = roots.data
        self.blobs = private_directory(os.path.join(data, "blobs"))
        self.layers = private_directory(os.path.join(data, "layers"))
        self.partial = private_directory(os.path.join(data, "partial"))
        for algorithm in ALGORITHMS:
            private_directory(os.path.join(self.blobs, algorithm))
        self.unreleased: set[str] = set()
        """Sessions of which the pins could not be removed: the next sweep does."""
        self.database = Database(os.path.join(data, "store.db"))
        self.closing = threading.Event()
        self._gate = threading.Condition()
        self._working = 0

    def close(self) -> None:
        """Let nothing begin any more, wait for what has begun to give up, and let go of the records."""
        self.closing.set()
        with self._gate:
            self._gate.wait_for(lambda: self._working == 0, _PATIENCE)
        self.database.close()

    def forget(self) -> None:
        """In a forked child: what is open is the parent's."""
        self.closing.set()
        self.database.forget()

    # ---- content ------------------------------------------------------------------------------------------

    def blob_path(self, digest: Digest) -> str:
        """Where a blob stands, or would."""
        return os.path.join(self.blobs, digest.algorithm, digest.hex)

    def has_blob(self, digest: Digest, size: int | None = None) -> bool:
        """Is it there, and as long as it should be?"""
        try:
            found = os.stat(self.blob_path(digest), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return size is None or found.st_size == size

    def open_blob(self, digest: Digest) -> int:
        """A blob's fd.  Raises NotFound."""
        try:
            return os.open(self.blob_path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise NotFound(f"the store has no content {digest}", hint="pull the image again") from None

    def read_document(self, digest: Digest, most: int) -> bytes:
        """A small blob, verified.  Raises NotFound, DigestMismatch, ImageError above `most` bytes."""
        with open(self.open_blob(digest), "rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise ImageError(f"{digest} is larger than {most} bytes")
        hasher = digest.hasher()
        hasher.update(data)
        if not digest.matches(hasher):
            raise DigestMismatch(
                f"the store's copy of {digest} is damaged", hint="pull the image again to repair it"
            )
        return data

    def manifest(self, digest: Digest) -> Manifest:
        """The manifest of an image in the store.  Raises as `read_document` does."""
        found = parse_manifest(self.read_document(digest, MANIFEST_MOST))
        if not isinstance(found, Manifest):
            raise ImageError(f"{digest} is an index, not an image")
        return found

    def config(self, digest: Digest) -> ImageConfig:
        """An image configuration.  Raises as `read_document` does."""
        return ImageConfig.parse(self.read_document(digest, CONFIG_MOST))

    def layer_path(self, chain: Digest) -> str:
        """The directory of an unpacked layer, as overlayfs takes it."""
        return os.path.join(self.layers, chain.hex, "fs")

    def layer(self, chain: Digest) -> LayerRecord | None:
        """An unpacked layer that is there."""
        rows = self.database.rows(
            "SELECT diff, size, entries, root_opaque FROM layer WHERE chain = ?", (chain,)
        )
        if not rows or not os.path.isdir(self.layer_path(chain)):
            return None
        diff, size, entries, opaque = rows[0]
        return LayerRecord(chain, Digest(diff), size, entries, bool(opaque))

    def empty(self) -> str:
        """A directory without anything, for images without layers."""
        path = os.path.join(self.roots.data, "empty")
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        os.chmod(path, 0o755)  # inside it is the root of whoever runs there
        return path

    def sync(self) -> None:
        """Everything written to the store's file system is on its disk."""
        fd = os.open(self.roots.data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            checked(lib.pcx_syncfs(fd))
        finally:
            os.close(fd)

    def sync_blob_names(self) -> None:
        """What is found in blobs/ stays there, also where its bringer was killed before an fsync."""
        for algorithm in ALGORITHMS:
            sync_directory(os.path.join(self.blobs, algorithm))

    # ---- records ------------------------------------------------------------------------------------------

    def images(self) -> list[Record]:
        """Every image, the newest first."""
        rows = self.database.rows("SELECT digest, config, size, added FROM image ORDER BY added DESC, digest")
        return [Record(Digest(row[0]), Digest(row[1]), row[2], row[3]) for row in rows]

    def record(self, digest: Digest) -> Record | None:
        """One image."""
        rows = self.database.rows("SELECT config, size, added FROM image WHERE digest = ?", (digest,))
        return Record(digest, Digest(rows[0][0]), rows[0][1], rows[0][2]) if rows else None

    def tags(self, digest: Digest | None = None) -> dict[str, Digest]:
        """Names and what they mean."""
        rows = self.database.rows("SELECT name, digest FROM tag ORDER BY name")
        return {name: Digest(found) for name, found in rows if digest in (None, found)}

    def set_tag(self, name: str, digest: Digest) -> None:
        """Let a name mean an image.  Raises NotFound."""
        with self.database.writing(durable=True) as records:
            if not records.execute("SELECT 1 FROM image WHERE digest = ?", (digest,)).fetchone():
                raise NotFound(f"no image {digest} in the store")
            records.execute(
                "INSERT INTO tag VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
                " SET digest = excluded.digest, changed = excluded.changed",
                (name, digest, time.time()),
            )

    def remove_tag(self, name: str) -> bool:
        """Forget a name; was there one?"""
        with self.database.writing(durable=True) as records:
            return records.execute("DELETE FROM tag WHERE name = ?", (name,)).rowcount > 0

    def remove_image(self, digest: Digest) -> bool:
        """Forget an image and its names; its content goes with the next sweep."""
        with self.database.writing(durable=True) as records:
            records.execute("DELETE FROM tag WHERE digest = ?", (digest,))
            return records.execute("DELETE FROM image WHERE digest = ?", (digest,)).rowcount > 0

    def parts(self, digest: Digest) -> list[tuple[Digest, Digest]]:
        """Chain id and blob of each layer, the lowest first."""
        rows = self.database.rows("SELECT chain, blob FROM part WHERE image = ? ORDER BY position", (digest,))
        return [(Digest(chain), Digest(blob)) for chain, blob in rows]

    def origins(self, blob: Digest, registry: str) -> list[str]:
        """Repositories of a registry that are known to have a blob."""
        rows = self.database.rows(
            "SELECT repository FROM origin WHERE blob = ? AND registry = ? ORDER BY repository",
            (blob, registry),
        )
        return [row[0] for row in rows]

    def add_origin(self, blob: Digest, registry: str, repository: str) -> None:
        """A repository has been seen to have a blob."""
        with self.database.writing() as records:
            records.execute("INSERT OR IGNORE INTO origin VALUES (?, ?, ?)", (blob, registry, repository))

    def forget_dead(self, records: sqlite3.Connection) -> None:
        """Pins of processes that are gone hold nothing."""
        for (owner,) in records.execute("SELECT DISTINCT owner FROM pin WHERE owner != ''").fetchall():
            if owner != self.owner.name and not is_alive(self.roots, owner):
                records.execute("DELETE FROM pin WHERE owner = ?", (owner,))

    # ---- pins ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def pinning(self) -> Iterator[Pins]:
        """Pins of one piece of work, for which the store stays open.  Raises StateError when it is closed."""
        with self._gate:
            if self.closing.is_set():
                raise StateError("the engine is closed")
            self._working += 1
        try:
            pins = Pins(self, os.urandom(8).hex())
            try:
                yield pins
            finally:
                try:
                    pins.release()
                except ImageError:  # the disk may be full: the work is done or has failed for that itself
                    self.unreleased.add(pins.session)
        finally:
            with self._gate:
                self._working -= 1
                self._gate.notify_all()


class Pins:
    """What a session relies on: no sweep takes it before the session or its process ends."""

    def __init__(self, store: Store, session: str) -> None:
        self._store = store
        self.session = session

    def add(self, kind: str, *keys: str) -> None:
        """Pin before looking whether it is there: what is seen then stays."""
        with self._store.database.writing() as records:
            records.executemany(
                "INSERT OR IGNORE INTO pin VALUES (?, ?, ?, ?)",
                [(self.session, kind, key, self._store.owner.name) for key in keys],
            )

    def keep_only(self, keys: Collection[str]) -> None:
        """Let go of all others."""
        with self._store.database.writing() as records:
            held = records.execute("SELECT key FROM pin WHERE session = ?", (self.session,)).fetchall()
            records.executemany(
                "DELETE FROM pin WHERE session = ? AND key = ?",
                [(self.session, key) for (key,) in held if key not in keys],
            )

    def release(self) -> None:
        """Let go of everything."""
        with self._store.database.writing() as records:
            records.execute("DELETE FROM pin WHERE session = ?", (self.session,))
