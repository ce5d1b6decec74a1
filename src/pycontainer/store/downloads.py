"""What interrupted pulls left of blobs, ``downloads/`` in the store: kept for a week, or until somebody wants the room.

Whoever writes one holds flock(2) on it, and moves it away when it is complete.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

__all__ = ["WEEK", "remove", "sizes"]

WEEK = 7 * 24 * 3600.0
_BLOCK = 512  # of st_blocks, see stat(2)


def sizes(root: Path) -> dict[str, int]:
    """Return the bytes on disk of each, by name."""
    found = {}
    try:
        with os.scandir(root / "downloads") as entries:
            for entry in entries:
                try:
                    found[entry.name] = entry.stat(follow_symlinks=False).st_blocks * _BLOCK
                except FileNotFoundError:
                    continue  # complete just now
    except FileNotFoundError:
        pass  # nothing was ever pulled
    return found


def remove(root: Path, *, older_than: float = 0.0) -> int:
    """Delete those that nobody is writing; return how many.

    Args:
        root: of the store.
        older_than: seconds since the last byte came.
    """
    count = 0
    before = time.time() - older_than
    for name in sizes(root):
        path = root / "downloads" / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_mtime <= before:
                path.unlink(missing_ok=True)
                count += 1
        except BlockingIOError:
            continue  # it is being written
        finally:
            os.close(fd)
    return count
