"""Layers ready to be mounted, once for all images: by diff ID, or by chain ID where the layers below matter.

A layer is an erofs index, ``<hex>.erofs``, whose files have their content in the plain tar, a blob; or, where the
kernel does not mount these, a directory, ``<hex>``. A store may have both, even of one layer; then the index is used.
An index of all layers of an image, ``<hex>.merged.erofs``, is named by the chain ID of the topmost one.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pycontainer._ffi import lib
from pycontainer.errors import StoreError
from pycontainer.names import check_digest
from pycontainer.store.locks import FileLocks, key

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["MERGED", "Snapshots", "remove_tree"]

MERGED = ".merged"  # at the end of the name of an index of several layers
_INDEX = ".erofs"
_OPAQUE = "trusted.overlay.opaque"
_POLL = 0.02  # seconds between two looks at the lock of a layer that another process is bringing in


class Snapshots:
    """The layers of a store, as ``layers/<algorithm>/<hex>``.

    Args:
        directory: the ``layers`` directory.
        locks: the locks of the store.
    """

    def __init__(self, directory: Path, locks: FileLocks) -> None:
        self._directory = directory
        self._locks = locks

    def path(self, name: str) -> Path:
        """Return where the directory of a layer is, or would be."""
        check_digest(name.removesuffix(MERGED))
        algorithm, _, encoded = name.partition(":")
        return self._directory / algorithm / encoded

    def index(self, name: str) -> Path:
        """Return where the index of a layer, or of several, is or would be."""
        path = self.path(name)
        return path.with_name(path.name + _INDEX)

    def has_directory(self, name: str) -> bool:
        """Tell whether a layer is unpacked."""
        return self.path(name).is_dir()

    def has_index(self, name: str) -> bool:
        """Tell whether a layer is indexed."""
        return self.index(name).is_file()

    def __contains__(self, name: str) -> bool:
        return self.has_index(name) or self.has_directory(name)

    @contextmanager
    def lock(self, diff_id: str, cancelled: threading.Event | None = None) -> Iterator[bool]:
        """Hold the right to unpack a layer, so that it is never done twice at a time; others wait.

        Args:
            diff_id: the layer. A thread holds one at a time.
            cancelled: ends the waiting, which may be for another process's slow download.

        Yields:
            Whether it is held, which it is unless cancelled.
        """
        byte = key("layer", diff_id)
        held = self._locks.take(byte, wait=cancelled is None)
        while held is None and cancelled is not None and not cancelled.wait(_POLL):
            held = self._locks.take(byte, wait=False)
        try:
            yield held is not None
        finally:
            if held is not None:
                self._locks.release(held)

    def stage(self, workspace: Path, name: str) -> Path:
        """Return a new empty directory to unpack a layer into.

        Args:
            workspace: a directory of the caller's in the store.
            name: of the new directory there.
        """
        staged = workspace / name
        staged.mkdir(mode=0o755)
        staged.chmod(0o755)  # whatever the umask is
        return staged

    def publish(self, staged: Path, diff_id: str) -> bool:
        """Make a complete tree visible as a layer.

        Args:
            staged: what :meth:`stage` gave; it is gone afterwards.
            diff_id: what it was unpacked from.

        Returns:
            Whether it is new; when the layer was there, the tree is deleted.
        """
        target = self.path(diff_id)
        target.parent.mkdir(exist_ok=True)
        try:
            staged.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                msg = f"cannot keep the layer {diff_id}: rename {staged} to {target}: {error.strerror}"
                raise StoreError(msg) from error
            remove_tree(staged)
            return False
        return True

    def publish_index(self, staged: Path, name: str) -> None:
        """Make a complete index visible, what it points into being there.

        Args:
            staged: the file; it is gone afterwards.
            name: of the layer, or of all those that it shows.
        """
        target = self.index(name)
        target.parent.mkdir(exist_ok=True)
        staged.chmod(0o600)
        staged.rename(target)

    def hide_all(self, staged: Path) -> None:
        """Note that a layer hides everything below it, which overlay does not read from the root of a lower."""
        os.setxattr(staged, _OPAQUE, b"y")

    def hides_all(self, diff_id: str) -> bool:
        """Tell whether a layer hides everything below it."""
        try:
            return os.getxattr(self.path(diff_id), _OPAQUE) == b"y"
        except OSError:
            return False  # no such attribute

    def sync(self) -> None:
        """Have everything of the store's file system written to disk, see syncfs(2)."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            number = -lib.pyc_sync_all(fd)
            if number:
                msg = f"cannot write the store to disk: syncfs {self._directory}: {os.strerror(number)}"
                raise StoreError(msg)
        finally:
            os.close(fd)

    def list(self) -> set[str]:
        """Return the names of all layers."""
        found: set[str] = set()
        for algorithm in os.scandir(self._directory):
            if algorithm.is_dir(follow_symlinks=False):
                names = os.listdir(algorithm)  # noqa: PTH208 - only names are wanted
                found.update(f"{algorithm.name}:{name.removesuffix(_INDEX)}" for name in names)
        return found

    def withdraw(self, name: str, workspace: Path) -> None:
        """Take a layer out of sight at once; it goes with the workspace.

        Args:
            name: of the layer.
            workspace: a directory of the caller's in the store.
        """
        self.index(name).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            self.path(name).rename(workspace / ("old-" + name.replace(":", "-")))


def remove_tree(path: Path) -> None:
    """Delete a directory with all in it; never follow a symlink out of it.

    Raises:
        StoreError: something of it stays.
    """
    import shutil  # slow to import, for compressors that are not needed here

    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        msg = f"cannot delete {error.filename or path}: {error.strerror}"
        raise StoreError(msg) from error
