"""The records of a store: SQLite in WAL mode, two connections, one for reads and one for transactions."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from pycontainer.errors import StoreError
from pycontainer.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["SCHEMA_VERSION", "Database", "ImageRow", "LayerRow"]

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x50796374  # "Pyct", in the header of the file: see the pragma application_id
_BUSY_SECONDS = 30.0

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID, STRICT;
CREATE TABLE images (
    id TEXT PRIMARY KEY,                -- digest of the config
    digest TEXT NOT NULL,               -- digest of the manifest
    media_type TEXT NOT NULL,
    manifest_size INTEGER NOT NULL,
    added REAL NOT NULL,                -- seconds since the epoch
    mounts TEXT NOT NULL                -- JSON: what is bound into every container of it
) WITHOUT ROWID, STRICT;
CREATE INDEX images_by_digest ON images (digest);
CREATE TABLE image_layers (
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,          -- 0 is the lowest
    diff_id TEXT NOT NULL,
    digest TEXT NOT NULL,               -- of the blob
    size INTEGER NOT NULL,              -- bytes of content, unpacked
    snapshot TEXT NOT NULL,             -- directory it is unpacked in: the diff ID, or a chain ID
    PRIMARY KEY (image_id, position)
) WITHOUT ROWID, STRICT;
CREATE INDEX image_layers_by_diff_id ON image_layers (diff_id, digest);
CREATE TABLE refs (
    name TEXT PRIMARY KEY,              -- a whole reference: registry/repository:tag
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE
) WITHOUT ROWID, STRICT;
CREATE INDEX refs_by_image ON refs (image_id, name);
"""

_SELECT = """
SELECT i.id, i.digest, i.media_type, i.manifest_size, i.added, i.mounts,
       (SELECT group_concat(name, ' ') FROM (SELECT name FROM refs WHERE image_id = i.id ORDER BY name))
FROM images i
"""
_BY_ID = _SELECT + "WHERE i.id = ?"
_BY_NAME = _SELECT + "WHERE i.id = (SELECT image_id FROM refs WHERE name = ?)"  # noqa: S608 - of constants
_BY_DIGEST = _SELECT + "WHERE i.digest = ?"
_BY_PREFIX = _SELECT + "WHERE i.id >= ? AND i.id < ? LIMIT ?"
_ALL = _SELECT + "ORDER BY i.added DESC, i.id"


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(text.split()) if text else ()


@attrs.frozen(eq=False, repr=False)
class ImageRow(Record):
    """One image, as recorded.

    Attributes:
        id: digest of its config.
        digest: digest of its manifest.
        media_type: of the manifest.
        manifest_size: bytes.
        added: when, in seconds since the epoch.
        mounts: JSON text.
        references: its names, whole, in order.
    """

    id: str
    digest: str
    media_type: str
    manifest_size: int
    added: float
    mounts: str
    references: tuple[str, ...] = attrs.field(converter=_split)


@attrs.frozen(eq=False, repr=False)
class LayerRow(Record):
    """One layer of an image.

    Attributes:
        diff_id: digest of the plain tar stream.
        digest: digest of the blob.
        size: bytes, unpacked.
        snapshot: the directory that it is unpacked in: the diff ID, or, where the layers below matter, a chain ID.
    """

    diff_id: str
    digest: str
    size: int
    snapshot: str = attrs.field(default=attrs.Factory(lambda self: self.diff_id, takes_self=True))


