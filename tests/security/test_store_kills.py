"""F01, F03: processes that work on the store are killed at any moment."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from attrs import astuple

from pycontain import Engine
from tests.support import stores

FULL = bool(os.environ.get("PYC_SECURITY_FULL"))
_OTHERS = ("load", "from_rootfs", "tag", "remove", "sweep")
_CALLS = {
    # Every call of these, and of the many ones each so manieth.
    "rename": 1,
    "fsync": 1,
    "syncfs": 1,
    "unlink": 1,
    "mkdir": 1,
    "flock": 1,
    "ftruncate": 1,
    "pwrite64": 3,
    "openat": 7,
    "write": 5,
    "renameat2": 1,
    "unlinkat": 2,
    "utimensat": 4,
}
_MOST = 60


def _random(name: str, directory: Path, rounds: int, pause: float = 0.0) -> None:
    with stores.site(directory, pause) as where:
        found = stores.in_child(
            stores.kill_at_random, name, astuple(where), str(directory), rounds, rounds, timeout=1500
        )
    assert found["problems"] == []
    assert found["cut"] >= rounds // 4, found


@pytest.mark.case("F01")
@pytest.mark.timeout(1600)
def test_a_pull_that_is_killed_at_any_time(tmp_path: Path) -> None:
    _random("pull", tmp_path, 200 if FULL else 25, pause=0.005)


@pytest.mark.case("F03")
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("name", _OTHERS)
def test_a_change_that_is_killed_at_any_time(name: str, tmp_path: Path) -> None:
    _random(name, tmp_path, 100 if FULL else 6)


def _needs_strace(engine: Engine) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace on this host")
    if not engine._session.features.privileged and engine._session.sub_ids:
        pytest.skip("newuidmap(1) has no rights where it is traced")


def _at_calls(name: str, directory: Path, call: str, step: int, most: int) -> int:
    with stores.site(directory) as where:
        found = stores.in_child(
            stores.kill_at_calls, name, astuple(where), str(directory), call, step, most, timeout=1500
        )
    assert found["problems"] == []
    assert found["codes"], found
    return int(found["cut"])


@pytest.mark.case("F01")
@pytest.mark.parametrize("call", ["rename", "syncfs"])
def test_pull_killed_during_renames(call: str, tmp_path: Path, engine: Engine) -> None:
    _needs_strace(engine)
    assert _at_calls("pull", tmp_path, call, 2, 5) > 0


@pytest.mark.full
@pytest.mark.case("F01")
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("call", list(_CALLS))
def test_a_pull_that_is_killed_at_every_call(call: str, tmp_path: Path, engine: Engine) -> None:
    _needs_strace(engine)
    _at_calls("pull", tmp_path, call, _CALLS[call], _MOST * _CALLS[call])


@pytest.mark.full
@pytest.mark.case("F03")
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("call", ["rename", "fsync", "pwrite64", "unlink", "openat"])
@pytest.mark.parametrize("name", _OTHERS)
def test_a_change_that_is_killed_at_every_call(name: str, call: str, tmp_path: Path, engine: Engine) -> None:
    _needs_strace(engine)
    _at_calls(name, tmp_path, call, _CALLS[call], 20 * _CALLS[call])


def record_first(where: list[str], root: str) -> list[str]:
    """Control: write the record before its content, with a kill in between."""
    from pycontain._images.ingest import Ingest

    def conclude(self: Ingest, names: object = (), origin: object = None) -> None:
        self._record(names, origin)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)

    work, place = stores.WORKS["pull"], stores.Site(*where)
    pid = os.fork()
    if pid == 0:
        Ingest.conclude = conclude  # type: ignore[method-assign, assignment]
        with Engine(root) as engine:
            work.do(engine, place)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    before = [f"before: {kind}" for kind, names in stores.leftovers(Path(root)).items() if names]
    with Engine(root) as engine:
        return before + engine.fsck()


@pytest.mark.control("F01", "F03")
def test_early_record_is_detected(tmp_path: Path) -> None:
    with stores.site(tmp_path) as where:
        found = stores.in_child(record_first, astuple(where), str(tmp_path / "store"))
    assert [one for one in found if one.startswith("layer") and "is not unpacked" in one], found
    assert "before: live" in found  # leftovers of a kill are listed until the next engine starts
