"""The tables of a store's database, and how those of an older version become those of this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycontainer.errors import StoreError

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

__all__ = ["SCHEMA_VERSION", "prepare"]

_APPLICATION_ID = 0x50796374  # "Pyct", in the header of the file: see the pragma application_id

# One step for each version, in order: a new store takes all of them, an older one those that it lacks.
_STEPS = (
    """
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
""",
    """
ALTER TABLE images ADD COLUMN merged TEXT NOT NULL DEFAULT '';  -- snapshot that shows all its layers at once, or ''
ALTER TABLE image_layers ADD COLUMN implied INTEGER NOT NULL DEFAULT -1;  -- directories not described, -1: unknown
ALTER TABLE image_layers ADD COLUMN hides_all INTEGER NOT NULL DEFAULT 0;  -- nothing below it is seen
CREATE TABLE image_digests (
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    repository TEXT NOT NULL,           -- registry/path, as it was pulled, pushed or loaded
    digest TEXT NOT NULL,               -- of the manifest, or of the index that led to it
    PRIMARY KEY (image_id, repository, digest)
) WITHOUT ROWID, STRICT;
CREATE INDEX image_digests_by_digest ON image_digests (digest);
CREATE TABLE image_blobs (
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    digest TEXT NOT NULL,               -- kept byte for byte: an index, an attestation, a manifest for another platform
    PRIMARY KEY (image_id, digest)
) WITHOUT ROWID, STRICT;
CREATE TABLE containers (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    image_id TEXT NOT NULL REFERENCES images (id),
    created REAL NOT NULL,              -- seconds since the epoch
    document TEXT NOT NULL,             -- JSON: what it is to run, and how
    state TEXT NOT NULL,                -- created, running, exited
    exit_code INTEGER,                  -- of the last run, where it is known
    started REAL,
    finished REAL
) WITHOUT ROWID, STRICT;
CREATE INDEX containers_by_image ON containers (image_id);
""",
)
SCHEMA_VERSION = len(_STEPS)


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a database to this version: an empty one, or an older one.

    Raises:
        StoreError: it is of another program, or of a newer version.
    """
    application, version = _versions(connection)
    if application == _APPLICATION_ID and version == SCHEMA_VERSION:
        return
    if (application, version) == (0, 0):
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        _upgrade(connection, path)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk ends it by itself
            connection.execute("ROLLBACK")
        raise


def _upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """Take the steps that are missing, in one transaction; another process may have done it just before."""
    application, version = _versions(connection)
    if application != _APPLICATION_ID and (application, version) != (0, 0):
        msg = f"{path} is the database of another program; choose another root for the store"
        raise StoreError(msg)
    if version > SCHEMA_VERSION:
        msg = (
            f"the store {path.parent} is of version {version}, this pycontainer knows versions up to "
            f"{SCHEMA_VERSION}; use a newer pycontainer, or another root"
        )
        raise StoreError(msg)
    for step in _STEPS[version:]:
        for statement in _statements(step):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _statements(step: str) -> list[str]:
    # By lines: a comment may hold anything but ends with its line.
    bare = "\n".join(line.partition("--")[0].rstrip() for line in step.splitlines())
    return [statement for statement in bare.split(";\n") if statement.strip()]


def _versions(connection: sqlite3.Connection) -> tuple[int, int]:
    return (
        connection.execute("PRAGMA application_id").fetchone()[0],
        connection.execute("PRAGMA user_version").fetchone()[0],
    )
