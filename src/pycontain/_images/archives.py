"""Image archives as `docker save`, `podman save` and skopeo write and load them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Literal

from pycontain._images.layers import LayerBuild
from pycontain._images.layout import blob_name
from pycontain._images.store_errors import translate_path_errors
from pycontain._images.write import source_date
from pycontain._kernel import hostpath
from pycontain.errors import DigestMismatch, ImageError, NotFound, PathError
from pycontain.oci import Digest, Manifest, MediaType, Reference
from pycontain.oci.document import compact

if TYPE_CHECKING:
    from pycontain._images.store import Store

_CHUNK = 1 << 20


@contextlib.contextmanager
def opened_to_read(source: str | os.PathLike[str] | IO[bytes]) -> Iterator[IO[bytes]]:
    """Open an archive for reading, or pass on a file that is open already.

    Raises:
        NotFound: The file does not exist.
        ImageError: The file cannot be opened.
        PathError: A guest may have made a symbolic link on the path.
    """
    if not isinstance(source, str | os.PathLike):
        yield source
        return
    try:
        # Not to wait for a writer of a pipe that a guest left there.
        fd = hostpath.open_path(os.fspath(source), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except PathError:
        raise
    except OSError as error:
        kind = NotFound if isinstance(error, FileNotFoundError) else ImageError
        raise kind(f"cannot open the image archive {os.fspath(source)}: {error.strerror}") from error
    with open(fd, "rb") as file:
        os.set_blocking(fd, True)
        yield file


@contextlib.contextmanager
def replacing(target: str | os.PathLike[str] | IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield a file for writing; a path gets its name once the content is complete and synced.

    Raises:
        PathError: The file cannot be written.
    """
    if not isinstance(target, str | os.PathLike):
        yield target
        return
    path = os.fspath(target)
    parent, name = os.path.split(os.path.abspath(path))
    with translate_path_errors(path):
        directory = hostpath.open_directory(parent)
        try:
            with hostpath.replaced(directory, name, 0o666) as fd, open(fd, "wb", closefd=False) as file:
                yield file
                file.flush()
                os.fsync(fd)
        finally:
            os.close(directory)


@contextlib.contextmanager
def unpacked(store: Store, read: Callable[[int], bytes]) -> Iterator[str]:
    """Unpack an image archive into a temporary directory and yield its path.

    The archive is untrusted: it goes through the confined unpacker, with the limits of a layer.

    Raises:
        ImageError: The archive is damaged or exceeds a limit.
    """
    with store.leasing():
        build = LayerBuild(store, None, owners=False)
        try:
            while chunk := read(_CHUNK):
                build.feed(chunk)
            build.end()
            build.finish(())
            yield build.tree
        finally:
            build.abandon()


def save(
    store: Store,
    images: Sequence[tuple[Digest, Sequence[str]]],
    out: IO[bytes],
    form: Literal["oci", "docker"],
) -> None:
    """Write images with their names as one archive; equal images give equal bytes.

    Args:
        store: The store that has the content.
        images: The manifest digest and the names of each image.
        out: The file to write to.
        form: 'oci' for an OCI layout that docker and podman load too, 'docker' for Docker's older
            format only.

    Raises:
        NotFound: The store lacks some of the content.
    """
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        written: set[str] = set()
        index, listed = [], []
        for digest, names in images:
            manifest = store.manifest(digest)
            for one in (manifest.config, *manifest.layers):
                _add_blob(store, archive, one.digest, written)
            listed.append(_docker_entry(manifest, names))
            if form == "oci":
                _add_blob(store, archive, digest, written)
                index += _index_entries(manifest, names)
        if form == "oci":
            layout = {"schemaVersion": 2, "mediaType": MediaType.OCI_INDEX, "manifests": index}
            _add(archive, "index.json", compact(layout))
            _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "manifest.json", json.dumps(listed, separators=(",", ":")).encode())


def _docker_entry(manifest: Manifest, names: Sequence[str]) -> dict[str, object]:
    return {
        "Config": blob_name(manifest.config.digest),
        "RepoTags": [Reference.parse(name).familiar for name in names],
        "Layers": [blob_name(layer.digest) for layer in manifest.layers],
    }


def _index_entries(manifest: Manifest, names: Sequence[str]) -> list[dict[str, object]]:
    entry = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": len(manifest.raw)}
    if not names:
        return [dict(entry)]
    return [
        {
            **entry,
            "annotations": {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": Reference.parse(name).tag or "latest",
            },
        }
        for name in names
    ]


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, source_date() or 0
    return member


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    archive.addfile(_member(name, len(data)), io.BytesIO(data))


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes], digest: Digest) -> None:
        self._file, self._digest, self._hasher = file, digest, digest.hasher()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._hasher.update(data)
        return data

    def check(self) -> None:
        if not self._digest.matches(self._hasher):
            raise DigestMismatch(
                f"the store's copy of {self._digest} is damaged", hint="pull the image again to repair it"
            )


def _add_blob(store: Store, archive: tarfile.TarFile, digest: Digest, written: set[str]) -> None:
    name = blob_name(digest)
    if name in written:
        return
    written.add(name)
    if not store.has_blob(digest):
        raise NotFound(f"the store has no content {digest}", hint="pull or load the image again")
    with open(store.open_blob(digest), "rb") as file:
        source = _Hashed(file, digest)
        archive.addfile(_member(name, os.fstat(file.fileno()).st_size), source)  # type: ignore[arg-type]
        source.check()
