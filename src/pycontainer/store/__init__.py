"""The store on disk: images and their content, shared by any number of threads and processes.

::

    lock              byte locks, see pycontainer.store.locks
    state.db          the records (SQLite)
    oci-layout        } the root is an OCI image layout:
    index.json        } skopeo, umoci and podman read it as it is
    blobs/sha256/     }
    downloads/        what interrupted pulls left, for a week
    layers/sha256/    layers by diff ID: an index of the plain tar, which is a blob too, or a directory
    tmp/              unfinished work, one directory per operation, each with a lock for as long as its owner lives

A change becomes visible by one rename or one transaction. Whatever a killed process leaves is unreferenced, and the
next :meth:`Store.open` deletes it.
"""

from __future__ import annotations

import errno
import os
import warnings
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import attrs

from pycontainer.errors import Conflict, NotFound, StoreError
from pycontainer.oci.image import REF_NAME, Descriptor, Index
from pycontainer.store import downloads
from pycontainer.store.blobs import Blobs
from pycontainer.store.db import Database
from pycontainer.store.locks import CONTENT, INDEX, OPEN, FileLocks, Held, key
from pycontainer.store.rows import ContainerRow, Content, ImageRow, LayerRow
from pycontainer.store.shown import Shown
from pycontainer.store.snapshots import Snapshots, remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pycontainer.lowers import Lower

__all__ = ["Blobs", "ContainerRow", "Content", "ImageRow", "LayerRow", "Snapshots", "Store"]

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_CONTAINERD_NAME = "io.containerd.image.name"
_DIRECTORIES = ("tmp", "blobs/sha256", "layers/sha256")


