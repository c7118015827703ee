"""Image manifests and indexes (OCI manifest.md, image-index.md; Docker's version 2, schema 2)."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from pycontain._model.sizes import shown
from pycontain.errors import ImageError
from pycontain.oci.digest import Digest
from pycontain.oci.document import MANIFEST_MOST, Fields, MediaType, compact, parse
from pycontain.oci.platform import Platform

LAYERS_MOST = 127
"""Largest number of layers of one image: Docker's limit, which every overlayfs can stack."""
ENTRIES_MOST = 10_000
"""Largest number of manifests of one index."""


@frozen(kw_only=True)
class Descriptor:
    """Type, size and digest of some content (OCI descriptor.md).

    Attributes:
        media_type: Media type of the content.
        digest: Digest of the content.
        size: Size in bytes.
        urls: Other places of the content.
        annotations: Metadata.
        platform: Platform of a manifest in an index.
    """

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: dict[str, str] = field(factory=dict, hash=False)
    platform: Platform | None = None

    @classmethod
    def of(cls, fields: Fields) -> Descriptor:
        """Read a descriptor from a JSON object.

        Raises:
            ImageError: The object is not a valid descriptor.
        """
        if "size" not in fields:
            raise fields.wrong("size", "is missing")
        inner = fields.inner("platform")
        return cls(
            media_type=fields.text("mediaType"),
            digest=Digest(fields.text("digest")),
            size=fields.integer("size"),
            urls=fields.texts("urls"),
            annotations=fields.mapping("annotations"),
            platform=None if inner is None else Platform.of(inner),
        )

    def document(self) -> dict[str, Any]:
        """Return the JSON object."""
        result: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.urls:
            result["urls"] = list(self.urls)
        if self.annotations:
            result["annotations"] = self.annotations
        if self.platform is not None:
            result["platform"] = self.platform.document()
        return result


@frozen(kw_only=True)
class Manifest:
    """An image manifest (OCI manifest.md).

    Attributes:
        media_type: Media type of the manifest.
        config: Descriptor of the image configuration.
        layers: Descriptors of the layers, the lowest first.
        annotations: Metadata.
        raw: The original bytes, from which the digest is computed.
    """

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = field(factory=dict, hash=False)
    raw: bytes = field(repr=False)

    @property
    def digest(self) -> Digest:
        """Return the sha256 digest of the original bytes."""
        return Digest.of(self.raw)

    @classmethod
    def make(cls, media_type: str, config: Descriptor, layers: tuple[Descriptor, ...]) -> Manifest:
        """Serialize a new manifest."""
        raw = compact(
            {
                "schemaVersion": 2,
                "mediaType": media_type,
                "config": config.document(),
                "layers": [layer.document() for layer in layers],
            }
        )
        return cls(media_type=media_type, config=config, layers=layers, raw=raw)


@frozen(kw_only=True)
class Index:
    """An image index: manifests for several platforms (OCI image-index.md).

    Attributes:
        media_type: Media type of the index.
        manifests: Descriptors of the manifests, in the order of preference.
        raw: The original bytes.
    """

    media_type: str
    manifests: tuple[Descriptor, ...]
    raw: bytes = field(repr=False)

    def choose(self, wanted: Platform) -> Descriptor:
        """Choose the manifest for a platform: an exact match, else the best compatible one.

        Raises:
            ImageError: The index has no compatible manifest.
        """
        fitting = [one for one in self.manifests if one.platform is None or one.platform.serves(wanted)]
        fitting = [one for one in fitting if one.annotations.get("vnd.docker.reference.type") is None]
        exact = [
            one for one in fitting if one.platform is not None and one.platform.variant == wanted.variant
        ]
        named = [one for one in fitting if one.platform is not None]
        for found in (exact, sorted(named, key=_newest, reverse=True), fitting):
            if found:
                return found[0]
        there = ", ".join(dict.fromkeys(str(one.platform) for one in self.manifests if one.platform))
        raise ImageError(
            f"the image is not available for {wanted}",
            hint=f"choose one of: {there[:400]}" if there else "the index names no platform",
        )


def _newest(one: Descriptor) -> str:
    return one.platform.variant if one.platform else ""


def parse_manifest(raw: bytes, content_type: str | None = None) -> Manifest | Index:
    """Parse a manifest or an index from a registry or an archive.

    Args:
        raw: The document.
        content_type: The registry's Content-Type. It has to agree with the document's own media type
            (CVE-2021-41190).

    Raises:
        ImageError: The document is not unambiguously one manifest or one index.
    """
    fields = parse(raw, "the manifest", MANIFEST_MOST)
    version = fields.integer("schemaVersion")
    if version == 1:
        raise ImageError(
            "the image has a manifest of Docker's schema 1, which cannot be verified",
            hint="push the image again with a current tool",
        )
    if version != 2:
        raise fields.wrong("schemaVersion", f"must be 2, got {version}")
    has_layers, has_manifests = "layers" in fields or "config" in fields, "manifests" in fields
    if has_layers == has_manifests:
        raise ImageError("the document is both a manifest and an index, or neither")
    declared = fields.text("mediaType") or None
    received = _bare(content_type)
    kind = declared or received or (MediaType.OCI_INDEX if has_manifests else MediaType.OCI_MANIFEST)
    if declared and received and declared != received:
        raise ImageError(
            f"the document's media type is {shown(declared)}, but it was served as {shown(received)}"
        )
    if kind not in (MediaType.INDEXES if has_manifests else MediaType.MANIFESTS):
        raise ImageError(f"the document's content does not match its media type {shown(kind)}")
    if has_manifests:
        entries = fields.each("manifests", Descriptor.of, ENTRIES_MOST)
        return Index(media_type=kind, manifests=entries, raw=raw)
    return _manifest(fields, kind, raw)


def _manifest(fields: Fields, kind: str, raw: bytes) -> Manifest:
    inner = fields.inner("config")
    if inner is None:
        raise fields.wrong("config", "is missing")
    config = Descriptor.of(inner)
    layers = fields.each("layers", Descriptor.of, LAYERS_MOST)
    if config.media_type not in MediaType.CONFIGS:
        raise ImageError(f"not a container image: its configuration has the type {shown(config.media_type)}")
    for layer in layers:
        if layer.media_type not in MediaType.LAYERS:
            raise ImageError(f"unsupported layer media type {shown(layer.media_type)}")
    return Manifest(
        media_type=kind, config=config, layers=layers, annotations=fields.mapping("annotations"), raw=raw
    )


def _bare(content_type: str | None) -> str | None:
    """Return the media type without parameters, or None for a generic one."""
    bare = (content_type or "").partition(";")[0].strip().lower()
    vague = ("", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream")
    return None if bare in vague else bare
