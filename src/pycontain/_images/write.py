"""Reproducible layers and archives: equal trees give equal bytes.

gzip is written with no name and no time in its header, at a fixed level, by the standard library's
zlib; SOURCE_DATE_EPOCH bounds all times (https://reproducible-builds.org/specs/source-date-epoch/).
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from pycontain._images.blobs import CHUNK, NewBlob, put_document
from pycontain._images.inflate import Inflater
from pycontain._images.ingest import ingesting
from pycontain._images.layers import checked, opened
from pycontain._images.pull import unpack_blob
from pycontain._kernel.packer import Packer
from pycontain.errors import ImageError
from pycontain.oci import Descriptor, Digest, History, ImageConfig, Manifest, MediaType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pycontain._images.store import Store
    from pycontain._state.tables.images import ImageRecord

_LEVEL = 6
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


class Gzip:
    """Reproducible gzip (RFC 1952), without time, name and operating system."""

    def __init__(self) -> None:
        self._object = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15, 8)
        self._check = self._size = 0
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        """Compress data and return the output so far."""
        self._check = zlib.crc32(data, self._check)
        self._size += len(data)
        out = self._object.compress(data)
        if not self._begun:
            self._begun = True
            return _GZIP_HEADER + out
        return out

    def finish(self) -> bytes:
        """Return the remaining output."""
        head = b"" if self._begun else _GZIP_HEADER
        return head + self._object.flush() + struct.pack("<II", self._check, self._size & 0xFFFFFFFF)


@frozen(kw_only=True)
class Written:
    """A layer whose content is in the store: its descriptor and its diff id."""

    descriptor: Descriptor
    diff_id: Digest


def source_date() -> int | None:
    """Return SOURCE_DATE_EPOCH in seconds, or None.

    Raises:
        ImageError: It is not a number.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise ImageError(f"SOURCE_DATE_EPOCH must be a number of seconds, got {text[:40]!r}")
    return int(text)


def now() -> str:
    """Return the current time, or SOURCE_DATE_EPOCH, as RFC 3339 text."""
    moment = source_date()
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def archive(
    store: Store,
    directory: int,
    *,
    first_id: int = 0,
    whiteouts: bool = False,
    one_mount: bool = False,
    headers: bool = False,
    left_out: Sequence[str] = (),
    exact: bool = False,
) -> Generator[bytes, None, None]:
    """Yield the tree below a directory's fd as an uncompressed tar; options as in `Packer`.

    Args:
        exact: Keep times as they are, regardless of SOURCE_DATE_EPOCH.

    Raises:
        ImageError: The tree cannot be packed.
    """
    packer = Packer(
        store.make_launcher,
        directory,
        first_id=first_id,
        whiteouts=whiteouts,
        clamp=None if exact else source_date(),
        landlock=store.landlock,
        one_mount=one_mount,
        headers=headers,
        left_out=left_out,
    )
    try:
        yield from packer.chunks()
        try:
            checked("packed", packer.report())
        except ConnectionError as error:
            raise ImageError("the packer of the layer died") from error
    finally:
        packer.close()


def write_layer(store: Store, chunks: Iterator[bytes], add_lease: Callable[[Digest], None]) -> Written:
    """Compress a tar into a gzip layer in the store.

    Args:
        add_lease: Called with the layer's digest before the blob gets its name.
    """
    plain, gzip = hashlib.sha256(), Gzip()
    with NewBlob(store) as blob:
        for chunk in chunks:
            plain.update(chunk)
            if out := gzip.feed(chunk):
                blob.write(out)
        blob.write(gzip.finish())
        add_lease(blob.digest)
        digest = blob.commit()
        size = blob.size
    return Written(
        descriptor=Descriptor(media_type=MediaType.OCI_LAYER + "+gzip", digest=digest, size=size),
        diff_id=Digest(f"sha256:{plain.hexdigest()}"),
    )


def compose(
    store: Store,
    base: tuple[Manifest, ImageConfig] | None,
    layers: Sequence[Written],
    config: ImageConfig,
    history: Sequence[History],
    names: Sequence[str],
) -> ImageRecord:
    """Record an image of a base and further layers; layers and history of `config` are replaced.

    The caller has leased the content of `layers`.
    """
    below = base[0].layers if base else ()
    before = base[1].diff_ids if base else ()
    whole = evolve(
        config,
        diff_ids=(*before, *(layer.diff_id for layer in layers)),
        history=(*(base[1].history if base else ()), *history),
    ).written()
    kind = base[0].media_type if base else MediaType.OCI_MANIFEST
    docker = kind == MediaType.DOCKER_MANIFEST
    own = [_typed(layer.descriptor, docker) for layer in layers]
    with store.leasing() as lease:
        described = Descriptor(
            media_type=MediaType.DOCKER_CONFIG if docker else MediaType.OCI_CONFIG,
            digest=Digest.of(whole.raw),
            size=len(whole.raw),
        )
        manifest = Manifest.make(kind, described, (*below, *own))
        with ingesting(store, lease, manifest, whole) as ingest:
            put_document(store, whole.raw)
            put_document(store, manifest.raw)
            for at in range(len(manifest.layers)):
                if ingest.lacks_tree(at):
                    unpack_blob(store, ingest, at)
            return ingest.conclude(names)


def _typed(layer: Descriptor, docker: bool) -> Descriptor:
    return evolve(layer, media_type=MediaType.DOCKER_LAYER + ".gzip") if docker else layer


def adopt_archive(store: Store, read: Callable[[int], bytes], add_lease: Callable[[Digest], None]) -> Written:
    """Store a tar archive as a layer's content; recompress it unless it is gzip or zstd.

    The archive is checked when it is unpacked.

    Raises:
        ImageError: The input is empty.
    """
    inflater, plain = Inflater(store.limits), hashlib.sha256()
    with NewBlob(store) as blob:
        while chunk := read(CHUNK):
            blob.write(chunk)
            for piece in inflater.feed(chunk):
                plain.update(piece)
        for piece in inflater.finish():
            plain.update(piece)
        if inflater.made == 0:
            raise ImageError("not a tar archive: it is empty")
        if inflater.kind not in ("gzip", "zstd"):
            with open(blob.path, "rb") as file:
                return write_layer(store, _inflated(store, file.read), add_lease)
        add_lease(blob.digest)
        described = Descriptor(
            media_type=f"{MediaType.OCI_LAYER}+{inflater.kind}", digest=blob.commit(), size=blob.size
        )
    return Written(descriptor=described, diff_id=Digest(f"sha256:{plain.hexdigest()}"))


def _inflated(store: Store, read: Callable[[int], bytes]) -> Iterator[bytes]:
    inflater = Inflater(store.limits)
    while chunk := read(CHUNK):
        yield from inflater.feed(chunk)
    yield from inflater.finish()


def same_tree(store: Store, one: str, other: str) -> bool:
    """Return whether two directories give the same layer."""
    with opened([one, other]) as (left, right):
        first, second = archive(store, left, whiteouts=True), archive(store, right, whiteouts=True)
        held = [b"", b""]
        try:
            while True:
                for at, source in enumerate((first, second)):
                    if not held[at]:
                        held[at] = next(source, b"")
                size = min(len(held[0]), len(held[1]))
                if size == 0:
                    return not held[0] and not held[1]
                if held[0][:size] != held[1][:size]:
                    return False
                held = [part[size:] for part in held]
        finally:
            first.close()
            second.close()
