"""Writers of blobs: content is verified and synced before it gets its name in the store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from pycontain._images.store import sync_directory
from pycontain._state.locks import PATIENCE, is_same_file, open_locked
from pycontain.errors import DigestMismatch, ImageError
from pycontain.oci import Digest

if TYPE_CHECKING:
    from pycontain._images.store import Store

CHUNK = 1 << 20


class Partial:
    """A download of a blob of known digest and size, locked by this process.

    `existing` reads the bytes left by an interrupted download, `write` appends, `commit` verifies.

    Attributes:
        have: Number of bytes read or written so far.
        there: Whether the store has the blob already; then there is nothing to do.
        resumed: Whether an interrupted download left bytes.
    """

    def __init__(
        self, store: Store, digest: Digest, size: int, given_up: Callable[[], bool] | None = None
    ) -> None:
        self._given_up = given_up or (lambda: False)
        self._store, self.digest, self.size = store, digest, size
        self.path = os.path.join(store.partial, digest.hex)
        self._hasher = digest.hasher()
        self.have = 0
        self.there = self.resumed = False
        self._fd = -1

    def __enter__(self) -> Partial:
        def arrived() -> bool:
            return self._store.has_blob(self.digest, self.size)

        fd = open_locked(self.path, patience=PATIENCE, given_up=lambda: arrived() or self._given_up())
        if fd is None:
            if not arrived():
                raise ImageError(f"the download of {self.digest} was cancelled")
            self.there = True
            return self
        self._fd = fd
        try:
            self.there = arrived()
            if self.there:
                self._drop()
            elif os.fstat(fd).st_size > self.size:
                self.restart()
            self.resumed = os.fstat(fd).st_size > 0
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def existing(self) -> bytes:
        """Return the next bytes of an interrupted download; empty at its end."""
        chunk = os.pread(self._fd, CHUNK, self.have)
        self._hasher.update(chunk)
        self.have += len(chunk)
        return chunk

    def write(self, data: bytes) -> None:
        """Append data.

        Raises:
            DigestMismatch: The content exceeds the announced size.
        """
        if self.have + len(data) > self.size:
            self.restart()
            raise DigestMismatch(f"{self.digest} is longer than the {self.size} bytes announced")
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, self.have)
            self._hasher.update(view[:done])
            self.have += done
            view = view[done:]

    def restart(self) -> None:
        """Discard the bytes so far."""
        os.ftruncate(self._fd, 0)
        self._hasher = self.digest.hasher()
        self.have = 0

    def commit(self) -> None:
        """Verify the content, sync it and give it its name.

        Raises:
            DigestMismatch: The content has another digest; it is discarded.
            ImageError: The content is incomplete, or its file was replaced meanwhile.
        """
        if self.have != self.size:
            raise ImageError(f"{self.digest} ended after {self.have} of {self.size} bytes")
        if not self.digest.matches(self._hasher):
            found = self._hasher.hexdigest()
            self.restart()
            raise DigestMismatch(f"content is not {self.digest}, its digest is {found}")
        os.fsync(self._fd)
        if not is_same_file(self._fd, self.path):
            raise ImageError(f"{self.path} was replaced while it was written")
        target = self._store.blob_path(self.digest)
        os.rename(self.path, target)
        sync_directory(os.path.dirname(target))

    def _drop(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def partial_size(store: Store, digest: Digest) -> int:
    """Return the number of bytes of a blob that an interrupted pull left."""
    try:
        return os.stat(os.path.join(store.partial, digest.hex), follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


class NewBlob:
    """A new blob whose digest is computed while it is written."""

    def __init__(self, store: Store, algorithm: str = "sha256") -> None:
        self._store = store
        self.path = os.path.join(store.owner.live, f"blob-{os.urandom(8).hex()}")
        self._algorithm = algorithm
        self._hasher = hashlib.new(algorithm)
        self.size = 0
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> NewBlob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def write(self, data: bytes) -> None:
        """Append data."""
        view = memoryview(data)
        while view:
            done = os.write(self._fd, view)
            self._hasher.update(view[:done])
            self.size += done
            view = view[done:]

    @property
    def digest(self) -> Digest:
        """Return the digest of the bytes written so far."""
        return Digest(f"{self._algorithm}:{self._hasher.hexdigest()}")

    def commit(self, expected: Digest | None = None) -> Digest:
        """Sync the content and give it its name.

        Raises:
            DigestMismatch: The content's digest is not `expected`.
        """
        digest = self.digest
        if expected is not None and expected != digest:
            raise DigestMismatch(f"content is not {expected}, its digest is {digest}")
        target = self._store.blob_path(digest)
        os.fsync(self._fd)
        os.rename(self.path, target)
        sync_directory(os.path.dirname(target))
        return digest


def put_document(store: Store, data: bytes, expected: Digest | None = None) -> Digest:
    """Store a small document, unless the store has it already.

    Raises:
        DigestMismatch: The content's digest is not `expected`.
    """
    digest = expected or Digest.of(data)
    hasher = digest.hasher()
    hasher.update(data)
    if not digest.matches(hasher):
        raise DigestMismatch(f"content is not {digest}, its digest is {hasher.hexdigest()}")
    if store.has_blob(digest, len(data)):
        with contextlib.suppress(DigestMismatch):
            store.read_document(digest, len(data))
            return digest
    with NewBlob(store, digest.algorithm) as blob:
        blob.write(data)
        return blob.commit(expected)


def blob_problem(store: Store, digest: Digest, size: int | None) -> str | None:
    """Read a blob and return a description of its damage, or None."""
    path = store.blob_path(digest)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return "is not a regular file"
        if size is not None and found.st_size != size:
            return f"has {found.st_size} bytes, not {size}"
        hasher = digest.hasher()
        while chunk := os.read(fd, CHUNK):
            hasher.update(chunk)
        return None if digest.matches(hasher) else "has other content"
    except OSError as error:
        return str(error.strerror)
    finally:
        os.close(fd)
