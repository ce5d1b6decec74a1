"""Locks between threads and processes: bytes of one file that never goes away.

Each lock is an open-file-description lock (fcntl_locking(2)) on the byte that its name hashes to. The kernel drops it
with the last descriptor, so a killed process leaves none behind, and there are no lock files to clean up. Two names on
one byte only wait for each other.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pycontainer.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["CONTENT", "INDEX", "OPEN", "FileLocks", "Held", "key"]

CONTENT = 0  # shared: somebody adds content that no image refers to yet; exclusive: unreferenced content is deleted
OPEN = 1  # the store is being made or repaired
INDEX = 2  # index.json is being written
_FIRST_KEY = 2**32
_KEYS = 2**62
_REMOVAL_POLL = 0.001  # seconds; a removal is one transaction

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid


def key(kind: str, name: str) -> int:
    """Return the byte that stands for a named thing, e.g. ``key("layer", "sha256:…")``."""
    digest = hashlib.sha256(f"{kind}\0{name}".encode()).digest()
    return _FIRST_KEY + int.from_bytes(digest[:8], "little") % _KEYS


def _set(fd: int, command: int, kind: int, byte: int) -> None:
    fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


class Held:
    """A lock that is held until :meth:`release`; with its own open file, so that threads exclude each other too."""

    __slots__ = ("__weakref__", "_fd", "_lock")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def release(self) -> None:
        """Let go; a second call does nothing."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def abandon(self) -> None:
        """Let go in a forked child, where another thread may have left the mutex locked.

        This closes our copy of the descriptor; the parent's keeps the lock.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class FileLocks:
    """The locks of one store.

    Args:
        path: the lock file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: weakref.WeakSet[Held] = weakref.WeakSet()  # one that an interrupt made unknown is dropped
        self._uses: dict[str, tuple[int, int]] = {}  # name -> (byte, count); one descriptor carries all of them
        self._uses_lock = threading.Lock()
        self._uses_fd = self._open()

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            hint = "; choose a root on a writable file system" if error.errno in (errno.EROFS, errno.EACCES) else ""
            msg = f"cannot write the store: open {self._path}: {error.strerror}{hint}"
            raise StoreError(msg) from error

    def take(self, byte: int, *, shared: bool = False, wait: bool = True) -> Held | None:
        """Take a lock.

        Args:
            byte: which one: a constant of this module or a :func:`key`.
            shared: together with other sharers.
            wait: until it is free; else give up at once.

        Returns:
            The lock, or ``None`` when somebody else has it and ``wait`` is false.
        """
        fd = self._open()
        held = Held(fd)
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        try:
            _set(fd, command, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, byte)
        except (BlockingIOError, PermissionError):
            held.release()
            return None
        except BaseException:
            held.release()
            raise
        self._held.add(held)
        return held

    def take_unused(self, name: str) -> Held | None:
        """Take a thing for removal: wait for others who remove it, not for those who use it.

        Returns:
            The lock, or ``None`` when the thing is in use.
        """
        byte = key("use", name)
        while (held := self.take(byte, wait=False)) is None:
            probe = fcntl.fcntl(self._uses_fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
            if self.is_used(name) or _FLOCK.unpack(probe)[0] == fcntl.F_RDLCK:
                return None
            time.sleep(_REMOVAL_POLL)
        return held

    def is_used(self, name: str) -> bool:
        """Tell whether this process uses a thing."""
        with self._uses_lock:
            return self._uses.get(name, (0, 0))[1] > 0

    def release(self, held: Held) -> None:
        """Let go of what :meth:`take` gave."""
        self._held.discard(held)
        held.release()

    @contextmanager
    def hold(self, byte: int, *, shared: bool = False) -> Iterator[None]:
        """Hold a lock for a block of code, waiting for it first."""
        held = self.take(byte, shared=shared)
        try:
            yield
        finally:
            if held is not None:  # as it always is: it was waited for
                self.release(held)

    def use(self, name: str) -> bool:
        """Count one more user of a thing in this process; the first takes a shared lock on it.

        Returns:
            Whether this was the first.
        """
        with self._uses_lock:
            entry = self._uses.get(name)
            if entry is None:
                entry = (key("use", name), 0)
                self._uses[name] = entry
            byte, count = entry
            if count == 0:
                _set(self._uses_fd, fcntl.F_OFD_SETLKW, fcntl.F_RDLCK, byte)
            self._uses[name] = (byte, count + 1)
            return count == 0

    def unuse(self, name: str) -> None:
        """Count one user less; the last one drops the lock."""
        with self._uses_lock:
            byte, count = self._uses.get(name, (0, 0))
            if count <= 0:
                msg = f"{name} is released more often than it was acquired"
                raise ValueError(msg)
            if count == 1:
                _set(self._uses_fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, byte)
            self._uses[name] = (byte, count - 1)

    def close(self) -> None:
        """Drop every lock."""
        for held in list(self._held):
            self.release(held)
        with self._uses_lock:
            fd, self._uses_fd = self._uses_fd, -1
            self._uses.clear()
        if fd >= 0:
            os.close(fd)

    def after_fork(self) -> None:
        """Give up the parent's locks in a forked child, without taking them from the parent."""
        for held in list(self._held):
            held.abandon()
        self._held = weakref.WeakSet()
        self._uses = {}
        self._uses_lock = threading.Lock()
        if self._uses_fd >= 0:
            os.close(self._uses_fd)
            self._uses_fd = self._open()