class Store:
    """One store, open. Thread-safe; a forked child may go on with it, and has none of its parent's locks.

    Attributes:
        root: its directory.
        blobs: content by digest.
        snapshots: layers by diff ID.
        db: the records.
        indexed: whether new layers are kept as indexed tars; ``None`` as long as nobody has tried what can be mounted.
    """

    def __init__(self, root: Path, locks: FileLocks, database: Database) -> None:
        self.root = root
        self.db = database
        self.blobs = Blobs(root / "blobs")
        self.snapshots = Snapshots(root / "layers", locks)
        self._locks = locks
        self.indexed: bool | None = None
        self._shown = Shown(database, self.blobs, self.snapshots, locks)
        self._closed = False
        _OPEN.add(self)

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def open(cls, root: str | Path) -> Store:
        """Open a store, making it when the directory is missing or empty, and repair what killed processes left.

        Args:
            root: the directory.

        Raises:
            StoreError: it belongs to something else, is of a newer version, is damaged, or cannot be written.
        """
        root = Path(root).absolute()
        _check_root(root)
        locks = FileLocks(root / "lock")
        try:
            with locks.hold(OPEN):
                _make_layout(root)
                _check_records(root)
                database = Database(root / "state.db")
            store = cls(root, locks, database)
        except BaseException:
            locks.close()
            raise
        try:
            store._repair()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Let go of files and locks, images in use included; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        _OPEN.discard(self)
        self._shown.close()
        self.db.close()
        self._locks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"the store {self.root} was never closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def _after_fork(self) -> None:
        self._locks.after_fork()
        self.db.after_fork()
        self._shown.after_fork()

    # ── images in use ─────────────────────────────────────────────────────────────────────────────────────────────

    def acquire(self, identity: str) -> tuple[Lower, ...]:
        """Keep an image from being removed until :meth:`release`, and return its layers.

        Calls are counted; the image stays in use until each has its :meth:`release`, or this process ends.

        Args:
            identity: the id of the image, ``"sha256:…"``.

        Returns:
            The roots of its layers, the topmost first, as overlay's ``lowerdir`` wants them, until the release.

        Raises:
            NotFound: there is no such image.
            StoreError: a layer is damaged.
            Unsupported: this kernel cannot show a layer as the store has it.
        """
        self.keep(identity)
        try:
            return self._shown.get(identity)
        except BaseException:
            self._locks.unuse(identity)
            raise

    def keep(self, identity: str) -> None:
        """Keep an image from being removed until :meth:`release`, as :meth:`acquire` does, without showing its layers.

        Args:
            identity: the id of the image.

        Raises:
            NotFound: there is no such image.
        """
        first = self._locks.use(identity)
        # While another thread of ours has it, nobody can have removed it.
        if first and not self.db.exists(identity):
            self._locks.unuse(identity)
            msg = f"no image {identity} in the store {self.root}"
            raise NotFound(msg)

    def release(self, identity: str) -> None:
        """Give back one :meth:`acquire` or :meth:`keep`.

        Args:
            identity: what was acquired.

        Raises:
            ValueError: it is not acquired.
        """
        self._locks.unuse(identity)

    def is_in_use(self, identity: str) -> bool:
        """Tell whether any process uses an image just now."""
        held = self._locks.take_unused(identity)
        if held is not None:
            self._locks.release(held)
        return held is None

    # ── containers in use ─────────────────────────────────────────────────────────────────────────────────────────

    def take_container(self, part: str, identity: str, *, shared: bool = False, wait: bool = True) -> Held | None:
        """Take a lock on a container, held until :meth:`give_back` or until this process ends.

        Args:
            part: what of it: ``"life"`` to run, commit or remove it, ``"files"`` to read them, shared, or to remove
                them, ``"pause"`` to have it frozen.
            identity: its id.
            shared: together with other sharers.
            wait: until it is free.

        Returns:
            The lock, or ``None`` when it is not free.
        """
        return self._locks.take(key(f"container {part}", identity), shared=shared, wait=wait)

    def give_back(self, held: Held) -> None:
        """Let go of what :meth:`take_container` gave."""
        self._locks.release(held)

    # ── changes ───────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """Give a directory in the store for unfinished work; it goes at the end, or after a kill with the next open."""
        name = os.urandom(8).hex()
        with self._locks.hold(key("tmp", name)):
            path = self.root / "tmp" / name
            path.mkdir(mode=0o700)
            try:
                yield path
            finally:
                remove_tree(path)

    @contextmanager
    def adding(self) -> Iterator[Path]:
        """Give a workspace, and keep new blobs and layers from being collected until an image refers to them.

        When the block fails, what it published and no image needs is deleted.
        """
        try:
            with self._locks.hold(CONTENT, shared=True), self.workspace() as path:
                yield path
        except BaseException:
            self.db.note_free()
            raise
        finally:
            if self.db.meta("collect"):
                self.collect()

    def put_image(self, row: ImageRow, layers: Sequence[LayerRow], blobs: Iterable[str] = ()) -> None:
        """Make an image visible, everything it needs being there; within :meth:`adding`.

        Args:
            row: the image, with the names it gets; a name of another image moves over.
            layers: the lowest first.
            blobs: digests of further blobs to keep for it.
        """
        self.snapshots.sync()
        self.db.put_image(row, layers, blobs)
        self.write_index()

    def put_layers(self, identity: str, layers: Sequence[LayerRow], merged: str) -> None:
        """Record where the layers of an image are now, all being there; within :meth:`adding`."""
        self.snapshots.sync()
        self.db.put_layers(identity, layers, merged)

    def put_reference(self, name: str, identity: str) -> None:
        """Let a whole reference mean an image.

        Raises:
            NotFound: the image is gone.
        """
        if not self.db.put_reference(name, identity):
            msg = f"no image {identity} in the store {self.root}"
            raise NotFound(msg)
        self.write_index()

    def put_digests(self, identity: str, digests: Iterable[str], blobs: Iterable[str] = ()) -> None:
        """Record that an image was pulled or pushed as these; see :meth:`Database.put_digests`.

        Raises:
            NotFound: the image is gone.
        """
        if not self.db.put_digests(identity, digests, blobs):
            msg = f"no image {identity} in the store {self.root}"
            raise NotFound(msg)

    def remove_reference(self, name: str, identity: str, *, keep_last: bool) -> bool:
        """Take a name from an image; see :meth:`Database.remove_reference`."""
        removed = self.db.remove_reference(name, identity, keep_last=keep_last)
        if removed:
            self.write_index()
        return removed

    def remove_image(self, identity: str, names: Iterable[str] | None = None) -> None:
        """Delete an image, its names, and what no other image shares with it.

        Args:
            identity: the image.
            names: the only ones that it may have; any when not given.

        Raises:
            NotFound: there is no such image.
            Conflict: a container runs from it, or is made from it; or it has another name.
        """
        held = self._locks.take_unused(identity)
        if held is None:
            msg = f"the image {identity} is in use by a container; stop and remove that first"
            raise Conflict(msg)
        try:
            found = self.db.remove_image(identity, names)
        finally:
            self._locks.release(held)
        if not found:
            msg = f"no image {identity} in the store {self.root}"
            raise NotFound(msg)
        self._shown.forget(identity)
        self.write_index()
        self.collect()

    def collect(self) -> bool:
        """Delete blobs and layers that no image refers to.

        Returns:
            False when content is being added just now; whoever adds it collects at the end.
        """
        with self.workspace() as trash:
            held = self._locks.take(CONTENT, wait=False)
            if held is None:
                return False
            try:
                noted = self.db.meta("collect")
                needed = self.db.content()
                for digest in self.blobs.list().keys() - needed.blobs - needed.tars:
                    self.blobs.remove(digest)
                # The slow part, deleting trees, comes after the lock, with the workspace.
                for diff_id in self.snapshots.list() - needed.snapshots:
                    self.snapshots.withdraw(diff_id, trash)
                if noted is not None:
                    self.db.drop_free(noted)  # now: who is interrupted before leaves the rest to the next open
            finally:
                self._locks.release(held)
        return True

    def write_index(self) -> None:
        """Bring ``index.json`` up to the records."""
        target, new = self.root / "index.json", self.root / "index.json.new"
        with self._locks.hold(INDEX):
            data = _index(self.db.images())
            try:
                if target.read_bytes() == data:
                    new.unlink(missing_ok=True)
                    return
            except FileNotFoundError:
                pass
            try:
                new.write_bytes(data)
                new.chmod(0o644)
                new.rename(target)
            except OSError as error:
                new.unlink(missing_ok=True)
                msg = (
                    f"cannot write {target}: {error.strerror}; the store itself is up to date, and its next change "
                    "writes the file again: free some space, or see why it cannot be written"
                )
                raise StoreError(msg) from error

    def index_is_current(self) -> bool:
        """Tell whether ``index.json`` lists what is recorded."""
        with self._locks.hold(INDEX):
            try:
                return (self.root / "index.json").read_bytes() == _index(self.db.images())
            except FileNotFoundError:
                return False

    def _repair(self) -> None:
        """Delete the workspaces of dead processes, and then what they published and did not finish."""
        dead = False
        for name in [entry.name for entry in (self.root / "tmp").iterdir()]:
            held = self._locks.take(key("tmp", name), wait=False)
            if held is None:
                continue
            try:
                dead = True
                remove_tree(self.root / "tmp" / name)
            finally:
                self._locks.release(held)
        if dead or self.db.meta("collect"):
            self.collect()
        downloads.remove(self.root, older_than=downloads.WEEK)
        self.write_index()


