"""A SQLite database in WAL mode through two connections, one for reads and one for transactions."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pycontainer.errors import StoreError
from pycontainer.store.schema import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Connections"]

_BUSY_SECONDS = 30.0
_ABANDONED: list[sqlite3.Connection] = []  # kept for ever, so that no destructor closes them


class Connections:
    """A database that any thread may use, and a forked child go on with.

    Args:
        path: the database file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_lock = threading.Lock()
        self._write_lock = threading.RLock()
        self._inherited: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        with self._errors():
            self._connect()

    def _connect(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        writer = self._new_connection()
        try:
            prepare(writer, self._path)
            reader = self._new_connection()
        except BaseException:
            writer.close()
            raise
        self._writer, self._reader = writer, reader
        return reader, writer

    def _new_connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
        try:
            # In WAL mode FULL syncs the log at each commit: what was acknowledged survives a power cut too.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            hints = {
                "SQLITE_BUSY": "another process holds it for long",
                "SQLITE_CORRUPT": "it is damaged; move the store away and load the images again",
                "SQLITE_NOTADB": "it is no SQLite database; choose another root",
                "SQLITE_FULL": "the disk is full; free some space",
                "SQLITE_READONLY": "it is read-only; choose a root on a writable file system",
                "SQLITE_CANTOPEN": "is it on a read-only file system?",
            }
            hint = next((text for prefix, text in hints.items() if name.startswith(prefix)), "")
            msg = f"the store's database {self._path}: {error}" + (f" ({hint})" if hint else "")
            raise StoreError(msg) from error

    def query(self, sql: str, parameters: tuple[object, ...] = ()) -> list[Any]:
        """Return the rows of a SELECT."""
        with self._errors(), self._read_lock:
            reader = self._reader or self._reopen()[0]
            return reader.execute(sql, parameters).fetchall()

    def _reopen(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        """Connect after a fork; another thread may have done it just before."""
        if self._reader is not None and self._writer is not None:
            return self._reader, self._writer
        if not self._inherited:
            msg = f"the store of {self._path.parent} is closed"
            raise StoreError(msg)
        return self._connect()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run statements as one change: all of it is kept, or, after an exception, nothing."""
        with self._write_lock, self._errors():
            writer = self._writer
            if writer is None:
                with self._read_lock:
                    writer = self._reopen()[1]
            try:
                writer.execute("BEGIN IMMEDIATE")  # an interrupt comes at once when it has begun
                yield writer
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        with self._write_lock, self._read_lock:
            connections = [self._reader, self._writer]
            self._reader = self._writer = None
            self._inherited.clear()
        for connection in connections:
            if connection is not None:
                connection.close()

    def after_fork(self) -> None:
        """Put the parent's connections aside in a forked child; new ones are made when needed.

        They are neither used nor closed here: either would damage the parent's, see "How To Corrupt An SQLite
        Database File", section 2.6.
        """
        self._read_lock = threading.Lock()
        self._write_lock = threading.RLock()
        for connection in (self._reader, self._writer):
            if connection is not None:
                self._inherited.append(connection)
                _ABANDONED.append(connection)
        self._reader = self._writer = None
