"""Pull of an image: resolve the reference, fetch missing content, unpack while it arrives, record it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from attrs import evolve

from pycontain._images.blobs import Partial, partial_size, put_document
from pycontain._images.ingest import Ingest, ingesting
from pycontain._images.layers import feed_verified
from pycontain._images.progress import Meter
from pycontain._registry.client import Fetched, Registry
from pycontain._registry.endpoint import Patience, RegistryEndpoint, mirrors
from pycontain.errors import AuthError, DigestMismatch, ImageError, NotFound, PullError
from pycontain.oci import (
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    Reference,
    parse_manifest,
)
from pycontain.oci.document import CONFIG_MOST

if TYPE_CHECKING:
    from pycontain._images.store import Lease, Store
    from pycontain._registry.credentials import Credentials
    from pycontain._state.tables.images import ImageRecord

_AT_ONCE = 3
_INDEXES_DEEP = 2
_T = TypeVar("_T")


class Pull:
    """Pull of one image."""

    def __init__(
        self,
        store: Store,
        reference: Reference,
        platform: Platform | None,
        *,
        auth: Credentials | None,
        insecure: bool,
        patience: Patience | None,
        meter: Meter,
    ) -> None:
        self._store, self._reference, self._meter = store, reference, meter
        self._platform, self._exactly = platform or Platform.host(), platform is not None
        self._auth, self._insecure = auth, insecure
        self._patience = patience or Patience()

    def run(self) -> ImageRecord:
        """Fetch and record the image, from the first mirror that has it or from the registry.

        Raises:
            PullError: The registry failed, or the transfer broke off.
            AuthError: The registry denied access.
            NotFound: The registry has no such image.
            DigestMismatch: Content has another digest than its name.
            ImageError: The image is invalid, exceeds a limit or is for another platform.
        """
        ours = RegistryEndpoint.of(self._reference.registry, insecure=self._insecure, patience=self._patience)
        for mirror in mirrors(self._reference.registry):
            there = RegistryEndpoint.of(mirror, patience=self._patience)
            # A mirror is another party: it gets no credentials of the registry, and its content is untrusted.
            with (
                contextlib.suppress(ImageError, NotFound),
                Registry(there, self._reference.repository) as one,
            ):
                return self._from(one)
        with Registry(ours, self._reference.repository, auth=self._auth) as registry:
            return self._from(registry)

    def _from(self, registry: Registry) -> ImageRecord:
        with self._store.leasing() as lease:
            manifest = self._resolve(registry)
            config = self._configuration(registry, lease, manifest)
            if self._exactly and not config.platform.serves(self._platform):
                raise ImageError(f"{self._reference} is for {config.platform}, not for {self._platform}")
            with ingesting(self._store, lease, manifest, config) as ingest:
                put_document(self._store, manifest.raw)
                self._fetch_all(registry, ingest)
                self._meter.phase("finishing")
                names = [str(evolve(self._reference, digest=None))] if self._reference.tag else []
                record = ingest.conclude(names, (registry.endpoint.name, registry.repository))
        self._meter.phase("done")
        return record

    def _resolve(self, registry: Registry) -> Manifest:
        wanted = self._reference.digest or self._reference.tag or "latest"
        fetched = registry.manifest(wanted)
        for _ in range(_INDEXES_DEEP):
            found = parse_manifest(fetched.raw, fetched.content_type)
            if isinstance(found, Manifest):
                return found
            fetched = self._chosen(registry, found)
        raise ImageError(f"{self._reference} is an index of indexes of indexes")

    def _chosen(self, registry: Registry, index: Index) -> Fetched:
        self._exactly = False  # the platform in the index decides, not the one in the configuration
        chosen = index.choose(self._platform)
        fetched = registry.manifest(chosen.digest)
        if len(fetched.raw) != chosen.size:
            raise DigestMismatch(
                f"{chosen.digest} has {len(fetched.raw)} bytes, its index says {chosen.size}"
            )
        return fetched

    def _configuration(self, registry: Registry, lease: Lease, manifest: Manifest) -> ImageConfig:
        descriptor = manifest.config
        if descriptor.size > CONFIG_MOST:
            raise ImageError(f"the image configuration is larger than {CONFIG_MOST} bytes")
        lease.add("blob", descriptor.digest)
        if self._store.has_blob(descriptor.digest, descriptor.size):
            with contextlib.suppress(DigestMismatch):
                return self._store.config(descriptor.digest)
        data = b"".join(
            self._patiently(registry, descriptor, lambda start: registry.blob(descriptor.digest, start))
        )
        if len(data) != descriptor.size:
            raise DigestMismatch(
                f"{descriptor.digest} has {len(data)} bytes, its manifest says {descriptor.size}"
            )
        put_document(self._store, data, descriptor.digest)
        return ImageConfig.parse(data)

    def _patiently(
        self,
        registry: Registry,
        descriptor: Descriptor,
        read: Callable[[int], Generator[bytes]],
        have: int = 0,
    ) -> Generator[bytes]:
        """Go on where a transfer broke off, as long as it gets on at all."""
        tries, begun, first = 0, time.monotonic(), have
        while have < descriptor.size:
            before = have
            try:
                with contextlib.closing(read(have)) as chunks:
                    for chunk in chunks:
                        have += len(chunk)
                        if have > descriptor.size:
                            raise DigestMismatch(
                                f"{descriptor.digest} is longer than the {descriptor.size} bytes announced"
                            )
                        yield chunk
                if have < descriptor.size:
                    raise PullError(f"{descriptor.digest} ended after {have} of {descriptor.size} bytes")
            except PullError:
                tries = 1 if have > before else tries + 1
                past = time.monotonic() - begun
                slow = past > self._patience.grace and (have - first) / past < self._patience.slowest
                if tries >= self._patience.tries or slow or not self._patience.left:
                    raise
                time.sleep(min(self._patience.first_pause * tries, self._patience.longest_pause))

    def _fetch_all(self, registry: Registry, ingest: Ingest) -> None:
        missing = ingest.missing
        layers = ingest.manifest.layers
        fetched = sum(layers[at].size for at in missing if ingest.lacks_blob(at))
        fetched -= sum(
            partial_size(self._store, layers[at].digest) for at in missing if ingest.lacks_blob(at)
        )
        self._meter.begin(max(fetched, 0), len(layers), len(layers) - len(missing))

        stop = threading.Event()

        def fetch(position: int) -> None:
            self._fetch(registry, ingest, position, stop)
            self._meter.layer()

        each(fetch, missing, stop)

    def _fetch(self, registry: Registry, ingest: Ingest, position: int, stop: threading.Event) -> None:
        """Fetch and unpack a layer; start again if the partial download or the stored content is damaged."""
        layer = ingest.manifest.layers[position]
        for last in (False, True):
            with Partial(self._store, layer.digest, layer.size, stop.is_set) as part:
                suspect = part.there or part.resumed
                came: list[int] = []
                try:
                    if not part.there:
                        self._stream(registry, ingest, position, part, stop, came)
                    elif ingest.lacks_tree(position):
                        unpack_blob(self._store, ingest, position)
                    return
                except ImageError as error:
                    if last or not suspect or stop.is_set() or isinstance(error, PullError | AuthError):
                        raise
                    ingest.begin_again(position)
                    self._meter.add(-sum(came))
                    if part.there:
                        os.unlink(self._store.blob_path(layer.digest))
                    else:
                        part.restart()

    def _stream(
        self,
        registry: Registry,
        ingest: Ingest,
        position: int,
        part: Partial,
        stop: threading.Event,
        came: list[int],
    ) -> None:
        """Unpack the partial download while the rest arrives; `came` receives the sizes of new chunks."""
        layer = ingest.manifest.layers[position]
        build = ingest.build(position) if ingest.lacks_tree(position) else None
        while chunk := part.existing():
            if build is not None:
                build.feed(chunk)
        source = self._patiently(registry, layer, lambda start: registry.blob(layer.digest, start), part.have)
        with contextlib.closing(source):  # also closes the connection if writing fails
            for chunk in source:
                if stop.is_set():
                    raise PullError("another layer failed")
                part.write(chunk)
                came.append(len(chunk))
                self._meter.add(len(chunk))
                if build is not None:
                    build.feed(chunk)
        part.commit()
        if build is not None:
            build.end()
            ingest.ended(position)


def each(work: Callable[[_T], None], items: Sequence[_T], stop: threading.Event) -> None:
    """Call `work` on items in parallel; the first failure sets `stop` and is raised when all have ended."""
    errors: list[BaseException] = []

    def guarded(item: _T) -> None:
        if stop.is_set():
            return  # another item has failed
        try:
            work(item)
        except BaseException as error:  # noqa: BLE001  the first is raised below
            errors.append(error)
            stop.set()

    with ThreadPoolExecutor(max(1, min(_AT_ONCE, len(items))), "pycontain-layer") as pool:
        try:
            list(pool.map(guarded, items))
        except BaseException:  # a signal handler's, in this thread
            stop.set()
            raise
    if errors:
        raise errors[0]


def unpack_blob(store: Store, ingest: Ingest, position: int) -> None:
    """Unpack a layer from a blob in the store.

    Raises:
        DigestMismatch: The blob is damaged.
    """
    layer = ingest.manifest.layers[position]
    build = ingest.build(position)
    feed_verified(store, layer.digest, build)
    build.end()
    ingest.ended(position)