class Database:
    """The records. Every method may be called from any thread.

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
            _prepare(writer, self._path)
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
                "SQLITE_FULL": "the disk is full",
                "SQLITE_READONLY": "it is read-only; choose a root on a writable file system",
                "SQLITE_CANTOPEN": "is it on a read-only file system?",
            }
            hint = next((text for prefix, text in hints.items() if name.startswith(prefix)), "")
            msg = f"the store's database {self._path}: {error}" + (f" ({hint})" if hint else "")
            raise StoreError(msg) from error

    def _query(self, sql: str, parameters: tuple[object, ...] = ()) -> list[Any]:
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
            writer.execute("BEGIN IMMEDIATE")
            try:
                yield writer
            except BaseException:
                writer.execute("ROLLBACK")
                raise
            try:
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise

    # ── reads ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def by_id(self, identity: str) -> ImageRow | None:
        """Return the image of this id."""
        rows = self._query(_BY_ID, (identity,))
        return ImageRow(*rows[0]) if rows else None

    def by_name(self, name: str) -> ImageRow | None:
        """Return the image of this whole reference."""
        rows = self._query(_BY_NAME, (name,))
        return ImageRow(*rows[0]) if rows else None

    def by_digest(self, digest: str) -> list[ImageRow]:
        """Return the images whose manifest has this digest."""
        return [ImageRow(*row) for row in self._query(_BY_DIGEST, (digest,))]

    def by_prefix(self, prefix: str, limit: int = 2) -> list[ImageRow]:
        """Return images whose id starts so, at most ``limit``."""
        return [ImageRow(*row) for row in self._query(_BY_PREFIX, (prefix, prefix + "g", limit))]

    def images(self) -> list[ImageRow]:
        """Return all images, the newest first."""
        return [ImageRow(*row) for row in self._query(_ALL)]

    def names(self) -> list[str]:
        """Return all references."""
        return [row[0] for row in self._query("SELECT name FROM refs ORDER BY name")]

    def layers(self, identity: str) -> tuple[LayerRow, ...]:
        """Return the layers of an image, the lowest first."""
        sql = "SELECT diff_id, digest, size, snapshot FROM image_layers WHERE image_id = ? ORDER BY position"
        return tuple(LayerRow(*row) for row in self._query(sql, (identity,)))

    def exists(self, identity: str) -> bool:
        """Tell whether an image is recorded."""
        return bool(self._query("SELECT 1 FROM images WHERE id = ?", (identity,)))

    def layer(self, diff_id: str, digest: str | None = None) -> LayerRow | None:
        """Return a layer that some image has: of this diff ID and, if given, from the blob of this digest."""
        sql = "SELECT diff_id, digest, size FROM image_layers WHERE diff_id = ?1 AND ?2 IN (digest, '') LIMIT 1"
        rows = self._query(sql, (diff_id, digest or ""))
        return LayerRow(*rows[0]) if rows else None

    def content(self) -> tuple[set[str], set[str]]:
        """Return the digests of all blobs and the snapshots of all layers that belong to an image."""
        blobs = {row[0] for row in self._query("SELECT id FROM images UNION SELECT digest FROM images")}
        layers = self._query("SELECT snapshot, digest FROM image_layers")
        return blobs | {row[1] for row in layers}, {row[0] for row in layers}

    def meta(self, key: str) -> str | None:
        """Return a remembered value."""
        rows = self._query("SELECT value FROM meta WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    # ── changes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def put_image(self, row: ImageRow, layers: Iterable[LayerRow]) -> None:
        """Record an image with its layers and names; a name that another image has moves over."""
        with self.transaction() as tx:
            former = tx.execute("SELECT digest FROM images WHERE id = ?", (row.id,)).fetchone()
            if former is not None and former[0] != row.digest:
                _put_meta(tx, "collect", "1")  # the same image from another manifest: blobs may be free now
            tx.execute(
                "INSERT INTO images (id, digest, media_type, manifest_size, added, mounts) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET digest = excluded.digest, media_type = excluded.media_type, "
                "manifest_size = excluded.manifest_size, mounts = excluded.mounts",
                (row.id, row.digest, row.media_type, row.manifest_size, row.added, row.mounts),
            )
            tx.execute("DELETE FROM image_layers WHERE image_id = ?", (row.id,))
            tx.executemany(
                "INSERT INTO image_layers (image_id, position, diff_id, digest, size, snapshot) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [(row.id, number, *attrs.astuple(layer)) for number, layer in enumerate(layers)],
            )
            for name in row.references:
                _put_reference(tx, name, row.id)

    def put_reference(self, name: str, identity: str) -> bool:
        """Let a name mean an image; return whether the image is there."""
        with self.transaction() as tx:
            if not tx.execute("SELECT 1 FROM images WHERE id = ?", (identity,)).fetchone():
                return False
            _put_reference(tx, name, identity)
            return True

    def remove_reference(self, name: str, identity: str, *, keep_last: bool) -> bool:
        """Take a name from an image.

        Args:
            name: the whole reference.
            identity: the image it should mean.
            keep_last: leave it when it is the only one.

        Returns:
            Whether it was taken away.
        """
        sql = "DELETE FROM refs WHERE name = ?1 AND image_id = ?2"
        if keep_last:
            sql += " AND (SELECT count(*) FROM refs WHERE image_id = ?2) > 1"
        with self.transaction() as tx:
            return tx.execute(sql, (name, identity)).rowcount > 0

    def remove_image(self, identity: str) -> bool:
        """Forget an image and its names; return whether it was there. Its content is for the next collection."""
        with self.transaction() as tx:
            _put_meta(tx, "collect", "1")
            return tx.execute("DELETE FROM images WHERE id = ?", (identity,)).rowcount > 0

    def put_meta(self, key: str, value: str | None) -> None:
        """Remember a value, or forget it."""
        with self.transaction() as tx:
            _put_meta(tx, key, value)

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────

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


_ABANDONED: list[sqlite3.Connection] = []  # kept for ever, so that no destructor closes them


def _put_reference(tx: sqlite3.Connection, name: str, identity: str) -> None:
    tx.execute(
        "INSERT INTO refs (name, image_id) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET image_id = excluded.image_id",
        (name, identity),
    )


def _put_meta(tx: sqlite3.Connection, key: str, value: str | None) -> None:
    if value is None:
        tx.execute("DELETE FROM meta WHERE key = ?", (key,))
    else:
        sql = "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        tx.execute(sql, (key, value))


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the schema in an empty database; check it in a used one."""
    application, version = _versions(connection)
    if (application, version) == (0, 0):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if _versions(connection) == (0, 0):
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        application, version = _versions(connection)
    if application != _APPLICATION_ID:
        msg = f"{path} is the database of another program; choose another root for the store"
        raise StoreError(msg)
    if version > SCHEMA_VERSION:
        msg = (
            f"the store {path.parent} is of version {version}, this pycontainer knows versions up to "
            f"{SCHEMA_VERSION}; use a newer pycontainer, or another root"
        )
        raise StoreError(msg)


def _versions(connection: sqlite3.Connection) -> tuple[int, int]:
    return (
        connection.execute("PRAGMA application_id").fetchone()[0],
        connection.execute("PRAGMA user_version").fetchone()[0],
    )
