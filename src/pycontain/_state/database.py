"""The store's records: one SQLite file in WAL mode, shared by threads and processes.

A record is written after what it speaks of is on the disk, and is on the disk itself when a durable
transaction returns.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from pycontain.errors import ImageError

_VERSION = 1
_PATIENCE = 30.0
_SCHEMA = """
CREATE TABLE image (
    digest TEXT PRIMARY KEY, config TEXT NOT NULL, size INTEGER NOT NULL, added REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE tag (
    name TEXT PRIMARY KEY, digest TEXT NOT NULL REFERENCES image (digest), changed REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE layer (
    chain TEXT PRIMARY KEY, diff TEXT NOT NULL, parent TEXT, size INTEGER NOT NULL, entries INTEGER NOT NULL,
    root_opaque INTEGER NOT NULL, added REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE part (
    image TEXT NOT NULL REFERENCES image (digest) ON DELETE CASCADE, position INTEGER NOT NULL,
    chain TEXT NOT NULL, blob TEXT NOT NULL, PRIMARY KEY (image, position)
) WITHOUT ROWID;
CREATE INDEX part_chain ON part (chain);
CREATE INDEX part_blob ON part (blob);
CREATE TABLE origin (
    blob TEXT NOT NULL, registry TEXT NOT NULL, repository TEXT NOT NULL,
    PRIMARY KEY (blob, registry, repository)
) WITHOUT ROWID;
CREATE TABLE pin (
    session TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, owner TEXT NOT NULL,
    PRIMARY KEY (session, kind, key)
) WITHOUT ROWID;
CREATE INDEX pin_key ON pin (kind, key);
"""


class Database:
    """Connections of this process, one a thread.  Errors of SQLite come as ImageError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._mutex = threading.Lock()
        self._pid = os.getpid()

    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is not None and self._pid == os.getpid():
            return found
        if self._pid != os.getpid():  # what a fork left behind is the parent's
            self._pid, self._all, self._local = os.getpid(), [], threading.local()
        connection = sqlite3.connect(
            self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            os.chmod(self.path, 0o600)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        with self._mutex:
            self._all.append(connection)
        self._local.connection = connection
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise ImageError(
                    f"the store {self.path} is of version {version}, this is pycontain for {_VERSION}",
                    hint="use another PYCONTAIN_ROOT, or the pycontain that wrote it",
                )
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ImageError(
                f"the store's records {self.path} cannot be used: {error}",
                hint="`Engine().fsck()` says what is damaged",
            ) from error

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a SELECT finds."""
        with self._told():
            return self._connection().execute(statement, values).fetchall()

    @contextlib.contextmanager
    def writing(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes beside; undone when the block raises.

        durable: on the disk when the block ends.
        """
        with self._told():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        if durable:
            self._sync()

    def _sync(self) -> None:
        # NORMAL leaves the log to the kernel; its frames carry checksums, so what is on the disk is whole.
        for path in (self.path + "-wal", self.path, os.path.dirname(self.path)):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def damage(self) -> str | None:
        """What SQLite finds wrong with the file."""
        try:
            found = self._connection().execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.Error as error:
            return str(error)
        return None if found == "ok" else str(found)

    def close(self) -> None:
        """Close every connection; the next use opens them anew."""
        with self._mutex:
            connections, self._all = self._all, []
            self._local = threading.local()
        if self._pid == os.getpid():
            for connection in connections:
                connection.close()
