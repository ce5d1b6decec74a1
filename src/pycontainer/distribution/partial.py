"""Downloads that a later pull goes on with: what arrived of a blob, in ``downloads/`` of the store, by digest.

A file there is locked with flock(2) by whoever writes it, and moved among the blobs when it is complete and verified.
Nothing in it is trusted: whoever reads it to the end verifies all of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

from pycontainer.distribution.download import RemoteBlob
from pycontainer.distribution.outflow import Outflow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Download"]

_PIECE = 1 << 18


class Download:
    """The bytes of a blob, first those that an earlier pull left, then those of the registry, which are kept.

    Args:
        directory: for the file; made when missing.
        digest: of the blob.
        size: of it.
        fetch: gives the stream of the blob from an offset.

    Attributes:
        kept: the file; it has the whole blob once everything was read.
        resumed: bytes that were there.
    """

    def __init__(self, directory: Path, digest: str, size: int, fetch: Callable[[int], RemoteBlob]) -> None:
        self.kept = directory / digest.replace(":", "-")
        self._size = size
        self._fetch = fetch
        self._remote: RemoteBlob | None = None
        self._offset = 0
        self._outflow: Outflow | None = None
        directory.mkdir(mode=0o700, exist_ok=True)
        self._fd = _open_locked(self.kept)
        self.resumed = os.fstat(self._fd).st_size
        if self.resumed > size:
            os.ftruncate(self._fd, 0)
            self.resumed = 0

    def read(self, size: int = _PIECE, /) -> bytes:
        """Return the next bytes, ``b""`` at the end.

        Raises:
            RegistryError: the rest is not to be had; what arrived is kept.
            OSError: the file cannot be written.
        """
        if self._offset < self.resumed:
            data = os.pread(self._fd, min(size, self.resumed - self._offset), self._offset)
        else:
            if self._remote is None:
                self._remote = self._fetch(self._offset)
            data = self._remote.read(size)
            self._keep(data)
        self._offset += len(data)
        return data

    def _keep(self, data: bytes) -> None:
        if self._outflow is None:
            self._outflow = Outflow(self._fd, self._offset)
        try:
            self._outflow.write(data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self.kept.unlink(missing_ok=True)  # others need the room, and there is none for the rest
            raise OSError(error.errno, error.strerror, str(self.kept)) from error

    def close(self) -> None:
        """Let go of the connection and of the file."""
        remote, self._remote = self._remote, None
        if remote is not None:
            remote.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _open_locked(path: Path) -> int:
    """Open a file that nobody else writes, waiting for them; one that was moved away meanwhile is made anew."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            here, there = os.fstat(fd), path.stat()
            if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                return fd
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
