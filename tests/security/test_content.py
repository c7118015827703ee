"""P12 and P13: content with another digest or another length than announced."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from pycontain import DigestMismatch, Engine, Image, ImageError
from pycontain._images.blobs import Partial
from pycontain._images.store import Store
from pycontain.oci import Digest
from tests.security.layouts import LAYERS, PARTS, flip, load, not_refused, nothing, part_of, sound
from tests.support.images import (
    OCI_CONFIG,
    OCI_LAYER,
    Layout,
    as_json,
    configuration,
    descriptor,
    docker_archive,
    sha256,
)

# ---- P12 --------------------------------------------------------------------------------------------------


@pytest.mark.case("P12")
@pytest.mark.parametrize("part", PARTS)
def test_bit_flip_is_detected_before_the_image_exists(part: str, shop: Engine) -> None:
    layout = sound()
    digest = part_of(layout, part)
    layout.blobs[digest] = flip(layout.blobs[digest])
    with pytest.raises(DigestMismatch):
        load(shop, layout)
    assert nothing(shop)


@pytest.mark.control("P12")
@pytest.mark.parametrize("part", ["first layer", "last layer"])
def test_bit_flip_passes_without_digest_checks(
    part: str, shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = sound()
    digest = part_of(layout, part)
    layout.blobs[digest] = layout.blobs[digest].replace(b"1111", b"1101").replace(b"2222", b"2202")
    monkeypatch.setattr(Digest, "matches", lambda self, hasher: True)
    monkeypatch.setattr(Digest, "__eq__", lambda self, other: True)
    monkeypatch.setattr(Digest, "__ne__", lambda self, other: False)
    (image,) = load(shop, layout)
    monkeypatch.undo()
    assert image
    assert shop.fsck() != []
    image.remove(force=True)


@pytest.mark.case("P12")
@pytest.mark.parametrize("at", [0, 1])
def test_a_wrong_diff_id(at: int, shop: Engine) -> None:
    ids = [sha256(layer) for layer in LAYERS]
    ids[at] = sha256(b"other")
    layout = Layout()
    layout.image(LAYERS, config=configuration(LAYERS, rootfs={"type": "layers", "diff_ids": ids}))
    with pytest.raises(DigestMismatch, match="the image names"):
        load(shop, layout)
    assert nothing(shop)


@pytest.mark.case("P12")
def test_layers_in_another_order(shop: Engine) -> None:
    layout = Layout()
    layout.image(LAYERS, config=configuration(LAYERS[::-1]))
    with pytest.raises(DigestMismatch, match="the image names"):
        load(shop, layout)
    assert nothing(shop)


@pytest.mark.case("P12")
@pytest.mark.parametrize("ids", [[], LAYERS[:1], [*LAYERS, LAYERS[0]]])
def test_more_or_fewer_diff_ids_than_layers(ids: list[bytes], shop: Engine) -> None:
    layout = Layout()
    layout.image(LAYERS, config=configuration(ids))
    with pytest.raises(ImageError, match="layers, the configuration"):
        load(shop, layout)
    assert nothing(shop)


@pytest.mark.case("P12")
def test_docker_archive_with_other_layers(shop: Engine) -> None:
    with pytest.raises(DigestMismatch):
        Image.load(docker_archive(LAYERS, config=configuration(LAYERS[::-1])), engine=shop)
    assert nothing(shop)


@pytest.mark.case("P12")
def test_content_that_goes_bad_in_the_store_is_found(shop: Engine) -> None:
    layout = sound()
    (image,) = load(shop, layout)
    path = Path(shop._session.store.blob_path(image.layers[0].digest))
    path.chmod(0o600)
    path.write_bytes(flip(path.read_bytes()))
    assert [line.split()[0] for line in shop.fsck()] == ["blob"]
    shop.fsck(repair=True)
    load(shop, layout)
    assert shop.fsck() == []


# ---- P13 --------------------------------------------------------------------------------------------------

SIZES: dict[str, Callable[[int], object]] = {
    "short": lambda size: size - 1,
    "long": lambda size: size + 1,
    "zero": lambda size: 0,
    "2^62": lambda size: 1 << 62,
    "2^63": lambda size: 1 << 63,
    "2^64": lambda size: 1 << 64,
    "negative": lambda size: -1,
    "missing": lambda size: None,
    "text": str,
    "a fraction": lambda size: size + 0.0,
    "true": lambda size: True,
}


def _sized(part: str, size: Callable[[int], object]) -> Layout:
    layout, right = Layout(), sound()
    digest = part_of(right, part)
    wrong = size(len(right.blobs[digest]))
    changes = {"size": wrong}
    if part == "manifest":
        layout.image(LAYERS)
        layout.manifests[0].update(changes)
        return layout
    config = as_json(configuration(LAYERS))
    listed = [descriptor(layer, OCI_LAYER) for layer in LAYERS]
    own = descriptor(config, OCI_CONFIG)
    {"config": own, "first layer": listed[0], "last layer": listed[1]}[part].update(changes)
    layout.image(LAYERS, manifest={"config": own, "layers": listed})
    return layout


@pytest.mark.case("P13")
@pytest.mark.parametrize("part", PARTS)
def test_announced_sizes_that_are_not_true(part: str, shop: Engine) -> None:
    assert not_refused(shop, ((name, _sized(part, size)) for name, size in SIZES.items())) == []


@pytest.mark.control("P13")
def test_wrong_size_passes_without_size_checks(shop: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, has_blob = Partial.commit, Store.has_blob

    def trusting(self: Partial) -> None:
        self.size = self.have
        commit(self)

    monkeypatch.setattr(Partial, "commit", trusting)
    monkeypatch.setattr(Store, "has_blob", lambda self, digest, size=None: has_blob(self, digest))
    assert load(shop, _sized("first layer", SIZES["long"]))
    monkeypatch.undo()
    assert shop.fsck() != []
    for image in shop.images:
        image.remove(force=True)


STREAMS: dict[str, Callable[[bytes], bytes]] = {
    "cut off by a byte": lambda whole: whole[:-1],
    "cut off in the middle": lambda whole: whole[: len(whole) // 2],
    "cut off after its header": lambda whole: whole[:10],
    "with something after it": lambda whole: whole + b"something",
    "with zeros and something after it": lambda whole: whole + bytes(100) + whole,
    "with a wrong sum": lambda whole: whole[:-8] + bytes(8),
}


@pytest.mark.case("P13")
def test_truncated_compressed_layers(shop: Engine) -> None:
    layouts = {name: Layout() for name in STREAMS}
    for name, spoil in STREAMS.items():
        layouts[name].image([spoil(gzip.compress(LAYERS[0]))], plain=LAYERS[:1])
    assert not_refused(shop, layouts.items(), "stream") == []
