"""P14 to P16: ambiguous, endless and path-like documents."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycontain import Engine, Image, ImageError, InvalidReference
from pycontain._images import layout as product
from pycontain._images.inflate import compression_of
from pycontain.oci import Digest, Reference, document, parse_manifest
from tests.security import bombs
from tests.security.layouts import LAYERS, load, not_refused, nothing, sound
from tests.support.images import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Layout,
    as_json,
    configuration,
    descriptor,
    docker_archive,
    sha256,
)

SECONDS = 10.0


# ---- P14 --------------------------------------------------------------------------------------------------


def _manifest(**changes: Any) -> dict[str, Any]:
    config = as_json(configuration(LAYERS))
    whole = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, OCI_CONFIG),
        "layers": [descriptor(layer, OCI_LAYER) for layer in LAYERS],
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not ...}


def _with_manifest(raw: bytes, media_type: str = OCI_MANIFEST) -> Layout:
    layout = sound()
    layout.manifests = [layout.add(raw, media_type)]
    return layout


_ONE = descriptor(as_json(_manifest()), OCI_MANIFEST)
AMBIGUOUS: dict[str, bytes] = {
    "layers and manifests": as_json(_manifest(manifests=[_ONE])),
    "a configuration and manifests": as_json(_manifest(layers=..., manifests=[_ONE])),
    "nothing": as_json({"schemaVersion": 2}),
    "a manifest that calls itself an index": as_json(_manifest(mediaType=OCI_INDEX)),
    "an index that calls itself a manifest": as_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": [_ONE]}),
    "an unknown kind": as_json(_manifest(mediaType="application/x")),
    "schema 1": as_json({"schemaVersion": 1, "fsLayers": [], "history": []}),
    "schema 3": as_json(_manifest(schemaVersion=3)),
    "no schema": as_json(_manifest(schemaVersion=...)),
    "layers twice": as_json(_manifest())[:-1] + b',"layers":[]}',
    "a size twice": as_json(_manifest()).replace(b'"size"', b'"size":1,"size"', 1),
    "a layer of an unknown kind": as_json(_manifest(layers=[descriptor(LAYERS[0], "application/x"), _ONE])),
    "a configuration of an unknown kind": as_json(_manifest(config=descriptor(b"{}", "application/x"))),
    "an artifact": as_json(_manifest(config=descriptor(b"{}", "application/vnd.oci.empty.v1+json"))),
    "NaN": as_json(_manifest(schemaVersion=float("nan"))),
    "no object": b"[]",
    "no JSON": b"{",
    "UTF-16": as_json(_manifest()).decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + as_json(_manifest()),
    "two documents": as_json(_manifest()) * 2,
}  # fmt: skip


@pytest.mark.case("P14")
def test_documents_with_two_meanings_or_none(shop: Engine) -> None:
    assert not_refused(shop, ((name, _with_manifest(raw)) for name, raw in AMBIGUOUS.items())) == []


@pytest.mark.case("P14")
@pytest.mark.parametrize(
    ("called", "raw"),
    [
        (OCI_INDEX, as_json(_manifest())),
        (OCI_MANIFEST, as_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_ONE]})),
        ("application/x", as_json(_manifest())),
    ],
)
def test_media_type_of_index_and_manifest_must_agree(called: str, raw: bytes, shop: Engine) -> None:
    with pytest.raises(ImageError, match=r"served as|does not match its media type"):
        load(shop, _with_manifest(raw, called))
    with pytest.raises(ImageError, match=r"served as|does not match its media type"):
        parse_manifest(raw, f"{called}; charset=utf-8")
    assert nothing(shop)


@pytest.mark.control("P14")
def test_reader_that_takes_the_last_duplicate_would_be_detected(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = as_json(_manifest()).replace(b'"schemaVersion"', b'"schemaVersion": 1, "schemaVersion"', 1)
    with pytest.raises(ImageError, match="twice"):
        load(shop, _with_manifest(raw))
    monkeypatch.setattr(document, "_object", dict)
    (image,) = load(shop, _with_manifest(raw))
    image.remove(force=True)


# ---- P15 --------------------------------------------------------------------------------------------------


def _nested(depth: int) -> Layout:
    layout = sound()
    for _ in range(depth):
        raw = as_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": layout.manifests})
        layout.manifests = [layout.add(raw, OCI_INDEX)]
    return layout


def _fan_out(count: int, padding: int) -> Layout:
    """Return an index that names one large manifest again and again."""
    layout = Layout()
    one = layout.image(LAYERS, manifest={"annotations": {"pad": "x" * padding}})
    layout.manifests = [one] * count
    return layout


def _wide(count: int) -> Layout:
    layout = sound()
    raw = as_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": layout.manifests * count})
    layout.manifests = [layout.add(raw, OCI_INDEX)]
    return layout


def _itself() -> Layout:
    """Return an index that refers to itself: its blob has the name, but not the digest, of the reference."""
    layout = sound()
    name = sha256(b"itself")
    raw = as_json({"schemaVersion": 2, "manifests": [{"mediaType": OCI_INDEX, "digest": name, "size": 1}]})
    layout.blobs[name] = raw
    layout.manifests = [{"mediaType": OCI_INDEX, "digest": name, "size": len(raw)}]
    return layout


def _config(raw: bytes) -> Layout:
    layout = Layout()
    layout.image(LAYERS, config=raw)
    return layout


def _many_keys(count: int) -> bytes:
    return b"{" + b",".join(b'"k%d":0' % at for at in range(count)) + b',"twice":0,"twice":0}'


GRAPHS: dict[str, Callable[[], Layout]] = {
    "indexes 50 deep": lambda: _nested(50),
    "an index of itself": _itself,
    "10001 manifests": lambda: _wide(10_001),
    "a large manifest 1000 times": lambda: _fan_out(1000, 3 << 20),
    "a manifest of 5 MB": lambda: _fan_out(1, 5 << 20),
    "a manifest of 20 MB": lambda: _fan_out(1, 20 << 20),
    "a configuration of 20 MB": lambda: _config(as_json(configuration(LAYERS, author="x" * (20 << 20)))),
    "a configuration of 200 MB": lambda: _config(as_json(configuration(LAYERS, author="x" * (200 << 20)))),
    "lists 100000 deep": lambda: _config(b"[" * 100_000 + b"]" * 100_000),
    "objects 100000 deep": lambda: _with_manifest(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a number of 100000 digits": lambda: _with_manifest(b'{"schemaVersion":' + b"1" * 100_000 + b"}"),
    "600000 names and one twice": lambda: _config(_many_keys(600_000)),
    "128 layers": lambda: _with_manifest(as_json(_manifest(layers=[descriptor(LAYERS[0], OCI_LAYER)] * 128))),
}  # fmt: skip


@pytest.mark.case("P15")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * ("200 MB" in name)) for name in GRAPHS]
)
def test_documents_without_end_are_refused_in_time(name: str, shop: Engine, tmp_path: Path) -> None:
    source = tmp_path / "source.tar"
    source.write_bytes(GRAPHS[name]().archive().getvalue())
    found = bombs.measured("documents", tmp_path / "store", source)
    assert found["outcome"] != "kept"
    assert found["seconds"] < SECONDS
    assert found["memory"] < 400 << 20
    assert nothing(shop)


@pytest.mark.case("P15")
def test_an_index_of_an_index_is_an_image(shop: Engine) -> None:
    assert len(load(shop, _nested(2))) == 1


@pytest.mark.case("P15")
def test_shared_layer_is_read_once(shop: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []

    def counted(head: bytes) -> str:
        heads.append(head)
        return compression_of(head)

    monkeypatch.setattr(product, "compression_of", counted)
    entry = {"Config": "c.json", "RepoTags": [], "Layers": ["0.tar"]}
    assert len(Image.load(docker_archive(LAYERS[:1], manifest=[entry] * 50), engine=shop)) == 50
    assert len(heads) == 1


@pytest.mark.control("P15")
def test_without_a_bound_the_large_manifest_is_read_every_time(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match="documents are more than"):
        load(shop, _fan_out(40, 3 << 20))
    monkeypatch.setattr(product, "_DOCUMENTS_MOST", 1 << 40)
    assert len(load(shop, _fan_out(40, 3 << 20))) == 40


# ---- P16 --------------------------------------------------------------------------------------------------

_HEX = "a" * 64
DIGESTS = [
    "sha256:../../../../etc/passwd",
    f"sha256:{'../' * 21}x",
    f"sha256:{_HEX.upper()}",
    f"SHA256:{_HEX}",
    f"sha256:{_HEX[:-1]}",
    f"sha256:{_HEX}a",
    f"sha256:{_HEX[:-1]}g",
    f"sha256:{_HEX[:-1]}\n",
    f"sha256:{_HEX}\0",
    f"sha512:{_HEX}",
    f"md5:{_HEX[:32]}",
    f"sha1:{_HEX[:40]}",
    f"../sha256:{_HEX}",
    f"sha256/../..:{_HEX}",
    f"sha256+b64:{_HEX}",
    f"sha256:{'а' * 64}",  # noqa: RUF001  the letter of another alphabet is the point
    f"sha256:{'１' * 64}",  # noqa: RUF001
    "sha256:",
    ":",
    "",
    _HEX,
]


@pytest.mark.case("P16")
@pytest.mark.parametrize("part", ["manifest", "config", "layer", "diff id"])
def test_invalid_digest_never_becomes_a_path(part: str, shop: Engine) -> None:
    assert not_refused(shop, ((text, _called(part, text)) for text in DIGESTS), "not a digest") == []


def _called(part: str, text: str) -> Layout:
    """Return a layout with this name for one of its parts."""
    if part == "diff id":
        return _config(as_json(configuration(LAYERS, rootfs={"type": "layers", "diff_ids": [text, text]})))
    if part == "manifest":
        layout = sound()
        layout.manifests[0]["digest"] = text
        return layout
    if part == "config":
        return _with_manifest(as_json(_manifest(config=descriptor(b"{}", OCI_CONFIG, digest=text))))
    return _with_manifest(as_json(_manifest(layers=[descriptor(b"{}", OCI_LAYER, digest=text)])))


@pytest.mark.control("P16")
def test_unchecked_digest_would_escape_the_store(shop: Engine) -> None:
    text = str.__new__(Digest, DIGESTS[0])
    assert not os.path.normpath(shop._session.store.blob_path(text)).startswith(shop._session.store.blobs)


NAMES = [
    "../../etc/passwd",
    "a/../b",
    "/etc/passwd",
    "a//b",
    "UPPER",
    "a:b/../c",
    f"a:{'t' * 129}",
    f"a:{'t' * 300}",
    "a" * 300,
    f"a@sha256:{'../' * 21}x",
    f"a@md5:{_HEX[:32]}",
    "dеbian",  # noqa: RUF001  the letter of another alphabet is the point
    "debian:lаtest",  # noqa: RUF001
    "a b",
    "a\nb",
    "a\0b",
    "-a",
    "--help",
    "a:-t",
    "",
    _HEX,
]


@pytest.mark.case("P16")
def test_invalid_image_names_of_a_layout_are_refused(shop: Engine) -> None:
    for name in NAMES:
        layout = sound()
        layout.manifests[0]["annotations"] = {"io.containerd.image.name": name}
        (image,) = load(shop, layout)
        with pytest.raises(InvalidReference):
            Reference.parse(name)
        with pytest.raises(InvalidReference):
            image.tag(name)
        archive = docker_archive(LAYERS, entry={"RepoTags": [name]})
        assert [one.tags for one in Image.load(archive, engine=shop)] == [()]
        assert image.tags == ()
