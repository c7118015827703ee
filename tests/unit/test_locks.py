"""Locks between processes: a stuck holder is named after a timeout."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Conflict, ImageError
from pycontain._state import database, locks
from pycontain._state.database import Database
from pycontain._state.owner import Owner
from pycontain._state.paths import Roots

_HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
)

_WRITE = (
    "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
    "db.execute('BEGIN IMMEDIATE'); print(flush=True); input()"
)


def _held(path: Path) -> contextlib.AbstractContextManager[int]:
    """Lock a file by another process; yield its pid."""
    return _holding(_HOLD, path)


@contextlib.contextmanager
def _holding(code: str, path: Path) -> Iterator[int]:
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield holder.pid
        finally:
            holder.kill()


def test_lock_within_names_the_holder_after_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    refused = pytest.raises(Conflict, match=r"has been locked by process [0-9]+ for 0.1 seconds")
    with _held(path) as pid, path.open("a") as file, refused as raised:
        locks.lock_within(file.fileno(), fcntl.LOCK_SH, str(path), 0.1)
    assert f"process {pid} " in str(raised.value)
    with path.open("a") as file:
        locks.lock_within(file.fileno(), fcntl.LOCK_EX, str(path), 0.1)
        assert locks.is_locked(str(path))


def test_open_locked_names_the_holder_after_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _held(path) as pid, pytest.raises(Conflict, match=f"locked by process {pid}"):
        locks.open_locked(str(path), patience=0.1)


def test_a_long_wait_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "_NOTICE", 0.05)
    path = tmp_path / "lock"
    with _held(path) as pid, caplog.at_level(logging.WARNING, "pycontain"), pytest.raises(Conflict):
        locks.open_locked(str(path), patience=0.3)
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for process {pid}, which has locked {path}"
    ]


def test_an_engine_names_the_process_that_keeps_the_registry_of_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = Roots.of(tmp_path)
    Owner(roots).close()
    monkeypatch.setattr(locks.lock_within, "__defaults__", (0.1,))
    with _held(Path(roots.run) / "registry") as pid, pytest.raises(Conflict, match=f"process {pid}"):
        Owner(roots)


def test_records_that_stay_locked_are_an_error_that_names_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_PATIENCE", 0.1)
    path = tmp_path / "store.db"
    store = Database(str(path))
    store.rows("SELECT 1")
    with _holding(_WRITE, path) as pid, pytest.raises(ImageError, match=rf"by process {pid} for 0.1"):
        store.writing().__enter__()
    with store.writing() as records:
        assert records.execute("SELECT 1").fetchone() == (1,)
    store.close()
