"""F05: the store's file system becomes full during an operation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attrs import astuple

from pycontain import Engine
from tests.support import full, stores

FULL = bool(os.environ.get("PYC_SECURITY_FULL"))
_PAGE = 4096
_MOST = {"pull": 400, "load": 560, "from_rootfs": 400, "save": 80, "tag": 60, "remove": 60}
"""Pages of room with which it is surely done."""


@pytest.mark.case("F05")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", list(_MOST))
def test_full_store_stays_consistent(name: str, tmp_path: Path, engine: Engine) -> None:
    if not engine._session.features.privileged:
        pytest.skip("a small file system is mounted by root")
    step = 4 if FULL else 40 if _MOST[name] > 100 else 12
    rooms = [pages * _PAGE for pages in range(0, _MOST[name] + 1, step)]
    with stores.site(tmp_path) as where:
        found = stores.in_child(full.fill_up, name, astuple(where), str(tmp_path), rooms, timeout=900)
    assert found["problems"] == []
    assert found["done"] > 0, found
    if _MOST[name] > 100:
        assert found["refused"] > 1, found


@pytest.mark.control("F05")
def test_errors_of_the_kernel_are_reported(tmp_path: Path, engine: Engine) -> None:
    if not engine._session.features.privileged:
        pytest.skip("a small file system is mounted by root")
    rooms = [pages * _PAGE for pages in (20, 40)]
    with stores.site(tmp_path) as where:
        found = stores.in_child(full.fill_up_untranslated, "save", astuple(where), str(tmp_path), rooms)
    assert [one for one in found["problems"] if "untyped" in one], found
