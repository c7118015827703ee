"""The store's records: one SQLite file in WAL mode, shared by threads and processes.

A record is written after the content that it describes is on the disk.  A durable transaction returns when
the record is on the disk too.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from pycontain._state.locks import holder_of
from pycontain.errors import ImageError, StateError

_VERSION = 2
_PATIENCE = 30.0
_WRITE_LOCK = 120
"""The byte of the -shm file that a writer locks (sqlite.org/walformat.html, 2.3.1)."""
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
_ADDED = {
    2: """
CREATE TABLE snapshot (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, created REAL NOT NULL, base TEXT NOT NULL, sealed TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE volume (
    name TEXT PRIMARY KEY, size INTEGER, created REAL NOT NULL, labels TEXT NOT NULL, owner TEXT NOT NULL
) WITHOUT ROWID;
"""
}
"""Statements that bring the schema of the version before to this one."""


_left_behind: list[sqlite3.Connection] = []
"""Connections that a fork has copied, never closed: SQLite's close would change the parent's files."""


class Database:
    """A pool of connections of this process, one for each thread that uses the database at the same time.

    Errors of SQLite are raised as ImageError.

    Args:
        path: The file, created on first use.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._used: list[sqlite3.Connection] = []
        self._closed = False
        self._mutex = threading.Lock()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            if self._closed:
                raise StateError(f"the store {self.path} is closed")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._open()
        with self._mutex:
            self._used.append(connection)
        try:
            yield connection
        finally:
            with self._mutex:
                self._used.remove(connection)
                if not self._closed and not connection.in_transaction:
                    self._idle.append(connection)
                    connection = None
            if connection is not None:
                connection.close()

    def _open(self) -> sqlite3.Connection:
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
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
            return
        with _transaction(connection):
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                _run(connection, _SCHEMA)
                version = 1
            if version <= _VERSION:
                for number in range(version + 1, _VERSION + 1):
                    _run(connection, _ADDED[number])
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            else:
                raise ImageError(
                    f"the store {self.path} must have version {_VERSION} or lower, got {version}",
                    hint="upgrade pycontain, or set PYCONTAIN_ROOT to another directory",
                )

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise self._unusable(error) from error
            raise ImageError(
                f"the store's records {self.path} have been locked by"
                f" {holder_of(self.path + '-shm', _WRITE_LOCK)} for {_PATIENCE:g} seconds",
                hint="end that process, or wait for it and try again",
            ) from error
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.Error) -> ImageError:
        return ImageError(
            f"the store's records {self.path} cannot be used: {error}",
            hint="find the damage with `Engine().fsck()` and repair it with `fsck(repair=True)`",
        )

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT.

        Raises:
            ImageError: The database cannot be read.
            StateError: It is closed.
        """
        with self._translate_errors(), self._connection() as connection:
            return connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def writing(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Yield a connection in an exclusive write transaction, which is rolled back if the block raises.

        Args:
            durable: Whether the changes are on the disk when the block ends.

        Raises:
            ImageError: The database cannot be written.
            StateError: It is closed.
        """
        with self._translate_errors(), self._connection() as connection:
            if not durable:
                with _transaction(connection):
                    yield connection
                return
            # With NORMAL the kernel writes the log when it likes; checksums of its frames detect a torn one.
            connection.execute("PRAGMA synchronous = FULL")
            try:
                with _transaction(connection):
                    yield connection
            finally:
                connection.execute("PRAGMA synchronous = NORMAL")
        self._sync_directory()

    def _sync_directory(self) -> None:
        """Bring the names of database and log to the disk.

        The files themselves must not be opened here: closing a descriptor would drop SQLite's locks, and
        another process would then remove the log as if it were the last user (sqlite.org/howtocorrupt.html,
        2.2).
        """
        fd = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def damage(self) -> str | None:
        """Return the damage that SQLite finds in the file, or None.

        Raises:
            ImageError: The file cannot be read.
        """
        with self._translate_errors():
            try:
                with self._connection() as connection:
                    found = connection.execute("PRAGMA quick_check").fetchone()[0]
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                return str(error)
        return None if found == "ok" else str(found)

    def put_aside(self) -> str:
        """Rename the file, so that the next connection makes an empty one; return the new path."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        aside = f"{self.path}.damaged-{os.urandom(4).hex()}"
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + suffix)
        os.rename(self.path, aside)
        return aside

    def close(self) -> None:
        """Close every connection, those in use when they are given back.  Later calls raise StateError."""
        with self._mutex:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def forget(self) -> None:
        """Keep the connections open but unused in a forked child: they are the parent's."""
        self._closed = True
        _left_behind.extend((*self._idle, *self._used))


def _run(connection: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";\n"):
        connection.execute(statement)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run a transaction: commit at the end of the block, roll back after an exception.

    BEGIN is inside the `try`, because an interrupt may come right after it has succeeded.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