def _check_root(root: Path) -> None:
    """Make the directory; refuse one that is not ours."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = {entry.name for entry in root.iterdir()}
    except OSError as error:
        why = "it is a file" if error.errno in (errno.EEXIST, errno.ENOTDIR) else error.strerror
        msg = f"cannot open the store {root}: {why}; choose another root"
        raise StoreError(msg) from error
    if names and "lock" not in names:
        what = "an OCI image layout of another program: load it instead" if "oci-layout" in names else "not a store"
        msg = f"the directory {root} is not empty and {what}; choose a new or empty directory as the root"
        raise StoreError(msg)
    ours = {"lock", *(path.split("/")[0] for path in _DIRECTORIES)}
    if "lock" in names and "oci-layout" not in names and names - ours:
        msg = f"the directory {root} has files of another program; choose a new or empty directory as the root"
        raise StoreError(msg)


def _make_layout(root: Path) -> None:
    try:
        for name in _DIRECTORIES:
            (root / name).mkdir(parents=True, exist_ok=True)
        layout = root / "oci-layout"
        if not layout.exists():
            layout.write_bytes(_LAYOUT)
    except OSError as error:
        msg = f"cannot make the store: {error.filename}: {error.strerror}"
        raise StoreError(msg) from error


def _check_records(root: Path) -> None:
    """Refuse content without records: as that of no image, it would be deleted."""
    path = root / "state.db"
    if (not path.exists() or path.stat().st_size == 0) and next(root.glob("blobs/*/*"), None) is not None:
        msg = (
            f"the store {root} has content, and {path} has no records of it: put state.db back, or move the directory "
            "away and load it, which is an OCI image layout"
        )
        raise StoreError(msg)


def _index(rows: Sequence[ImageRow]) -> bytes:
    manifests: list[Descriptor] = []
    for row in rows:
        plain = Descriptor(media_type=row.media_type, digest=row.digest, size=row.manifest_size)
        manifests += [
            attrs.evolve(plain, annotations={REF_NAME: name, _CONTAINERD_NAME: name}) for name in row.references
        ] or [plain]
    return Index(manifests=tuple(manifests)).to_bytes()


_OPEN: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_OPEN):
        store._after_fork()  # noqa: SLF001 - one module


os.register_at_fork(after_in_child=_after_fork)
