"""Push of an image: the content that the registry lacks, then the manifest."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from pycontain._images.progress import Meter
from pycontain._images.pull import each
from pycontain._registry.client import Registry
from pycontain._registry.endpoint import Patience, RegistryEndpoint
from pycontain.errors import AuthError, NotFound, PushError
from pycontain.oci import Descriptor, Digest, Manifest, Reference

if TYPE_CHECKING:
    from pycontain._images.store import Store
    from pycontain._registry.credentials import Credentials

_CHUNK = 8 << 20
"""Bytes of one request: proxies of registries refuse larger ones, and a retry sends only one again."""


class Push:
    """Push of one image."""

    def __init__(
        self,
        store: Store,
        digest: Digest,
        reference: Reference,
        *,
        auth: Credentials | None,
        insecure: bool,
        patience: Patience | None,
        meter: Meter,
    ) -> None:
        self._store, self._digest, self._reference, self._meter = store, digest, reference, meter
        self._endpoint = RegistryEndpoint.of(reference.registry, insecure=insecure, patience=patience)
        self._auth = auth
        self._stop = threading.Event()

    def run(self) -> Digest:
        """Send what the registry lacks; return the digest of the manifest.

        Raises:
            PushError: The registry failed.
            AuthError: The registry denied access.
            NotFound: Content is missing from the store.
        """
        store = self._store
        with store.leasing() as lease:
            lease.add("blob", self._digest)
            manifest = store.manifest(self._digest)
            content = list({one.digest: one for one in (*manifest.layers, manifest.config)}.values())
            lease.add("blob", *(one.digest for one in content))
            for one in content:
                if not store.has_blob(one.digest, one.size):
                    raise NotFound(
                        f"the store has no content {one.digest} of {self._reference}",
                        hint="pull or load the image again",
                    )
            self._send(manifest, content)
        self._meter.phase("done")
        return manifest.digest

    def _send(self, manifest: Manifest, content: list[Descriptor]) -> None:
        registry = Registry(
            self._endpoint, self._reference.repository, auth=self._auth, push=True, error=PushError
        )
        with registry:
            self._meter.begin(sum(one.size for one in content), len(content), 0)

            def send(one: Descriptor) -> None:
                self._blob(registry, one)
                self._store.add_origin(one.digest, self._endpoint.name, self._reference.repository)
                self._meter.layer()

            each(send, content, self._stop)
            self._meter.phase("finishing")
            name = self._reference.tag or str(manifest.digest)
            registry.put_manifest(name, manifest.raw, manifest.media_type)

    def _blob(self, registry: Registry, one: Descriptor) -> None:
        if registry.has_blob(one.digest) or self._mounted(registry, one.digest):
            self._meter.add(one.size)
            return
        fd = self._store.open_blob(one.digest)
        try:

            def read(start: int, size: int) -> bytes:
                if self._stop.is_set():
                    raise PushError("another layer failed")
                data = os.pread(fd, size, start)
                self._meter.add(len(data))
                return data

            registry.upload(one.digest, one.size, read, _CHUNK)
        finally:
            os.close(fd)

    def _mounted(self, registry: Registry, digest: Digest) -> bool:
        """Mount a blob from another repository of the registry; return whether that worked."""
        for source in self._store.origins(digest, self._endpoint.name)[:3]:
            if source == self._reference.repository:
                continue
            try:
                if registry.mount(digest, source):
                    return True
            except AuthError:
                continue  # the token does not cover that repository
        return False
