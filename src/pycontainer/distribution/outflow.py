"""Big files being written while the disk is at work already, so that the sync at the end finds little to do."""

from __future__ import annotations

import os

from pycontainer._ffi import lib

__all__ = ["Outflow"]

_STEP = 8 << 20  # bytes between two calls of sync_file_range(2)


class Outflow:
    """An open file that is written from an offset on.

    Args:
        fd: stays open.
        offset: where the next bytes go.
    """

    def __init__(self, fd: int, offset: int = 0) -> None:
        self._fd = fd
        self._offset = offset
        self._begun = offset

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it.

        Raises:
            OSError: the file cannot be written; part of it may be.
        """
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, self._offset)
            view = view[count:]
            self._offset += count
        if self._offset - self._begun >= _STEP:
            lib.pyc_write_soon(self._fd, self._begun, self._offset - self._begun)
            self._begun = self._offset

    def skip(self, size: int) -> None:
        """Leave a hole."""
        self._offset += size
