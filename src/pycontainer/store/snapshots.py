"""Unpacked layers: one directory per diff ID, ready to be an overlay lower, unpacked once for all images."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pycontainer.errors import StoreError
from pycontainer.names import check_digest
from pycontainer.store.locks import FileLocks, key

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Snapshots", "remove_tree"]

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

    def path(self, diff_id: str) -> Path:
        """Return where a layer is, or would be."""
        algorithm, _, encoded = check_digest(diff_id).partition(":")
        return self._directory / algorithm / encoded

    def __contains__(self, diff_id: str) -> bool:
        return self.path(diff_id).is_dir()

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
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if libc.syncfs(fd) != 0:
                number = ctypes.get_errno()
                msg = f"cannot write the store to disk: syncfs {self._directory}: {os.strerror(number)}"
                raise StoreError(msg)
        finally:
            os.close(fd)

    def list(self) -> set[str]:
        """Return the diff IDs of all layers."""
        found: set[str] = set()
        for algorithm in os.scandir(self._directory):
            if algorithm.is_dir(follow_symlinks=False):
                found.update(f"{algorithm.name}:{name}" for name in os.listdir(algorithm))  # noqa: PTH208 - only names are wanted
        return found

    def withdraw(self, diff_id: str, workspace: Path) -> None:
        """Take a layer out of sight at once; it goes with the workspace.

        Args:
            diff_id: the layer.
            workspace: a directory of the caller's in the store.
        """
        self.path(diff_id).rename(workspace / ("old-" + diff_id.replace(":", "-")))


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
