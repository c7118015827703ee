"""F09: many processes pull, run, tag, save, remove and prune at one store.

PYC_SHARE=32x600 says how many processes for how many seconds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pycontain import Engine, Image, ImageError, Progress
from pycontain._images.store import Lease
from tests.support import sharing, stores
from tests.support.served import Served, busybox_files

_PROCESSES, _, _SECONDS = os.environ.get(
    "PYC_SHARE", "16x60" if os.environ.get("PYC_SECURITY_FULL") else "8x15"
).partition("x")


def _share(directory: Path, processes: int, seconds: float) -> Any:
    if not busybox_files():
        pytest.skip("no static busybox on this host")
    with Served(sharing.pictures()) as served:
        arguments = (served.name, str(directory), processes, seconds)
        return stores.in_child(sharing.share, *arguments, timeout=seconds + 120)


@pytest.mark.case("F09")
@pytest.mark.timeout(int(_SECONDS) + 200)
def test_many_processes_share_a_store(tmp_path: Path) -> None:
    found = _share(tmp_path, int(_PROCESSES), float(_SECONDS))
    assert found["problems"] == []
    assert found["kinds"] == ["prune", "pull", "remove", "run", "save", "tag"]
    assert found["done"] > int(_SECONDS)


def _pull_beside_a_sweep(directory: Path) -> list[str]:
    """Sweep from a second engine once a pull has its layers but no record yet; return the faults."""
    if not busybox_files():
        pytest.skip("no static busybox on this host")
    with (
        Served(sharing.pictures()) as served,
        Engine(directory / "store") as pulling,
        Engine(directory / "store") as sweeping,
    ):

        def sweep(progress: Progress) -> None:
            if progress.phase == "finishing":
                sweeping.sweep()

        try:
            Image.pull(f"{served.name}/one", insecure=True, engine=pulling, progress=sweep)
        except ImageError as error:
            return [str(error)]
        return pulling.fsck()


@pytest.mark.case("F09")
def test_sweep_spares_the_layers_of_a_pull_without_record(tmp_path: Path) -> None:
    assert _pull_beside_a_sweep(tmp_path) == []


@pytest.mark.control("F09")
def test_sweep_removes_the_layers_of_a_pull_without_leases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "add", lambda self, kind, *keys: None)
    assert _pull_beside_a_sweep(tmp_path) != []
