"""F04: power loss while a store is written.

A process that pulls, tags, loads, imports, removes and prunes is traced, and everything that it and its
launchers did to the store's files is replayed on a model of a disk that keeps only what POSIX promises
(tests/support/powerloss.py): unsynced data is missing, zero or torn, unsynced names are missing, a rename
is two changes.  Before and after each fsync, at each return and at the end the disk is cut off in several
ways, and an engine is opened on what is left; locks are gone, as after a boot.

Guarantees, in this order of writing:

1. blob: data, fsync; rename, fsync of blobs/sha256.
2. layers: all trees in live/, one syncfs; rename of each, fsync of layers/.
3. without new layers: fsync of blobs/sha256, also for names that other processes made; for the first image
   of a store one syncfs, which keeps the store's own directories as well.
4. records: SQLite's commit, fsync of store.db-wal, store.db and the directory that has them.

So an image of which a call has returned is there and whole, one that was being made is whole or not there,
and nothing else stays after a sweep.  Each of the controls leaves one of these out.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from attrs import astuple

from pycontain import Engine
from tests.support import losses, stores

FULL = bool(os.environ.get("PYC_SECURITY_FULL"))


def _lose(
    directory: Path, engine: Engine, script: str, seeds: int, sample: int | None, harm: str = ""
) -> Any:
    if shutil.which("strace") is None:
        pytest.skip("no strace on this host")
    if not engine._session.features.privileged:
        pytest.skip("the files of a recorded layer are replayed as root")
    with stores.site(directory) as where:
        arguments = (script, astuple(where), str(directory), seeds, sample, harm)
        return stores.in_child(losses.lose_power, *arguments, timeout=1500)


@pytest.mark.case("F04")
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("script", list(losses.SCRIPTS))
def test_power_loss_leaves_complete_images(script: str, tmp_path: Path, engine: Engine) -> None:
    found = _lose(tmp_path, engine, script, 6 if FULL else 1, None if FULL else 20)
    assert found["problems"] == []
    assert found["losses"] > 20


@pytest.mark.control("F04")
@pytest.mark.parametrize("harm", [name for name in losses.HARM if name])
def test_omitted_sync_is_detected(harm: str, tmp_path: Path, engine: Engine) -> None:
    found = _lose(tmp_path, engine, "same layers", 1, 20, harm)
    assert found["problems"] != []
