"""The records of a store, and those that an older version wrote."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from pycontainer.errors import Conflict, NotFound, StoreError
from pycontainer.store.db import Database
from pycontainer.store.rows import ContainerRow, Content, ImageRow, LayerRow
from pycontainer.store.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
MANIFEST = "sha256:" + "a" * 64
LAYERS = (
    LayerRow("sha256:d0", "sha256:b0", 10),
    LayerRow("sha256:d1", "sha256:b1", 20, "sha256:c1", 3, hides_all=True),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    database = Database(path)
    yield database
    database.close()


def image(identity: str = ONE, *, digest: str = MANIFEST, references: str = "", digests: str = "") -> ImageRow:
    return ImageRow(identity, digest, "manifest", 7, 1.5, "[]", references, "sha256:merged", digests)


def container(identity: str = "c" * 64, name: str = "db", image_id: str = ONE) -> ContainerRow:
    return ContainerRow(identity, name, image_id, 2.5, "{}")


# ── versions ──────────────────────────────────────────────────────────────────────────────────────────────────────

# The file as version 1 made it, before images had digests and containers were kept.
VERSION_1 = """
PRAGMA journal_mode = WAL;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID, STRICT;
CREATE TABLE images (
    id TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    media_type TEXT NOT NULL,
    manifest_size INTEGER NOT NULL,
    added REAL NOT NULL,
    mounts TEXT NOT NULL
) WITHOUT ROWID, STRICT;
CREATE INDEX images_by_digest ON images (digest);
CREATE TABLE image_layers (
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    diff_id TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    snapshot TEXT NOT NULL,
    PRIMARY KEY (image_id, position)
) WITHOUT ROWID, STRICT;
CREATE INDEX image_layers_by_diff_id ON image_layers (diff_id, digest);
CREATE TABLE refs (
    name TEXT PRIMARY KEY,
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE
) WITHOUT ROWID, STRICT;
CREATE INDEX refs_by_image ON refs (image_id, name);
INSERT INTO meta VALUES ('host', '{"id": "x"}');
INSERT INTO images VALUES ('sha256:old', 'sha256:m', 'type', 5, 3.5, '[]');
INSERT INTO image_layers VALUES ('sha256:old', 0, 'sha256:d0', 'sha256:b0', 10, 'sha256:d0');
INSERT INTO image_layers VALUES ('sha256:old', 1, 'sha256:d1', 'sha256:b1', 20, 'sha256:c1');
INSERT INTO refs VALUES ('docker.io/library/app:1', 'sha256:old');
INSERT INTO refs VALUES ('docker.io/library/app:2', 'sha256:old');
PRAGMA application_id = 1350132596;
PRAGMA user_version = 1;
"""


def tables(path: Path) -> set[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        columns = {
            (name, *column[1:]) for name in names for column in connection.execute(f"PRAGMA table_xinfo({name})")
        }
        indexes = connection.execute("SELECT name, tbl_name FROM sqlite_schema WHERE type = 'index'").fetchall()
        return columns | {tuple(row) for row in indexes}
    finally:
        connection.close()


def write_version_1(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1.replace("1350132596", str(0x50796374)))
    connection.close()


def test_a_store_of_version_1_is_taken_over_whole(path: Path, tmp_path: Path) -> None:
    write_version_1(path)
    database = Database(path)
    try:
        (row,) = database.images()
        names = ("docker.io/library/app:1", "docker.io/library/app:2")
        assert row == ImageRow("sha256:old", "sha256:m", "type", 5, 3.5, "[]", " ".join(names), "", "")
        assert database.layers("sha256:old") == (
            LayerRow("sha256:d0", "sha256:b0", 10, implied=-1),
            LayerRow("sha256:d1", "sha256:b1", 20, "sha256:c1", implied=-1),
        )
        assert database.meta("host") == '{"id": "x"}'
        assert database.put_digests("sha256:old", ["docker.io/library/app@sha256:m"])
        database.put_container(container(image_id="sha256:old"))
    finally:
        database.close()
    Database(tmp_path / "new.db").close()
    assert tables(path) == tables(tmp_path / "new.db")


def test_two_that_take_over_a_store_at_once(path: Path) -> None:
    write_version_1(path)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    seen: list[int] = []

    def open_it() -> None:
        database = Database(path)
        seen.append(len(database.images()))
        database.close()

    import threading

    threads = [threading.Thread(target=open_it) for _ in range(3)]
    for thread in threads:
        thread.start()
    blocker.execute("ROLLBACK")
    blocker.close()
    for thread in threads:
        thread.join()
    assert seen == [1, 1, 1]


def test_a_takeover_that_fails_leaves_version_1(path: Path) -> None:
    write_version_1(path)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE containers (mine TEXT)")
    connection.commit()
    with pytest.raises(StoreError, match="containers already exists"):
        Database(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert "merged" not in [row[1] for row in connection.execute("PRAGMA table_info(images)")]
    connection.close()


# ── images ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_image_comes_back_as_it_was_put(db: Database) -> None:
    row = image(references="b:1 a:1", digests=f"r/x@{MANIFEST} r/x@sha256:index q@sha256:unknown")
    db.put_image(row, LAYERS, ["sha256:index", "sha256:attestation"])
    known = db.by_id(ONE)
    assert known is not None
    assert known.references == ("a:1", "b:1")
    assert known.merged == "sha256:merged"
    assert known.digests == (f"r/x@{MANIFEST}", "r/x@sha256:index")  # of what is kept only
    assert db.layers(ONE) == LAYERS
    assert db.blobs(ONE) == ("sha256:attestation", "sha256:index")
    assert db.by_digest(MANIFEST) == db.by_digest("sha256:index") == [known]
    assert db.by_digest("sha256:attestation") == []
    assert db.layer("sha256:d1") == LayerRow("sha256:d1", "sha256:b1", 20, implied=3, hides_all=True)
    assert db.layer("sha256:d1", "sha256:other") is None
    assert db.repositories("sha256:d1") == [("r/x", "sha256:b1")]
    assert db.content() == Content(
        {ONE, MANIFEST, "sha256:b0", "sha256:b1", "sha256:index", "sha256:attestation"},
        {"sha256:d0", "sha256:c1", "sha256:merged"},
        {"sha256:d0", "sha256:d1"},
    )


def test_digests_gather_until_the_manifest_is_another(db: Database) -> None:
    assert not db.put_digests(ONE, [f"r@{MANIFEST}"])
    db.put_image(image(digests=f"r@{MANIFEST}"), LAYERS, ["sha256:x"])
    assert db.put_digests(ONE, [f"q@{MANIFEST}", "q:5/p@sha256:y"], ["sha256:y"])
    db.put_image(image(), LAYERS, ["sha256:z"])
    known = db.by_id(ONE)
    assert known is not None
    assert known.digests == (f"q@{MANIFEST}", "q:5/p@sha256:y", f"r@{MANIFEST}")
    assert db.blobs(ONE) == ("sha256:x", "sha256:y", "sha256:z")
    db.put_image(image(digest="sha256:other", digests="r@sha256:other"), LAYERS, ["sha256:z"])
    known = db.by_id(ONE)
    assert known is not None
    assert (known.digests, db.blobs(ONE)) == (("r@sha256:other",), ("sha256:z",))
    assert db.meta("collect") is not None


def test_a_removed_image_leaves_no_rows(db: Database, path: Path) -> None:
    db.put_image(image(references="a:1", digests=f"r@{MANIFEST}"), LAYERS, ["sha256:x"])
    assert db.remove_image(ONE)
    assert not db.remove_image(ONE)
    assert db.content() == Content(set(), set(), set())
    connection = sqlite3.connect(path)
    for table in ("images", "image_layers", "refs", "image_digests", "image_blobs"):
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608
    connection.close()


# ── containers ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_container_keeps_its_image(db: Database) -> None:
    with pytest.raises(NotFound, match="no image"):
        db.put_container(container())
    db.put_image(image(), LAYERS)
    db.put_container(container())
    db.put_container(container("e" * 64, "second"))
    with pytest.raises(Conflict, match=r"by the container db \(cccccccccccc, created\) and 1 more; remove that first"):
        db.remove_image(ONE)
    assert db.exists(ONE)
    assert db.remove_container("c" * 64)
    assert db.remove_container("e" * 64)
    assert not db.remove_container("e" * 64)
    assert db.remove_image(ONE)


def test_containers_by_id_name_prefix_and_image(db: Database) -> None:
    db.put_image(image(), LAYERS)
    db.put_image(image(TWO), LAYERS)
    first, second = container(), container("cd" + "0" * 62, "c" * 64, TWO)
    db.put_container(first)
    db.put_container(second)
    assert db.container("db") == first
    assert db.container("c" * 64) == first  # an id before a name
    assert db.container("none") is None
    assert db.containers() == [first, second]
    assert db.containers("cc") == [first]
    assert db.containers("c") == [first, second]
    assert db.containers(image_id=TWO) == [second]
    ended = ContainerRow("c" * 64, "db", ONE, 2.5, "{}", "exited", 3, 4.0, 5.5)
    db.put_container(ended)
    assert db.container("db") == ended


def test_names_of_containers_are_unique(db: Database) -> None:
    db.put_image(image(), LAYERS)
    db.put_container(container())
    with pytest.raises(Conflict, match="'db' is in use by the container cccccccccccc"):
        db.put_container(container("e" * 64))
    db.put_container(container("e" * 64, "other"))
    with pytest.raises(Conflict, match="'db' is in use"):
        db.rename_container("e" * 64, "db")
    assert db.rename_container("e" * 64, "other")
    assert db.rename_container("e" * 64, "third")
    assert db.container("other") is None
    assert not db.rename_container("f" * 64, "fourth")


class Interrupted:
    """A connection, and a Ctrl-C just when a transaction has begun."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, sql: str) -> None:
        self._connection.execute(sql)
        if sql.startswith("BEGIN"):
            raise KeyboardInterrupt


def test_an_interrupt_when_a_transaction_has_begun(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert db._writer is not None
    with monkeypatch.context() as patched:
        patched.setattr(db, "_writer", Interrupted(db._writer))
        with pytest.raises(KeyboardInterrupt):
            db.put_meta("one", "1")
    db.put_meta("two", "2")
    assert (db.meta("one"), db.meta("two")) == (None, "2")
