"""Construction of one layer: from compressed bytes to a verified overlayfs directory."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pycontain._images.blobs import CHUNK
from pycontain._images.inflate import Inflater
from pycontain._images.store_errors import HINTS
from pycontain._kernel.unpacker import Report, Unpacker
from pycontain.errors import DigestMismatch, ImageError, StateError
from pycontain.oci import Digest

if TYPE_CHECKING:
    from pycontain._images.store import Store


def discard(store: Store, name: str) -> None:
    """Remove a tree below the owner's live directory, with the launcher's privileges."""
    if not os.path.lexists(os.path.join(store.owner.live, name)):
        return
    launcher = store.make_launcher()
    try:
        launcher.remove(store.owner.live_fd, name)
    finally:
        launcher.close()


@contextlib.contextmanager
def opened(paths: Sequence[str]) -> Iterator[list[int]]:
    """Open directories as O_PATH fds and close them at the end."""
    fds: list[int] = []
    try:
        for path in paths:
            fds.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def checked(what: str, report: Report, place: str = "") -> Report:
    """Return a report of success.

    Args:
        what: The participle for error messages, 'unpacked' or 'packed'.
        report: The report of an unpacker or packer.
        place: The directory that was written to.

    Raises:
        ImageError: The report has a problem; the message names the entry and the errno.
    """
    if report.problem is None:
        return report
    message = f"the layer cannot be {what}: {report.problem}"
    if report.name:
        message += f": {report.name!r}"
    if report.errno:
        message += f" ({os.strerror(report.errno)}{place and ' in '}{place})"
    raise ImageError(message, hint=HINTS.get(report.errno) if place else None)


class LayerBuild:
    """A layer under construction: `feed` its bytes, `end` the stream, `finish` it on the layers below.

    Args:
        store: The store that gets the layer.
        diff_id: The expected digest of the unpacked stream, or None to compute it.
        owners: Whether files get the owners in the archive; by default where this user may set them.
        first_id: The host id of the archive's id 0.
    """

    def __init__(
        self, store: Store, diff_id: Digest | None, *, owners: bool | None = None, first_id: int = 0
    ) -> None:
        self._store = store
        self._first_id = first_id
        self._foreign = owners is False
        self._owners = store.owners if owners is None else owners
        self._expected = diff_id
        self.name = f"layer-{os.urandom(8).hex()}"
        self.directory = os.path.join(store.owner.live, self.name)
        self.report: Report | None = None
        self._unpacker: Unpacker | None = None
        try:
            self._start(())
        except BaseException:
            self.abandon()
            raise

    def _start(self, through: Sequence[str]) -> None:
        store = self._store
        self.report = None
        self._hasher = hashlib.sha256() if self._expected is None else self._expected.hasher()
        self._inflater = Inflater(store.limits)
        os.mkdir(self.directory, 0o700)
        os.mkdir(self.tree, 0o755)
        os.chmod(self.tree, 0o755)
        with opened([self.tree, *through]) as fds:
            self._unpacker = Unpacker(
                store.make_launcher,
                fds[0],
                through=fds[1:],
                owners=self._owners,
                devices=store.privileged and self._owners,
                readable=not self._owners and self._foreign,
                landlock=store.landlock,
                first_id=self._first_id,
                size=store.limits.size,
                entries=store.limits.entries,
            )

    @property
    def tree(self) -> str:
        """Return the directory that overlayfs mounts."""
        return os.path.join(self.directory, "fs")

    @property
    def diff_id(self) -> Digest:
        """Return the digest of the unpacked stream so far."""
        return Digest(
            f"{'sha256' if self._expected is None else self._expected.algorithm}:{self._hasher.hexdigest()}"
        )

    @property
    def compression(self) -> str:
        """Return the compression of the stream."""
        return self._inflater.kind

    def feed(self, data: bytes) -> None:
        """Unpack more compressed bytes.

        Raises:
            ImageError: The archive is damaged or exceeds a limit.
            StateError: The engine is closed.
        """
        for piece in self._inflater.feed(data):
            if self._store.closing.is_set():
                raise StateError("the engine is closed")
            self._take(piece)

    def _take(self, piece: bytes) -> None:
        assert self._unpacker is not None
        self._hasher.update(piece)
        if self.report is not None:
            return  # it stopped where only the layers below say what is right
        try:
            self._unpacker.feed(piece)
        except BrokenPipeError:
            self._receive()
            if self.report is None:
                raise ImageError("the layer's unpacker stopped reading") from None

    def _receive(self) -> None:
        assert self._unpacker is not None
        try:
            report = self._unpacker.report()
        except ConnectionError as error:
            raise ImageError("the layer's unpacker died", hint="see whether it was out of memory") from error
        self.report = report if report.crosses else checked("unpacked", report, self._store.roots.data)

    def end(self) -> None:
        """End the stream and verify it.

        Raises:
            ImageError: The archive is damaged or exceeds a limit.
            DigestMismatch: The unpacked stream is not the expected one.
        """
        assert self._unpacker is not None
        for piece in self._inflater.finish():
            self._take(piece)
        self._unpacker.end_stream()
        if self.report is None:
            self._receive()
        if self._expected is not None and self.diff_id != self._expected:
            raise DigestMismatch(f"the layer's digest is {self.diff_id}, the image names {self._expected}")

    def finish(self, lowers: Sequence[str], feed: Callable[[LayerBuild], None] | None = None) -> None:
        """Resolve the layer against the directories below it, the uppermost first.

        Args:
            lowers: The directories.
            feed: Feeds the layer's bytes again. A layer whose paths lead through links of the layers below
                is unpacked a second time, because those layers are not known the first time.

        Raises:
            ImageError: A whiteout or link of the layer cannot be applied.
        """
        report = self._settle(lowers)
        if report.crosses and lowers and feed is not None:
            self.abandon()
            self._start(lowers)
            feed(self)
            self.end()
            report = self._settle(lowers)
        checked("unpacked", report, self._store.roots.data)
        self._close()

    def _settle(self, lowers: Sequence[str]) -> Report:
        assert self._unpacker is not None
        assert self.report is not None
        if self.report.problem is not None:
            return self.report
        with opened([] if self.report.root_opaque else lowers) as fds:
            try:
                return self._unpacker.finish(fds)
            except ConnectionError as error:
                raise ImageError("the layer's unpacker died") from error

    def _close(self) -> None:
        if self._unpacker is not None:
            self._unpacker.close()
            self._unpacker = None

    def abandon(self) -> None:
        """Remove the layer."""
        self._close()
        discard(self._store, self.name)


def feed_verified(store: Store, digest: Digest, build: LayerBuild) -> None:
    """Feed a blob of the store to a build.

    Raises:
        DigestMismatch: The blob is damaged.
        ImageError: The archive is damaged or exceeds a limit.
    """
    hasher = digest.hasher()
    fd = store.open_blob(digest)
    try:
        while chunk := os.read(fd, CHUNK):
            hasher.update(chunk)
            build.feed(chunk)
    finally:
        os.close(fd)
    if not digest.matches(hasher):
        raise DigestMismatch(f"the store's copy of {digest} is damaged", hint="pull the image again")
