"""The records of a store: images with their layers, names and digests, and containers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs

from pycontainer.errors import Conflict, NotFound
from pycontainer.store.connections import Connections
from pycontainer.store.rows import ContainerRow, Content, ImageRow, LayerRow

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

__all__ = ["Database"]

_SELECT = """
SELECT i.id, i.digest, i.media_type, i.manifest_size, i.added, i.mounts,
       (SELECT group_concat(name, ' ') FROM (SELECT name FROM refs WHERE image_id = i.id ORDER BY name)), i.merged,
       (SELECT group_concat(repository || '@' || digest, ' ')
        FROM (SELECT repository, digest FROM image_digests WHERE image_id = i.id ORDER BY repository, digest))
FROM images i
"""
_BY_ID = _SELECT + "WHERE i.id = ?"
_BY_NAME = _SELECT + "WHERE i.id = (SELECT image_id FROM refs WHERE name = ?)"  # noqa: S608 - of constants
_BY_DIGEST = f"""{_SELECT}
WHERE i.id IN (SELECT id FROM images WHERE digest = ?1 UNION SELECT image_id FROM image_digests WHERE digest = ?1)
ORDER BY i.added DESC, i.id
"""  # noqa: S608 - of constants
_BY_PREFIX = _SELECT + "WHERE i.id >= ? AND i.id < ? LIMIT ?"
_ALL = _SELECT + "ORDER BY i.added DESC, i.id"
_LAYER = "diff_id, digest, size, snapshot, implied, hides_all"
_CONTAINER = "id, name, image_id, created, document, state, exit_code, started, finished"


class Database(Connections):
    """The records. Every method may be called from any thread.

    Args:
        path: the database file; made if missing.
    """

    # ── reads ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def by_id(self, identity: str) -> ImageRow | None:
        """Return the image of this id."""
        rows = self.query(_BY_ID, (identity,))
        return ImageRow(*rows[0]) if rows else None

    def by_name(self, name: str) -> ImageRow | None:
        """Return the image of this whole reference."""
        rows = self.query(_BY_NAME, (name,))
        return ImageRow(*rows[0]) if rows else None

    def by_digest(self, digest: str) -> list[ImageRow]:
        """Return the images whose manifest has this digest, or that came by an index with it."""
        return [ImageRow(*row) for row in self.query(_BY_DIGEST, (digest,))]

    def by_prefix(self, prefix: str, limit: int = 2) -> list[ImageRow]:
        """Return images whose id starts so, at most ``limit``."""
        return [ImageRow(*row) for row in self.query(_BY_PREFIX, (prefix, prefix + "g", limit))]

    def images(self) -> list[ImageRow]:
        """Return all images, the newest first."""
        return [ImageRow(*row) for row in self.query(_ALL)]

    def names(self) -> list[str]:
        """Return all references."""
        return [row[0] for row in self.query("SELECT name FROM refs ORDER BY name")]

    def layers(self, identity: str) -> tuple[LayerRow, ...]:
        """Return the layers of an image, the lowest first."""
        sql = f"SELECT {_LAYER} FROM image_layers WHERE image_id = ? ORDER BY position"  # noqa: S608 - of constants
        return tuple(LayerRow(*row) for row in self.query(sql, (identity,)))

    def blobs(self, identity: str) -> tuple[str, ...]:
        """Return the digests of further blobs that are kept for an image, see :meth:`put_image`."""
        sql = "SELECT digest FROM image_blobs WHERE image_id = ? ORDER BY digest"
        return tuple(row[0] for row in self.query(sql, (identity,)))

    def repositories(self, diff_id: str) -> list[tuple[str, str]]:
        """Return where blobs of a layer are known to be: repository and digest of the blob, for mounts between them."""
        sql = (
            "SELECT DISTINCT d.repository, l.digest FROM image_layers l JOIN image_digests d USING (image_id) "
            "WHERE l.diff_id = ? ORDER BY 1, 2"
        )
        return [(row[0], row[1]) for row in self.query(sql, (diff_id,))]

    def exists(self, identity: str) -> bool:
        """Tell whether an image is recorded."""
        return bool(self.query("SELECT 1 FROM images WHERE id = ?", (identity,)))

    def layer(self, diff_id: str, digest: str | None = None) -> LayerRow | None:
        """Return a layer that some image has, unpacked by itself: of this diff ID and, if given, this blob."""
        sql = f"SELECT {_LAYER} FROM image_layers WHERE diff_id = ?1 AND ?2 IN (digest, '') LIMIT 1"  # noqa: S608
        rows = self.query(sql, (diff_id, digest or ""))
        return attrs.evolve(LayerRow(*rows[0]), snapshot=diff_id) if rows else None

    def shared_size(self, identity: str) -> int:
        """Return how many bytes of an image's layers, unpacked, other images have too."""
        sql = (
            "SELECT coalesce(sum(size), 0) FROM (SELECT diff_id, max(size) AS size FROM image_layers AS own "
            "WHERE image_id = ?1 AND EXISTS "
            "(SELECT 1 FROM image_layers AS other WHERE other.diff_id = own.diff_id AND other.image_id != ?1) "
            "GROUP BY diff_id)"
        )
        return int(self.query(sql, (identity,))[0][0])

    def content(self) -> Content:
        """Return what all images need."""
        blobs = self.query(
            "SELECT id FROM images UNION SELECT digest FROM images UNION SELECT digest FROM image_blobs "
            "UNION SELECT digest FROM image_layers"
        )
        snapshots = self.query("SELECT snapshot FROM image_layers UNION SELECT merged FROM images WHERE merged != ''")
        tars = self.query("SELECT DISTINCT diff_id FROM image_layers")
        return Content(*({row[0] for row in rows} for rows in (blobs, snapshots, tars)))

    def changes(self) -> int:
        """Return a number that is another one after somebody else, or we ourselves, changed a record."""
        return int(self.query("PRAGMA data_version")[0][0])

    def damage(self) -> list[str]:
        """Return what SQLite finds wrong in the file, see the pragmas integrity_check and foreign_key_check."""
        found = [row[0] for row in self.query("PRAGMA integrity_check")]
        found = [text for text in found if text != "ok"]
        return found + [f"a row of {row[0]} refers to nothing" for row in self.query("PRAGMA foreign_key_check")]

    def meta(self, key: str) -> str | None:
        """Return a remembered value."""
        rows = self.query("SELECT value FROM meta WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    # ── changes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def put_image(self, row: ImageRow, layers: Iterable[LayerRow], blobs: Iterable[str] = ()) -> None:
        """Record an image with its layers, names and digests; a name that another image has moves over.

        Args:
            row: the image.
            layers: the lowest first.
            blobs: digests of further blobs to keep for it: an index, attestations, other platforms' manifests.
        """
        with self.transaction() as tx:
            former = tx.execute("SELECT digest, merged FROM images WHERE id = ?", (row.id,)).fetchone()
            if former is not None and former != (row.digest, row.merged):
                _note_free(tx)  # from another manifest or in another snapshot
                if former[0] != row.digest:
                    tx.execute("DELETE FROM image_blobs WHERE image_id = ?", (row.id,))
            tx.execute(
                "INSERT INTO images (id, digest, media_type, manifest_size, added, mounts, merged) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET digest = excluded.digest, "
                "media_type = excluded.media_type, manifest_size = excluded.manifest_size, mounts = excluded.mounts, "
                "merged = excluded.merged",
                (row.id, row.digest, row.media_type, row.manifest_size, row.added, row.mounts, row.merged),
            )
            _put_layers(tx, row.id, layers)
            for name in row.references:
                _put_reference(tx, name, row.id)
            _put_digests(tx, row.id, row.digests, blobs)

    def put_layers(self, identity: str, layers: Iterable[LayerRow], merged: str) -> bool:
        """Record where the layers of an image are now; return whether the image is there.

        Args:
            identity: the image.
            layers: the same layers, the lowest first.
            merged: the snapshot for all of them, or ``""``.
        """
        with self.transaction() as tx:
            if not tx.execute("UPDATE images SET merged = ? WHERE id = ?", (merged, identity)).rowcount:
                return False
            _put_layers(tx, identity, layers)
            _put_meta(tx, "collect", "1")  # of the former form something may be left
            return True

    def put_digests(self, identity: str, digests: Iterable[str], blobs: Iterable[str] = ()) -> bool:
        """Record that an image was pulled or pushed as these.

        Args:
            identity: the image.
            digests: ``repository@digest``, each of the manifest or of one of its further blobs; others are left out.
            blobs: digests of further blobs to keep for it.

        Returns:
            Whether the image is there.
        """
        with self.transaction() as tx:
            if not tx.execute("SELECT 1 FROM images WHERE id = ?", (identity,)).fetchone():
                return False
            _put_digests(tx, identity, digests, blobs)
            return True

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

    def remove_image(self, identity: str, names: Iterable[str] | None = None) -> bool:
        """Forget an image and its names; return whether it was there. Its content is for the next collection.

        Args:
            identity: the image.
            names: the only ones that it may have; any when not given.

        Raises:
            Conflict: a container is made from it, or it has another name.
        """
        with self.transaction() as tx:
            if names is not None:
                now = {row[0] for row in tx.execute("SELECT name FROM refs WHERE image_id = ?", (identity,))}
                others = ", ".join(sorted(now.difference(names)))
                if others:
                    msg = f"the image {identity} was just now given the name {others}; remove that too, or let it stay"
                    raise Conflict(msg)
            sql = "SELECT name, id, state FROM containers WHERE image_id = ? ORDER BY created"
            users = tx.execute(sql, (identity,)).fetchall()
            if users:
                name, container, state = users[0]
                more = f" and {len(users) - 1} more" if len(users) > 1 else ""
                msg = f"the image {identity} is in use by the container {name} ({container[:12]}, {state}){more}; "
                msg += "remove that first"
                raise Conflict(msg)
            _note_free(tx)
            return tx.execute("DELETE FROM images WHERE id = ?", (identity,)).rowcount > 0

    def put_meta(self, key: str, value: str | None) -> None:
        """Remember a value, or forget it."""
        with self.transaction() as tx:
            _put_meta(tx, key, value)

    def note_free(self) -> None:
        """Note that there may be content that no image needs."""
        with self.transaction() as tx:
            _note_free(tx)

    def drop_free(self, noted: str | None) -> None:
        """Drop that note, unless it is a newer one: it was ``noted``, as :meth:`meta` of ``"collect"`` told."""
        with self.transaction() as tx:
            tx.execute("DELETE FROM meta WHERE key = 'collect' AND value = ?", (noted,))

    # ── containers ────────────────────────────────────────────────────────────────────────────────────────────────

    def container(self, name: str) -> ContainerRow | None:
        """Return the container of this id or, if there is none, of this name."""
        sql = f"SELECT {_CONTAINER} FROM containers WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC"  # noqa: S608
        rows = self.query(sql, (name,))
        return ContainerRow(*rows[0]) if rows else None

    def containers(self, prefix: str = "", image_id: str | None = None) -> list[ContainerRow]:
        """Return containers, the newest first.

        Args:
            prefix: those whose id starts so.
            image_id: those of this image.
        """
        sql = (
            f"SELECT {_CONTAINER} FROM containers WHERE id >= ?1 AND id < ?2 AND ?3 IN (image_id, '') "  # noqa: S608
            "ORDER BY created DESC, id"
        )
        return [ContainerRow(*row) for row in self.query(sql, (prefix, prefix + "g", image_id or ""))]

    def put_container(self, row: ContainerRow) -> None:
        """Record a container, or what became of it.

        Raises:
            Conflict: another one has the name.
            NotFound: its image is gone.
        """
        with self.transaction() as tx:
            _check_name(tx, row.name, row.id)
            if not tx.execute("SELECT 1 FROM images WHERE id = ?", (row.image_id,)).fetchone():
                msg = f"no image {row.image_id} in the store {self._path.parent}"
                raise NotFound(msg)
            tx.execute(
                f"INSERT INTO containers ({_CONTAINER}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "  # noqa: S608
                "ON CONFLICT (id) DO UPDATE SET name = excluded.name, image_id = excluded.image_id, "
                "created = excluded.created, document = excluded.document, state = excluded.state, "
                "exit_code = excluded.exit_code, started = excluded.started, finished = excluded.finished",
                attrs.astuple(row),
            )

    def rename_container(self, identity: str, name: str) -> bool:
        """Give a container another name; return whether it is there.

        Raises:
            Conflict: another one has the name.
        """
        with self.transaction() as tx:
            _check_name(tx, name, identity)
            return tx.execute("UPDATE containers SET name = ? WHERE id = ?", (name, identity)).rowcount > 0

    def remove_container(self, identity: str) -> bool:
        """Forget a container; return whether it was there."""
        with self.transaction() as tx:
            return tx.execute("DELETE FROM containers WHERE id = ?", (identity,)).rowcount > 0


def _put_layers(tx: sqlite3.Connection, identity: str, layers: Iterable[LayerRow]) -> None:
    tx.execute("DELETE FROM image_layers WHERE image_id = ?", (identity,))
    tx.executemany(
        f"INSERT INTO image_layers (image_id, position, {_LAYER}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        [(identity, number, *attrs.astuple(layer)) for number, layer in enumerate(layers)],
    )


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


def _note_free(tx: sqlite3.Connection) -> None:
    _put_meta(tx, "collect", os.urandom(8).hex())  # no two notes are the same, see drop_free


def _put_digests(tx: sqlite3.Connection, identity: str, digests: Iterable[str], blobs: Iterable[str]) -> None:
    """Add to what an image is known as and what is kept for it; each digest is of something that is kept."""
    tx.executemany("INSERT OR IGNORE INTO image_blobs VALUES (?, ?)", [(identity, digest) for digest in blobs])
    split = [whole.rpartition("@") for whole in digests]
    tx.executemany(
        "INSERT OR IGNORE INTO image_digests VALUES (?, ?, ?)",
        [(identity, repository, digest) for repository, _, digest in split],
    )
    tx.execute(
        "DELETE FROM image_digests WHERE image_id = ?1 AND digest NOT IN "
        "(SELECT digest FROM image_blobs WHERE image_id = ?1 UNION SELECT digest FROM images WHERE id = ?1)",
        (identity,),
    )


def _check_name(tx: sqlite3.Connection, name: str, identity: str) -> None:
    other = tx.execute("SELECT id FROM containers WHERE name = ? AND id != ?", (name, identity)).fetchone()
    if other is not None:
        msg = f"the name {name!r} is in use by the container {other[0][:12]}; remove or rename that, or choose another"
        raise Conflict(msg)
