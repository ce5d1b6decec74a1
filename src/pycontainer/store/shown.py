"""The layers of images as overlay takes them: paths of directories, and views of indexes, kept for the next start."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from pycontainer.errors import StoreError
from pycontainer.lowers import Lower
from pycontainer.store.views import Views

if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontainer.store.blobs import Blobs
    from pycontainer.store.db import Database
    from pycontainer.store.locks import FileLocks
    from pycontainer.store.snapshots import Snapshots

__all__ = ["Shown"]

_KEPT = 200  # mounts, each a descriptor, unless the images in use have more


class _Image(NamedTuple):
    lowers: tuple[Lower, ...]
    views: tuple[str, ...]


class Shown:
    """What of a store is shown in this process; thread-safe.

    Args:
        db: the records.
        blobs: has the tars.
        snapshots: has the layers.
        locks: tell which images are in use.
    """

    def __init__(self, db: Database, blobs: Blobs, snapshots: Snapshots, locks: FileLocks) -> None:
        self._db = db
        self._blobs = blobs
        self._snapshots = snapshots
        self._locks = locks
        self._views = Views()
        self._images: dict[str, _Image] = {}  # the longest unused first
        self._seen = -1
        self._lock = threading.Lock()

    def get(self, identity: str) -> tuple[Lower, ...]:
        """Return the layers of an image that this process has in use, the topmost first."""
        with self._lock:
            self._look_around()
            image = self._images.pop(identity, None)
            if image is not None and not all(map(self._views.is_open, image.views)):
                self._close(image)
                image = None
            if image is None:
                image = self._open(identity)
            self._images[identity] = image
            if len(self._views) > _KEPT:
                self._trim()
            return image.lowers

    def forget(self, identity: str) -> None:
        """Unmount what only an image had that was removed."""
        with self._lock:
            image = self._images.pop(identity, None)
            if image is not None:
                self._close(image)

    def close(self) -> None:
        """Unmount all."""
        with self._lock:
            self._images.clear()
            self._views.close_all()

    def after_fork(self) -> None:
        """Go on in a forked child, in which no other thread is left."""
        self._lock = threading.Lock()

    def _open(self, identity: str) -> _Image:
        lowers: dict[str, Lower] = {}
        views: list[str] = []
        try:
            for name, tars in self._parts(identity):
                if not self._snapshots.has_index(name):
                    # Overlay refuses what comes twice. The topmost wins: it has all that the lower one shows.
                    path = self._directory(name)
                    lowers.setdefault(path, Lower(path))
                elif name not in views:
                    lower = self._views.open(name, self._snapshots.index(name), [self._blobs.path(tar) for tar in tars])
                    views.append(name)
                    lowers[lower] = lower
        except BaseException:
            self._close(_Image((), tuple(views)))
            raise
        return _Image(tuple(lowers.values()), tuple(views))

    def _directory(self, name: str) -> str:
        if not self._snapshots.has_directory(name):
            msg = f"the layer {name} is missing in the store; run pycontainer system check --repair"
            raise StoreError(msg)
        return str(self._snapshots.path(name))

    def _parts(self, identity: str) -> list[tuple[str, list[str]]]:
        """Return the snapshots of an image and the tars that each points into, the topmost first."""
        layers = self._db.layers(identity)
        row = self._db.by_id(identity)
        if row is not None and row.merged:
            return [(row.merged, [layer.diff_id for layer in layers])]
        parts: list[tuple[str, list[str]]] = []
        for layer in reversed(layers):
            parts.append((layer.snapshot, [layer.diff_id]))
            if layer.hides_all or self._snapshots.hides_all(layer.snapshot):
                break
        return parts

    def _close(self, image: _Image) -> None:
        for name in image.views:
            self._views.close(name)

    def _look_around(self) -> None:
        """After others changed the store, drop what they removed: a mount keeps a file's space as long as it is."""
        seen = self._db.changes()
        if seen != self._seen:
            self._seen = seen
            self._drop(lambda image: not image.views or not all(map(self._views.is_current, image.views)))

    def _trim(self) -> None:
        self._drop(lambda _image: len(self._views) > _KEPT)

    def _drop(self, unwanted: Callable[[_Image], bool]) -> None:
        for identity, image in list(self._images.items()):
            if unwanted(image) and not self._locks.is_used(identity):
                self._close(self._images.pop(identity))
