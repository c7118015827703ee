"""The image store: blobs by digest, unpacked layers by chain id, and records that name them.

On the disk, below the engine's data directory::

    blobs/sha256/<hex>       content as registries have it; never changed once it has its name
    layers/<hex>/fs          an unpacked layer, as overlayfs takes it
    partial/<hex>            an unfinished blob, locked by the process that fetches it, resumable
    live/<owner>/            temporary files and trees of a session; removed with their owner
    store.db                 records: images, tags, layers, leases

Order of writing (crash safety): content, fsync; rename to its name, fsync of the directory; then the
record, fsync of SQLite's log. An image exists once it is recorded: a kill or a power loss leaves
either the complete image or files that the next sweep removes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from pycontain._images.bounds import LayerLimits
from pycontain._kernel.native import checked, lib
from pycontain._state.database import Database
from pycontain._state.owner import is_alive
from pycontain._state.paths import Roots, private_directory
from pycontain._state.tables import images as tables
from pycontain._state.tables import leases
from pycontain.errors import DigestMismatch, ImageError, NotFound, StateError
from pycontain.oci import Digest, ImageConfig, Manifest, parse_manifest
from pycontain.oci.document import CONFIG_MOST, MANIFEST_MOST

if TYPE_CHECKING:
    import sqlite3

    from pycontain._kernel.launcher import Launcher
    from pycontain._state.owner import Owner
    from pycontain._state.tables.images import ImageRecord, LayerRecord

ALGORITHMS = ("sha256", "sha512")
"""Digest algorithms of blobs."""


_PATIENCE = 30.0
"""Seconds to wait for the work of other threads when the engine closes."""


def sync_directory(path: str) -> None:
    """Sync a directory, so that its entries are on disk."""
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
        """Sessions whose leases could not be removed; the next sweep removes them."""
        self.database = Database(os.path.join(data, "store.db"))
        self.closing = threading.Event()
        self._gate = threading.Condition()
        self._working = 0

    def close(self) -> None:
        """Refuse new work, wait for running work to stop, and close the records."""
        self.closing.set()
        with self._gate:
            self._gate.wait_for(lambda: self._working == 0, _PATIENCE)
        self.database.close()

    def forget(self) -> None:
        """Drop the parent's open files in a forked child."""
        self.closing.set()
        self.database.forget()

    # ---- content ------------------------------------------------------------------------------------------

    def blob_path(self, digest: Digest) -> str:
        """Return the path of a blob."""
        return os.path.join(self.blobs, digest.algorithm, digest.hex)

    def has_blob(self, digest: Digest, size: int | None = None) -> bool:
        """Return whether the store has a blob, of this size if one is given."""
        try:
            found = os.stat(self.blob_path(digest), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return size is None or found.st_size == size

    def open_blob(self, digest: Digest) -> int:
        """Open a blob for reading and return its fd.

        Raises:
            NotFound: The store does not have it.
        """
        try:
            return os.open(self.blob_path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise NotFound(f"the store has no content {digest}", hint="pull the image again") from None

    def read_document(self, digest: Digest, most: int) -> bytes:
        """Read a small blob and verify its digest.

        Raises:
            NotFound: The store does not have it.
            DigestMismatch: The content is damaged.
            ImageError: It is larger than `most` bytes.
        """
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
        """Read a manifest; raise as `read_document` does."""
        found = parse_manifest(self.read_document(digest, MANIFEST_MOST))
        if not isinstance(found, Manifest):
            raise ImageError(f"{digest} is an index, not an image")
        return found

    def config(self, digest: Digest) -> ImageConfig:
        """Read an image configuration; raise as `read_document` does."""
        return ImageConfig.parse(self.read_document(digest, CONFIG_MOST))

    def layer_path(self, chain: Digest) -> str:
        """Return the directory of an unpacked layer for overlayfs."""
        return os.path.join(self.layers, chain.hex, "fs")

    def layer(self, chain: Digest) -> LayerRecord | None:
        """Return the record of an unpacked layer, or None."""
        found = tables.layer(self.database, chain)
        return found if found is not None and os.path.isdir(self.layer_path(chain)) else None

    def empty(self) -> str:
        """Return an empty directory, for images without layers."""
        path = os.path.join(self.roots.data, "empty")
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        os.chmod(path, 0o755)  # it becomes the root directory of containers, readable for every user
        return path

    def sync(self) -> None:
        """Sync the store's file system."""
        fd = os.open(self.roots.data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            checked(lib.pcx_syncfs(fd))
        finally:
            os.close(fd)

    def sync_blob_names(self) -> None:
        """Sync the names of blobs: their writer may have been killed before it did."""
        for algorithm in ALGORITHMS:
            sync_directory(os.path.join(self.blobs, algorithm))

    # ---- records ------------------------------------------------------------------------------------------

    def images(self) -> list[ImageRecord]:
        """Return the records of all images, the newest first."""
        return tables.images(self.database)

    def record(self, digest: Digest) -> ImageRecord | None:
        """Return the record of an image, or None."""
        return tables.image(self.database, digest)

    def tags(self, digest: Digest | None = None) -> dict[str, Digest]:
        """Return names with their digests, of one image if one is given."""
        return tables.tags(self.database, digest)

    def set_tag(self, name: str, digest: Digest) -> None:
        """Give an image a name, which another image loses.

        Raises:
            NotFound: The store has no such image.
        """
        with self.database.writing(durable=True) as records:
            if not tables.has_image(records, digest):
                raise NotFound(f"no image {digest} in the store")
            tables.set_tags(records, [name], digest, time.time())

    def remove_tag(self, name: str) -> bool:
        """Remove a name; return whether it existed."""
        with self.database.writing(durable=True) as records:
            return tables.remove_tag(records, name)

    def remove_image(self, digest: Digest) -> bool:
        """Remove an image and its names; the next sweep removes its content."""
        with self.database.writing(durable=True) as records:
            return tables.remove_image(records, digest)

    def parts(self, digest: Digest) -> list[tuple[Digest, Digest]]:
        """Return chain id and blob of each layer, the lowest first."""
        return tables.parts(self.database, digest)

    def origins(self, blob: Digest, registry: str) -> list[str]:
        """Return the repositories of a registry that are known to have a blob."""
        return tables.origins(self.database, blob, registry)

    def add_origin(self, blob: Digest, registry: str, repository: str) -> None:
        """Record that a repository has a blob."""
        with self.database.writing() as records:
            tables.add_origins(records, [blob], registry, repository)

    def release_dead(self, records: sqlite3.Connection) -> None:
        """Remove the leases of dead processes."""
        for owner in leases.owners(records):
            if owner != self.owner.name and not is_alive(self.roots, owner):
                leases.release_owner(records, owner)

    # ---- leases -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def leasing(self) -> Iterator[Lease]:
        """Yield a lease for one operation, during which the store stays open.

        Raises:
            StateError: The engine is closed.
        """
        with self._gate:
            if self.closing.is_set():
                raise StateError("the engine is closed")
            self._working += 1
        try:
            lease = Lease(self, os.urandom(8).hex())
            try:
                yield lease
            finally:
                try:
                    lease.release()
                except ImageError:  # on a full disk the operation has succeeded or failed already
                    self.unreleased.add(lease.session)
        finally:
            with self._gate:
                self._working -= 1
                self._gate.notify_all()


class Lease:
    """Content that a session uses: no sweep removes it before the session or its process ends."""

    def __init__(self, store: Store, session: str) -> None:
        self._store = store
        self.session = session

    def add(self, kind: str, *keys: str) -> None:
        """Protect content, before checking that it exists so that it is not removed in between."""
        with self._store.database.writing() as records:
            leases.add(records, self.session, kind, keys, self._store.owner.name)

    def keep_only(self, keys: Collection[str]) -> None:
        """Release all content but this."""
        with self._store.database.writing() as records:
            held = leases.keys_of(records, self.session)
            leases.release_keys(records, self.session, [key for key in held if key not in keys])

    def release(self) -> None:
        """Release all content."""
        with self._store.database.writing() as records:
            leases.release(records, self.session)
