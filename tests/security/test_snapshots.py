"""Snapshots stay unchanged, even with files of the container kept open elsewhere."""

from __future__ import annotations

import pytest

from tests.security import snapshot_attacks, weak


@pytest.mark.case("A08")
@pytest.mark.parametrize("security", ["SANDBOX", "DOCKER"])
def test_descriptor_outside_changes_no_snapshot(security: str) -> None:
    assert snapshot_attacks.change_snapshots(list(snapshot_attacks.WAYS), security) == []


@pytest.mark.case("A08")
def test_snapshot_is_copied_only_where_a_descriptor_can_write() -> None:
    kinds = {way: snapshot_attacks.kind_of_snapshot(way) for way in ("in flight", "mapped", "directory")}
    assert kinds == {"in flight": "copied", "mapped": "copied", "directory": "sealed"}


@pytest.mark.control("A08")
@pytest.mark.parametrize("security", ["SANDBOX", "DOCKER"])
def test_layers_that_stay_writable_would_be_changed(security: str) -> None:
    ways = list(snapshot_attacks.WAYS)
    found = weak.run("writable-layers", "tests.security.snapshot_attacks:change_snapshots", ways, security)
    # Landlock in the other container refuses paths that do not begin at its own root, and the kernel refuses
    # a change of names by an id that the file system's user namespace does not map.
    possible = ways[:4] if security == "SANDBOX" else ways[:6]
    assert [way for way in found if way in possible] == possible
