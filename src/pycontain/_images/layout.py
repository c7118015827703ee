"""Images in directories: OCI layouts and unpacked docker archives, resolved beneath one fd."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._images.blobs import CHUNK, Partial, blob_problem, put_document
from pycontain._images.inflate import HEAD, compression_of
from pycontain._images.ingest import ingesting
from pycontain._images.pull import unpack_blob
from pycontain._kernel import hostpath, native
from pycontain._kernel.hostpath import IN_ROOT, NO_MAGICLINKS
from pycontain._model.sizes import shown
from pycontain.errors import DigestMismatch, ImageError, InvalidReference, NotFound, PathError
from pycontain.oci import (
    Descriptor,
    Digest,
    ImageConfig,
    Index,
    Manifest,
    MediaType,
    Platform,
    parse_manifest,
)
from pycontain.oci.document import CONFIG_MOST, MANIFEST_MOST, Fields, parse_list

if TYPE_CHECKING:
    from pycontain._images.store import Store
    from pycontain._state.tables.images import ImageRecord

_IN_ROOT = IN_ROOT | NO_MAGICLINKS
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_INDEXES_DEEP = 3
_IMAGES_MOST = 1000
_DOCUMENTS_MOST = 64 << 20
"""Largest sum of documents read from one directory: an index can name a large one repeatedly."""
_REF_NAME = "org.opencontainers.image.ref.name"
_IMAGE_NAME = "io.containerd.image.name"


@frozen(kw_only=True)
class Found:
    """An image in a directory: its manifest and its names there."""

    manifest: Manifest
    names: tuple[str, ...]
    files: dict[Digest, str]
    """Paths of content that is not below blobs/."""

    def is_called(self, name: str) -> bool:
        """Return whether the image has this name or an equivalent one."""
        return name in self.names or bool({*full_names([name])} & {*full_names(self.names)})


class Layout:
    """A directory that holds images; symbolic links cannot lead out of it.

    Raises:
        NotFound: The directory does not exist.
        ImageError: From each method, when a file is missing, damaged or too large.
    """

    def __init__(self, directory: str, platform: Platform) -> None:
        self._platform = platform
        self._documents = 0
        self._layers: dict[tuple[int, int], Descriptor] = {}
        try:
            self._top = hostpath.open_directory(directory)
        except PathError:
            raise
        except OSError as error:
            raise NotFound(f"cannot open the image directory {directory}: {error.strerror}") from error

    def __enter__(self) -> Layout:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._top)

    def open(self, path: str) -> int:
        """Open a regular file below the directory and return its fd."""
        if "\0" in path or not path or not path.isprintable():
            raise ImageError(f"not a file name: {shown(path)}")
        try:
            name = os.fsencode(path)
        except UnicodeEncodeError:
            raise ImageError(f"not a file name: {shown(path)}") from None
        fd = int(native.lib.pcx_openat2(self._top, name, _READ, _IN_ROOT, 0))
        if fd < 0:
            raise ImageError(f"the archive has no {shown(path)}: {os.strerror(-fd)}")
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(f"{shown(path)} of the archive is not a regular file")
        return fd

    def has(self, path: str) -> bool:
        """Return whether the directory has this regular file."""
        try:
            os.close(self.open(path))
        except ImageError:
            return False
        return True

    def read(self, path: str, most: int) -> bytes:
        """Read a file of at most `most` bytes."""
        with open(self.open(path), "rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise ImageError(f"{shown(path)} of the archive is larger than {most} bytes")
        self._documents += len(data)
        if self._documents > _DOCUMENTS_MOST:
            raise ImageError(f"the archive's documents are more than {_DOCUMENTS_MOST} bytes")
        return data

    def images(self, store: Store) -> list[Found]:
        """Return every image of the OCI index or of docker's manifest.json."""
        if self.has("index.json") and self.has("oci-layout"):
            return list(self._of_index())
        if self.has("manifest.json"):
            return list(self._of_docker(store))
        raise ImageError(
            "the archive has no index.json and no manifest.json",
            hint="use Image.from_rootfs for the archive of a root file system",
        )

    # ---- OCI ----------------------------------------------------------------------------------------------

    def _of_index(self) -> Iterator[Found]:
        index = parse_manifest(self.read("index.json", MANIFEST_MOST))
        if not isinstance(index, Index):
            raise ImageError("index.json is not an image index")
        for at, descriptor in enumerate(index.manifests):
            if at == _IMAGES_MOST:
                raise ImageError(f"the archive has more than {_IMAGES_MOST} images")
            if descriptor.annotations.get("vnd.docker.reference.type") is not None:
                continue
            manifest = self._resolve(descriptor)
            annotations = descriptor.annotations
            names = [annotations[key] for key in (_IMAGE_NAME, _REF_NAME) if annotations.get(key)]
            yield Found(manifest=manifest, names=tuple(names), files={})

    def _resolve(self, descriptor: Descriptor) -> Manifest:
        for _ in range(_INDEXES_DEEP):
            raw = self._verified(descriptor)
            found = parse_manifest(raw, descriptor.media_type)
            if isinstance(found, Manifest):
                return found
            descriptor = found.choose(self._platform)
        raise ImageError(f"image indexes are nested more than {_INDEXES_DEEP} deep")

    def _verified(self, descriptor: Descriptor) -> bytes:
        raw = self.read(blob_name(descriptor.digest), MANIFEST_MOST)
        hasher = descriptor.digest.hasher()
        hasher.update(raw)
        if len(raw) != descriptor.size or not descriptor.digest.matches(hasher):
            raise DigestMismatch(f"the archive's content of {descriptor.digest} has another size or digest")
        return raw

    # ---- docker -------------------------------------------------------------------------------------------

    def _of_docker(self, store: Store) -> Iterator[Found]:
        entries = parse_list(self.read("manifest.json", MANIFEST_MOST), "manifest.json", _IMAGES_MOST)
        for entry in entries:
            yield self._docker_image(store, entry)

    def _docker_image(self, store: Store, entry: Fields) -> Found:
        """Make the manifest that docker's older format lacks."""
        raw = self.read(entry.text("Config"), CONFIG_MOST)
        config = ImageConfig.parse(raw)
        paths = entry.texts("Layers")
        if len(paths) != len(config.diff_ids):
            raise ImageError(
                f"manifest.json has {len(paths)} layers, its configuration {len(config.diff_ids)}"
            )
        digest = Digest.of(raw)
        described = Descriptor(media_type=MediaType.DOCKER_CONFIG, digest=digest, size=len(raw))
        layers = [self._docker_layer(path) for path in paths]
        manifest = Manifest.make(MediaType.DOCKER_MANIFEST, described, tuple(layers))
        files = {layer.digest: path for layer, path in zip(layers, paths, strict=True)}
        files[digest] = entry.text("Config")
        return Found(manifest=manifest, names=entry.texts("RepoTags"), files=files)

    def _docker_layer(self, path: str) -> Descriptor:
        import hashlib

        hasher, head, size = hashlib.sha256(), b"", 0
        with open(self.open(path), "rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            known = self._layers.get((found.st_dev, found.st_ino))
            if known is not None:  # several images may share a layer
                return known
            while chunk := file.read(CHUNK):
                head = head or chunk[:HEAD]
                hasher.update(chunk)
                size += len(chunk)
        kind = compression_of(head)
        if kind not in ("none", "gzip", "zstd"):
            raise ImageError(f"{shown(path)} of the archive is compressed with {kind}")
        suffix = {"none": "", "gzip": ".gzip", "zstd": ".zstd"}[kind]
        digest = Digest(f"sha256:{hasher.hexdigest()}")
        layer = Descriptor(media_type=MediaType.DOCKER_LAYER + suffix, digest=digest, size=size)
        self._layers[found.st_dev, found.st_ino] = layer
        return layer

    # ---- into the store -----------------------------------------------------------------------------------

    def keep(self, store: Store, found: Found, names: Sequence[str]) -> ImageRecord:
        """Add one image to the store, verified like one from a registry."""
        manifest = found.manifest
        with store.leasing() as lease:
            lease.add("blob", manifest.config.digest)
            raw = self.read(
                found.files.get(manifest.config.digest, blob_name(manifest.config.digest)), CONFIG_MOST
            )
            if len(raw) != manifest.config.size:
                raise DigestMismatch(
                    f"{manifest.config.digest} has {len(raw)} bytes, its manifest says {manifest.config.size}"
                )
            put_document(store, raw, manifest.config.digest)
            config = ImageConfig.parse(raw)
            with ingesting(store, lease, manifest, config) as ingest:
                put_document(store, manifest.raw)
                for at, layer in enumerate(manifest.layers):
                    path = found.files.get(layer.digest, blob_name(layer.digest))
                    there = not ingest.lacks_blob(at)
                    if not there:
                        self._copy(store, layer, path)
                    if not ingest.lacks_tree(at):
                        continue
                    try:
                        unpack_blob(store, ingest, at)
                    except ImageError:
                        if not there or blob_problem(store, layer.digest, layer.size) is None:
                            raise
                        ingest.begin_again(at)
                        os.unlink(store.blob_path(layer.digest))
                        self._copy(store, layer, path)
                        unpack_blob(store, ingest, at)
                return ingest.conclude(names)

    def _copy(self, store: Store, layer: Descriptor, path: str) -> None:
        with Partial(store, layer.digest, layer.size) as part:
            if part.there:
                return
            part.restart()
            with open(self.open(path), "rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    part.write(chunk)
            part.commit()


def blob_name(digest: Digest) -> str:
    """Return the path of content in an OCI layout."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def full_names(names: Sequence[str]) -> list[str]:
    """Normalize the names in an archive; bare tags, as layouts have them, are dropped."""
    from pycontain._images.lookup import tag_name

    result = []
    for name in names:
        if ":" not in name and "/" not in name:
            continue
        try:
            result.append(tag_name(name))
        except InvalidReference:
            continue
    return list(dict.fromkeys(result))
