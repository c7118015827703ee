"""The tables of the store's records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain._state.database import Database
from pycontain._state.tables import images, leases, snapshots, volumes
from pycontain._state.tables.images import ImageRecord, LayerRecord
from pycontain._state.tables.snapshots import SnapshotRecord
from pycontain._state.tables.volumes import VolumeRecord
from pycontain.oci import Digest

MANIFEST, CONFIG, LOWER, UPPER = (Digest.of(text) for text in (b"manifest", b"config", b"lower", b"upper"))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(str(tmp_path / "store.db"))
    yield database
    database.close()


def test_image_has_its_parts_names_and_origins(database: Database) -> None:
    record = ImageRecord(MANIFEST, CONFIG, 7, 1.5)
    with database.writing() as records:
        images.put_layer(records, LayerRecord(UPPER, LOWER, 3, 2, True), LOWER, 1.0)
        images.add_image(records, record, [(LOWER, CONFIG), (UPPER, MANIFEST)])
        images.set_tags(records, ["one", "two"], MANIFEST, 2.0)
        images.add_origins(records, [CONFIG, LOWER], "registry.example.org", "library/one")
        images.remove_unused_origins(records)
        assert images.chains_in_use(records) == {LOWER, UPPER}
        assert images.blobs_in_use(records) == {MANIFEST, CONFIG}
        assert images.layer_sizes(records) == {UPPER: 3}
    assert images.images(database) == [record]
    assert images.image(database, MANIFEST) == record
    assert images.parts(database, MANIFEST) == [(LOWER, CONFIG), (UPPER, MANIFEST)]
    assert images.layer(database, UPPER) == LayerRecord(UPPER, LOWER, 3, 2, True)
    assert images.tags(database) == images.tags(database, MANIFEST) == {"one": MANIFEST, "two": MANIFEST}
    assert images.origins(database, CONFIG, "registry.example.org") == ["library/one"]
    assert images.origins(database, LOWER, "registry.example.org") == []  # not the blob of a layer


def test_removed_image_has_no_names_and_no_parts(database: Database) -> None:
    with database.writing() as records:
        images.add_image(records, ImageRecord(MANIFEST, CONFIG, 7, 1.5), [(LOWER, LOWER)])
        images.set_tags(records, ["one"], MANIFEST, 2.0)
        assert images.remove_image(records, MANIFEST)
        assert not images.remove_image(records, MANIFEST)
        assert not images.has_image(records, MANIFEST)
        assert images.blobs_in_use(records) == set()
    assert images.tags(database) == {}


def test_name_moves_to_another_image(database: Database) -> None:
    with database.writing() as records:
        for digest in (MANIFEST, CONFIG):
            images.add_image(records, ImageRecord(digest, LOWER, 0, 0.0), [])
            images.set_tags(records, ["one"], digest, 0.0)
    assert images.tags(database) == {"one": CONFIG}
    assert images.tags(database, MANIFEST) == {}


def test_lease_ends_with_its_session_or_owner(database: Database) -> None:
    with database.writing() as records:
        leases.add(records, "pull", "layer", ["a", "b"], "first")
        leases.add(records, "pull", "blob", ["c"], "first")
        leases.add(records, "container-1", "volume", ["data"], "second")
        leases.add(records, "snapshot-1", "layer", ["b"], leases.PERMANENT)
        assert sorted(leases.owners(records)) == ["first", "second"]
        assert leases.leased(records, "layer") == {"a", "b"}
        assert sorted(leases.sessions(records, "layer", "b")) == ["pull", "snapshot-1"]
        leases.release_keys(records, "pull", ["a"])
        assert sorted(leases.keys_of(records, "pull")) == ["b", "c"]
        leases.release_owner(records, "first", "blob")
        assert leases.keys_of(records, "pull") == ["b"]
        leases.release_owner(records, "first")
        assert leases.sessions(records, "layer", "b") == ["snapshot-1"]
        leases.release_kind(records, "container-1", "layer")
        assert leases.keys_of(records, "container-1") == ["data"]
        leases.release(records, "container-1")
        assert leases.owners(records) == []


def test_snapshots_are_listed_newest_first(database: Database) -> None:
    old = SnapshotRecord(id="a", kind="sealed", created=1.0, base="{}", sealed=("x", "y"))
    new = SnapshotRecord(id="b", kind="copied", created=2.0, base="{}", sealed=())
    with database.writing() as records:
        snapshots.add(records, old)
        snapshots.add(records, new)
    assert snapshots.snapshots(database) == [new, old]
    with database.writing() as records:
        snapshots.set_kind(records, "a", "copied")
        assert snapshots.remove(records, "b")
        assert not snapshots.remove(records, "b")
    assert [(one.id, one.kind) for one in snapshots.snapshots(database)] == [("a", "copied")]


def test_volume_keeps_labels_and_size(database: Database) -> None:
    sized = VolumeRecord(name="b", size=1 << 20, created=1.0, labels={"a": "b"}, owner="")
    plain = VolumeRecord(name="a", size=None, created=2.0, labels={}, owner="engine")
    with database.writing() as records:
        volumes.add(records, sized)
        volumes.add(records, plain)
        assert volumes.find(records, "b") == sized
        assert volumes.find(records, "c") is None
    assert volumes.volumes(database) == [plain, sized]
    with database.writing() as records:
        volumes.remove(records, "b")
    assert volumes.volume(database, "b") is None
