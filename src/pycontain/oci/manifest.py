"""Manifests and indexes (OCI manifest.md, image-index.md; Docker's version 2, schema 2)."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from pycontain._model.sizes import shown
from pycontain.errors import ImageError
from pycontain.oci.digest import Digest
from pycontain.oci.document import MANIFEST_MOST, Fields, MediaType, compact, parse
from pycontain.oci.platform import Platform

LAYERS_MOST = 127
"""Layers of one image: what Docker allows and overlayfs stacks everywhere."""
ENTRIES_MOST = 10_000
"""Manifests of one index."""


@frozen(kw_only=True)
class Descriptor:
    """What some content is, how long, and by which digest it is asked for (descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: dict[str, str] = field(factory=dict, hash=False)
    platform: Platform | None = None

    @classmethod
    def of(cls, fields: Fields) -> Descriptor:
        """Raises ImageError for what is no descriptor."""
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
        """As JSON has it."""
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
    """An image's configuration and layers, the lowest first.  raw: the very bytes, which the digest names."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = field(factory=dict, hash=False)
    raw: bytes = field(repr=False)

    @property
    def digest(self) -> Digest:
        """The sha256 of the bytes."""
        return Digest.of(self.raw)

    @classmethod
    def make(cls, media_type: str, config: Descriptor, layers: tuple[Descriptor, ...]) -> Manifest:
        """A manifest of our own writing."""
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
    """Manifests for several platforms, in the order of preference."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    raw: bytes = field(repr=False)

    def choose(self, wanted: Platform) -> Descriptor:
        """The manifest for a platform: the exact one, else the best that runs there.  Raises ImageError."""
        fitting = [one for one in self.manifests if one.platform is None or one.platform.serves(wanted)]
        fitting = [one for one in fitting if one.annotations.get("vnd.docker.reference.type") is None]
        exact = [
            one for one in fitting if one.platform is not None and one.platform.variant == wanted.variant
        ]
        named = [one for one in fitting if one.platform is not None]
        for found in (exact, sorted(named, key=_newest, reverse=True), fitting):
            if found:
                return found[0]
        there = (
            ", ".join(dict.fromkeys(str(one.platform) for one in self.manifests if one.platform)) or "none"
        )
        raise ImageError(f"the image is not to be had for {wanted}", hint=f"it is for {there[:400]}")


def _newest(one: Descriptor) -> str:
    return one.platform.variant if one.platform else ""


def parse_manifest(raw: bytes, content_type: str | None = None) -> Manifest | Index:
    """The document that a registry or an archive has under a digest.

    content_type: what the registry called it; it has to agree with what the document says of itself
    (CVE-2021-41190).  Raises ImageError for anything that is not clearly one manifest or one index.
    """
    fields = parse(raw, "the manifest", MANIFEST_MOST)
    version = fields.integer("schemaVersion")
    if version == 1:
        raise ImageError(
            "the image has a manifest of Docker's schema 1",
            hint="push it again with a current tool: nothing in such a manifest can be verified",
        )
    if version != 2:
        raise fields.wrong("schemaVersion", f"is no version that there is: {version}")
    has_layers, has_manifests = "layers" in fields or "config" in fields, "manifests" in fields
    if has_layers == has_manifests:
        raise ImageError("the document is both manifest and index, or neither: it cannot be trusted")
    said = fields.text("mediaType") or None
    kind = said or _bare(content_type) or (MediaType.OCI_INDEX if has_manifests else MediaType.OCI_MANIFEST)
    heard = _bare(content_type)
    if said and heard and said != heard:
        raise ImageError(f"the document calls itself {shown(said)}, its source calls it {shown(heard)}")
    if kind not in (MediaType.INDEXES if has_manifests else MediaType.MANIFESTS):
        raise ImageError(f"the document is called {shown(kind)} and is not that")
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
        raise ImageError(f"not a container image: its configuration is {shown(config.media_type)}")
    for layer in layers:
        if layer.media_type not in MediaType.LAYERS:
            raise ImageError(f"a layer of a kind that cannot be unpacked: {shown(layer.media_type)}")
    return Manifest(
        media_type=kind, config=config, layers=layers, annotations=fields.mapping("annotations"), raw=raw
    )


def _bare(content_type: str | None) -> str | None:
    """Without parameters; what says only 'some bytes' or 'JSON' says nothing."""
    bare = (content_type or "").partition(";")[0].strip().lower()
    vague = ("", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream")
    return None if bare in vague else bare
