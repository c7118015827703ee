"""Images from lists of entries, with control of every byte, including ones that no tool would write."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

BLOCK = 512
END = bytes(2 * BLOCK)
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
TIME = 1_600_000_000


def as_bytes(text: str | bytes) -> bytes:
    """Encode a name, which may be bytes that are no text."""
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def octal(value: int, width: int) -> bytes:
    """Return a number field with its NUL, in base-256 if it does not fit."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return bytes([0x80 if value >= 0 else 0xFF]) + (value & (1 << 8 * (width - 1)) - 1).to_bytes(
        width - 1, "big"
    )


def with_sum(block: bytes) -> bytes:
    """Return a header with its checksum."""
    plain = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(plain) + block[156:]


def padded(data: bytes) -> bytes:
    """Pad data to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def header(
    name: str | bytes,
    kind: bytes,
    size: int = 0,
    *,
    link: str | bytes = b"",
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    mtime: int = TIME,
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    fields: Mapping[int, bytes] | None = None,
) -> bytes:
    """Return a ustar header.  fields: bytes written at their offset before the checksum."""
    block = bytearray(BLOCK)

    def put(offset: int, value: bytes) -> None:
        block[offset : offset + len(value)] = value

    put(0, as_bytes(name)[:100])
    put(100, octal(mode, 8))
    put(108, octal(owner[0], 8))
    put(116, octal(owner[1], 8))
    put(124, octal(size, 12))
    put(136, octal(mtime, 12))
    put(156, kind)
    put(157, as_bytes(link)[:100])
    put(257, b"ustar\x0000")
    put(329, octal(device[0], 8))
    put(337, octal(device[1], 8))
    put(345, prefix[:155])
    for offset, value in (fields or {}).items():
        put(offset, value)
    return with_sum(bytes(block))


def record(key: str, value: str | bytes) -> bytes:
    """Return one record of an extended header."""
    body = b" " + key.encode() + b"=" + as_bytes(value) + b"\n"
    size = len(body) + len(str(len(body)))
    if size != len(body) + len(str(size)):
        size += 1
    return str(size).encode() + body


def extended(data: bytes, kind: bytes = b"x") -> bytes:
    """Return an extended header of any text."""
    return header("PaxHeaders/x", kind, len(data)) + padded(data)


@frozen(kw_only=True)
class Entry:
    """An entry, valid or hostile; `bytes` is its form in the archive."""

    name: str | bytes
    kind: bytes = b"0"
    data: bytes = b""
    link: str | bytes = b""
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    mtime: int = TIME
    device: tuple[int, int] = (0, 0)
    pax: Mapping[str, str | bytes] | None = None

    def __bytes__(self) -> bytes:
        name, link, pax = as_bytes(self.name), as_bytes(self.link), dict(self.pax or {})
        if len(name) > 100:
            pax.setdefault("path", name)
        if len(link) > 100:
            pax.setdefault("linkpath", link)
        before = extended(b"".join(record(*pair) for pair in pax.items())) if pax else b""
        own = header(
            name,
            self.kind,
            len(self.data),
            link=link,
            mode=self.mode,
            owner=self.owner,
            mtime=self.mtime,
            device=self.device,
        )
        return before + own + padded(self.data)


def file(name: str | bytes, data: bytes = b"", **more: Any) -> Entry:
    """Return a regular file."""
    return Entry(name=name, data=data, **more)


def directory(name: str | bytes, mode: int = 0o755, **more: Any) -> Entry:
    """Return a directory."""
    return Entry(name=name, kind=b"5", mode=mode, **more)


def symlink(name: str | bytes, link: str | bytes, **more: Any) -> Entry:
    """Return a symbolic link."""
    return Entry(name=name, kind=b"2", link=link, mode=0o777, **more)


def hard(name: str | bytes, link: str | bytes, **more: Any) -> Entry:
    """Return a hard link."""
    return Entry(name=name, kind=b"1", link=link, **more)


def fifo(name: str | bytes, **more: Any) -> Entry:
    """Return a named pipe."""
    return Entry(name=name, kind=b"6", **more)


def device(name: str | bytes, major: int, minor: int, kind: bytes = b"3", **more: Any) -> Entry:
    """Return a device node."""
    return Entry(name=name, kind=kind, device=(major, minor), **more)


def tar(entries: Iterable[Entry | bytes]) -> bytes:
    """Return a whole archive."""
    return b"".join(bytes(one) for one in entries) + END


def sha256(data: bytes) -> str:
    """Return a digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def as_json(value: object) -> bytes:
    """Encode a document as JSON; bytes are returned unchanged."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def descriptor(data: bytes, media_type: str, **changes: Any) -> dict[str, Any]:
    """Return a descriptor of the content; `changes` make it wrong."""
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **changes}


def configuration(layers: Sequence[bytes], **changes: Any) -> dict[str, Any]:
    """Return an image configuration of uncompressed layers."""
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        **changes,
    }


class Layout:
    """An OCI layout with arbitrary contents, valid or not."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: list[dict[str, Any]] = []
        self.index: object = None
        self.more: dict[str, bytes] = {}

    def add(self, data: bytes, media_type: str, **changes: Any) -> dict[str, Any]:
        """Add a blob and return its descriptor."""
        found = descriptor(data, media_type, **changes)
        self.blobs[sha256(data)] = data
        return found

    def image(
        self,
        layers: Sequence[bytes],
        *,
        config: object = None,
        manifest: Mapping[str, Any] | None = None,
        plain: Sequence[bytes] | None = None,
        name: str = "",
    ) -> dict[str, Any]:
        """Add an image to the index.  plain: the layers without their compression."""
        whole = as_json(configuration(plain or layers) if config is None else config)
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.add(whole, OCI_CONFIG),
            "layers": [self.add(layer, _layer_type(layer)) for layer in layers],
            **(manifest or {}),
        }
        one = self.add(as_json(document), OCI_MANIFEST)
        if name:
            one["annotations"] = {"org.opencontainers.image.ref.name": name}
        self.manifests.append(one)
        return one

    def files(self) -> dict[str, bytes]:
        """Return all files by path."""
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self.manifests}
        return {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "index.json": as_json(index if self.index is None else self.index),
            **{f"blobs/{name.replace(':', '/')}": data for name, data in self.blobs.items()},
            **self.more,
        }

    def write(self, top: Path) -> Path:
        """Write the layout to a directory."""
        for name, data in self.files().items():
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return top

    def archive(self, extra: Iterable[Entry | bytes] = ()) -> io.BytesIO:
        """Return the layout as an archive; `extra` is appended."""
        return io.BytesIO(tar([*(file(name, data) for name, data in self.files().items()), *extra]))


