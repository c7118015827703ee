"""F09: many processes pull, run, tag, save, remove and prune at one store.

PYC_SHARE=32x600 says how many processes for how many seconds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import sharing, stores
from tests.support.served import Served, busybox_files

_PROCESSES, _, _SECONDS = os.environ.get(
    "PYC_SHARE", "16x60" if os.environ.get("PYC_SECURITY_FULL") else "8x15"
).partition("x")


def _share(directory: Path, processes: int, seconds: float, harm: str = "") -> Any:
    if not busybox_files():
        pytest.skip("no static busybox on this host")
    with Served(sharing.pictures()) as served:
        arguments = (served.name, str(directory), processes, seconds, harm)
        return stores.in_child(sharing.share, *arguments, timeout=seconds + 120)


@pytest.mark.case("F09")
@pytest.mark.timeout(int(_SECONDS) + 200)
def test_many_processes_share_a_store(tmp_path: Path) -> None:
    found = _share(tmp_path, int(_PROCESSES), float(_SECONDS))
    assert found["problems"] == []
    assert found["kinds"] == ["prune", "pull", "remove", "run", "save", "tag"]
    assert found["done"] > int(_SECONDS)


@pytest.mark.control("F09")
def test_a_store_without_pins_is_seen_to_lose_things(tmp_path: Path) -> None:
    """What a process relies on is swept by another."""
    found = _share(tmp_path, 6, 5.0, "no pins")
    assert found["problems"] != []
