"""The two forms in which a store keeps layers ready to be mounted: indexed tars, and directories.

Both take the stream of a blob once, and verify it; what they made becomes visible with :attr:`Taken.publish`, after the
blob. Both then look at the layers of an image together: what a directory is that an upper layer needs and does not
describe, the layers below say.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Protocol, cast

import attrs

from pycontainer.distribution import erofs, parents
from pycontainer.distribution.layer import AppliedLayer, LayerLimits, apply, verify
from pycontainer.errors import StoreError, Unsupported
from pycontainer.store import LayerRow
from pycontainer.store.snapshots import MERGED
from pycontainer.store.views import Views

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pycontainer.distribution.layer import Compression
    from pycontainer.distribution.sources import ByteStream
    from pycontainer.store import Store

__all__ = ["Form", "Taken", "choose_form"]

_MOST_LAYERS = 30  # of an image whose layers are mounted one by one

Write = Callable[[bytes], object]


@attrs.frozen
class Taken:
    """A layer that was read to its end and found to be what it should be.

    Attributes:
        row: its record.
        publish: makes it visible.
    """

    row: LayerRow
    publish: Callable[[], object] = lambda: None


class Form(Protocol):
    """How layers are kept."""

    def has(self, row: LayerRow) -> bool:
        """Tell whether a recorded layer is here in this form, so that this kernel can use it."""

    def take(
        self,
        blob: ByteStream | IO[bytes] | Path,
        copy_to: Write | None = None,
        *,
        diff_id: str | None = None,
        digest: str | None = None,
        compression: Compression = "auto",
    ) -> Taken:
        """Read a blob; the lock of the layer is held when the diff ID is given.

        Args:
            blob: its bytes.
            copy_to: gets them too.
            diff_id: digest of the plain tar that it should be.
            digest: that it should have.
            compression: of the blob; ``"none"`` says that the plain tar is the blob, so that no other copy is made.

        Raises:
            DigestMismatch: a digest is not the expected one.
            ImageError: it is damaged, hostile or beyond the limits.
        """

    def join(self, rows: Sequence[LayerRow]) -> tuple[list[LayerRow], str]:
        """Have layers that need it made anew for what is below them.

        Args:
            rows: the layers of an image, the lowest first, all here.

        Returns:
            The same with the snapshots to use, and the name of one for all of them, or ``""``.
        """


def choose_form(store: Store, workspace: Path, limits: LayerLimits) -> Form:
    """Return the form for what this kernel can mount from the store's file system; it is tried once.

    Args:
        store: where the layers will be.
        workspace: for unfinished ones.
        limits: what is too much for a layer.
    """
    if store.indexed is None:
        store.indexed = _can_mount(workspace)
    form = _Indexes if store.indexed else _Directories
    return form(store, workspace, limits)


def _can_mount(workspace: Path) -> bool:
    index, tar = workspace / "try.erofs", workspace / "try.tar"
    tar.write_bytes(bytes(1024))
    views = Views()
    try:
        erofs.index(tar, None, index, compression="none")
        views.open("try", index, [tar])
    except (StoreError, Unsupported, OSError):
        return False  # whatever the reason, directories work
    finally:
        views.close_all()
        index.unlink(missing_ok=True)
        tar.unlink()
    return True


def _file_name(kind: str, name: str) -> str:
    return f"{kind}-{name.replace(':', '-')}-{os.urandom(4).hex()}"  # a failed one may lie there


class _Layers:
    """What both forms share."""

    def __init__(self, store: Store, workspace: Path, limits: LayerLimits) -> None:
        self._store = store
        self._workspace = workspace
        self._limits = limits

    def _verify(
        self, blob: ByteStream | IO[bytes] | Path, copy_to: Write | None, diff_id: str, digest: str | None
    ) -> tuple[str, int]:
        """Verify the blob of a layer that is here from another one; return its digest and the bytes of the tar."""
        actual, _, size = verify(
            cast("IO[bytes] | Path", blob),
            expected_digest=digest,
            expected_diff_id=diff_id,
            limits=self._limits,
            copy_to=copy_to,
        )
        return actual, size

    def _restore(self: Form, row: LayerRow, store: Store) -> LayerRow:
        """Return a layer by itself, made again from its blob when it is here in another form, or for one image only."""
        row = attrs.evolve(row, snapshot=row.diff_id)
        if self.has(row):
            return row
        with store.snapshots.lock(row.diff_id):
            if self.has(row):
                return row
            taken = self.take(store.blobs.path(row.digest), diff_id=row.diff_id, digest=row.digest)
            taken.publish()
            return taken.row


class _Indexes(_Layers):
    """Plain tars, each with an erofs index; images of many layers get an index of their own."""

    def has(self, row: LayerRow) -> bool:
        snapshots = self._store.snapshots
        return snapshots.has_directory(row.snapshot) or (
            snapshots.has_index(row.snapshot) and row.diff_id in self._store.blobs
        )

    def take(
        self,
        blob: ByteStream | IO[bytes] | Path,
        copy_to: Write | None = None,
        *,
        diff_id: str | None = None,
        digest: str | None = None,
        compression: Compression = "auto",
    ) -> Taken:
        known = self._store.db.layer(diff_id) if diff_id else None
        if diff_id and known is not None and self.has(known):
            # From another blob. Of a layer that no image has yet the counts are not known: it is indexed again.
            return Taken(attrs.evolve(known, digest=self._verify(blob, copy_to, diff_id, digest)[0]))
        name = diff_id or "new"
        index = self._workspace / _file_name("index", name)
        tar = None
        if compression != "none" and not (diff_id and diff_id in self._store.blobs):
            tar = self._workspace / _file_name("tar", name)
        done = erofs.index(
            cast("IO[bytes] | Path", blob),
            tar,
            index,
            compression=compression,
            expected_digest=digest,
            expected_diff_id=diff_id,
            limits=self._limits,
            copy_to=copy_to,
        )
        row = LayerRow(done.diff_id, done.digest, done.bytes, implied=done.implied, hides_all=done.hides_all)
        return Taken(row, functools.partial(self._publish, tar, index, done.diff_id))

    def _publish(self, tar: Path | None, index: Path, diff_id: str) -> None:
        if tar is not None:
            self._store.blobs.publish(tar, diff_id)
        self._store.snapshots.publish_index(index, diff_id)

    def join(self, rows: Sequence[LayerRow]) -> tuple[list[LayerRow], str]:
        rows = [self._restore(row, self._store) for row in rows]
        if len(rows) <= _MOST_LAYERS and not any(row.implied for row in rows[1:]):
            return rows, ""
        name = parents.chain_ids([row.diff_id for row in rows])[-1] + MERGED
        snapshots = self._store.snapshots
        tars = [self._tar(row) for row in rows]
        with snapshots.lock(name):
            if not snapshots.has_index(name):
                index = self._workspace / _file_name("index", name)
                erofs.merge(tars, index, diff_ids=[row.diff_id for row in rows], limits=self._limits)
                snapshots.publish_index(index, name)
        return rows, name

    def _tar(self, row: LayerRow) -> Path:
        """Return the plain tar of a layer; one that is a directory has only its blob."""
        store = self._store
        with store.snapshots.lock(row.diff_id):
            if row.diff_id not in store.blobs:
                tar = self._workspace / _file_name("tar", row.diff_id)
                index = self._workspace / _file_name("index", row.diff_id)
                with store.blobs.open(row.digest) as blob:
                    erofs.index(
                        blob, tar, index, expected_digest=row.digest, expected_diff_id=row.diff_id, limits=self._limits
                    )
                index.unlink()
                store.blobs.publish(tar, row.diff_id)
        return store.blobs.path(row.diff_id)


class _Directories(_Layers):
    """Layers unpacked, each into a directory; see :mod:`~.parents` for those that depend on what is below."""

    def has(self, row: LayerRow) -> bool:
        return self._store.snapshots.has_directory(row.snapshot)

    def take(
        self,
        blob: ByteStream | IO[bytes] | Path,
        copy_to: Write | None = None,
        *,
        diff_id: str | None = None,
        digest: str | None = None,
        compression: Compression = "auto",
    ) -> Taken:
        snapshots = self._store.snapshots
        # From another blob, or just now by another process.
        if diff_id and snapshots.has_directory(diff_id):
            actual, size = self._verify(blob, copy_to, diff_id, digest)
            return Taken(self._row(diff_id, actual, size, snapshots.path(diff_id), snapshots.hides_all(diff_id)))
        staged, done = self._apply(blob, diff_id or "new", copy_to, diff_id, digest, compression)
        row = self._row(done.diff_id, done.digest, done.bytes, staged, done.hides_all)
        return Taken(row, functools.partial(snapshots.publish, staged, done.diff_id))

    @staticmethod
    def _row(diff_id: str, digest: str, size: int, tree: Path, hides_all: bool) -> LayerRow:  # noqa: FBT001
        return LayerRow(diff_id, digest, size, implied=len(parents.marked(tree)), hides_all=hides_all)

    def _apply(
        self,
        blob: ByteStream | IO[bytes] | Path,
        name: str,
        copy_to: Write | None,
        diff_id: str | None,
        digest: str | None,
        compression: Compression,
    ) -> tuple[Path, AppliedLayer]:
        """Unpack a blob into the workspace, marking directories that it does not describe."""
        staged = self._store.snapshots.stage(self._workspace, _file_name("tree", name))
        since = staged.stat().st_mtime_ns
        applied = apply(
            cast("IO[bytes] | Path", blob),
            staged,
            compression=compression,
            expected_digest=digest,
            expected_diff_id=diff_id,
            limits=self._limits,
            copy_to=copy_to,
        )
        if applied.implied:  # times alone do not tell: what was committed may be as young as the clock is coarse
            parents.mark(staged, since)
        if applied.hides_all:
            self._store.snapshots.hide_all(staged)
        return staged, applied

    def join(self, rows: Sequence[LayerRow]) -> tuple[list[LayerRow], str]:
        snapshots = self._store.snapshots
        done: list[LayerRow] = []
        rows = [self._restore(row, self._store) for row in rows]
        for row, chain_id in zip(rows, parents.chain_ids([row.diff_id for row in rows]), strict=True):
            snapshot = row.diff_id
            if done and parents.marked(snapshots.path(snapshot)):
                snapshot = chain_id
                with snapshots.lock(chain_id):
                    if not snapshots.has_directory(chain_id):
                        self._rebuild(row, chain_id, [below.snapshot for below in reversed(done)])
            done.append(attrs.evolve(row, snapshot=snapshot))
        return done, ""

    def _rebuild(self, row: LayerRow, chain_id: str, below: Sequence[str]) -> None:
        snapshots = self._store.snapshots
        blob = self._store.blobs.path(row.digest)
        staged = self._apply(blob, chain_id, None, row.diff_id, row.digest, "auto")[0]
        parents.complete(staged, [snapshots.path(snapshot) for snapshot in below])
        snapshots.publish(staged, chain_id)
        self._store.db.note_free()  # the one unpacked by itself, unless another image has it