def _layer_type(layer: bytes) -> str:
    if layer.startswith(b"\x1f\x8b"):
        return f"{OCI_LAYER}+gzip"
    return f"{OCI_LAYER}+zstd" if layer.startswith(b"\x28\xb5\x2f\xfd") else OCI_LAYER


def oci_layout(layers: Sequence[bytes], **more: Any) -> Layout:
    """Return a layout with one image."""
    layout = Layout()
    layout.image(layers, **more)
    return layout


def docker_archive(
    layers: Sequence[bytes],
    *,
    config: object = None,
    entry: Mapping[str, Any] | None = None,
    manifest: object = None,
    extra: Iterable[Entry | bytes] = (),
) -> io.BytesIO:
    """Return an archive of `docker save`.  entry: replaced fields of manifest.json; manifest: all of it."""
    whole = as_json(configuration(layers) if config is None else config)
    listed = [{"Config": "c.json", "RepoTags": [], "Layers": [f"{at}.tar" for at in range(len(layers))]}]
    listed[0].update(entry or {})
    members: list[Entry | bytes] = [
        file("c.json", whole),
        *(file(f"{at}.tar", layer) for at, layer in enumerate(layers)),
        file("manifest.json", as_json(listed if manifest is None else manifest)),
        *extra,
    ]
    return io.BytesIO(tar(members))
