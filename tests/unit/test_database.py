"""The store's records, shared by processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pycontain._state.database import Database

_WRITE = """
import sys, time
from pycontain._state.database import Database
database = Database(sys.argv[1])
with database.writing(durable=True) as rows:
    rows.execute("INSERT INTO origin VALUES ('blob', 'registry', ?)", (sys.argv[2],))
database.close()
"""


def _write(path: str, text: str) -> None:
    subprocess.run([sys.executable, "-c", _WRITE, path, text], check=True)


def test_writes_of_other_connections_are_seen(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    database = Database(path)
    with database.writing(durable=True) as rows:
        rows.execute("INSERT INTO origin VALUES ('blob', 'registry', 'own')")
    for text in ("first", "second"):
        _write(path, text)
    with database.writing(durable=True) as rows:
        rows.execute("INSERT INTO origin VALUES ('blob', 'registry', 'later')")
    found = {row[0] for row in database.rows("SELECT repository FROM origin")}
    assert found == {"own", "first", "second", "later"}
    _write(path, "last")
    other = Database(path)
    wanted = {"own", "first", "second", "later", "last"}
    for one in (database, other):
        assert {row[0] for row in one.rows("SELECT repository FROM origin")} == wanted
        one.close()


def test_a_store_of_the_version_before_is_brought_up(tmp_path: Path) -> None:
    import sqlite3

    from pycontain._state import database as module

    path = str(tmp_path / "store.db")
    old = sqlite3.connect(path)
    old.executescript(module._SCHEMA + ";PRAGMA user_version = 1")
    old.execute("INSERT INTO origin VALUES ('blob', 'registry', 'kept')")
    old.commit()
    old.close()
    database = Database(path)
    assert database.rows("SELECT repository FROM origin") == [("kept",)]
    assert database.rows("SELECT count(*) FROM snapshot UNION ALL SELECT count(*) FROM volume") == [
        (0,),
        (0,),
    ]
    database.close()
