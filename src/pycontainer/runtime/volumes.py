"""Directories of a container that lie outside its layers: what an image declares as volumes.

As docker does, such a directory starts with what the image has there, owner and mode included. The image is hostile:
the path is resolved inside its root, and nothing in it is followed.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from pycontainer._ffi import lib, new_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["fill"]

_CHUNK = 1 << 20
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY = _READ | os.O_DIRECTORY


def fill(root_fd: int, path: str, target: Path) -> None:
    """Make a directory with the content that an image has at a path; empty and 0755 where it has none.

    Args:
        root_fd: the image's root directory.
        path: absolute path in the image.
        target: the directory to make.
    """
    target.mkdir()
    target.chmod(0o755)
    fd = lib.pyc_open_in_root(root_fd, path.encode(errors="surrogateescape"), os.O_RDONLY | os.O_DIRECTORY, new_error())
    if fd < 0:
        return
    into = os.open(target, _DIRECTORY)
    try:
        _copy_directory(fd, into)
    finally:
        os.close(into)
        os.close(fd)


def _copy_directory(source: int, target: int) -> None:
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            _between(source, target, name, _DIRECTORY, _DIRECTORY, _copy_directory)
        elif stat.S_ISREG(status.st_mode):
            _between(source, target, name, _READ, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _copy_file)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISFIFO(status.st_mode):
            os.mkfifo(name, 0o600, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
    _copy_attributes(source, target)


def _between(source: int, target: int, name: str, read: int, write: int, copy: Callable[[int, int], None]) -> None:
    fd = os.open(name, read, dir_fd=source)
    try:
        into = os.open(name, write, 0o600, dir_fd=target)
        try:
            copy(fd, into)
        finally:
            os.close(into)
    finally:
        os.close(fd)


def _copy_file(source: int, target: int) -> None:
    while os.sendfile(target, source, None, _CHUNK) > 0:  # copy_file_range(2) stops at file system borders
        pass
    _copy_attributes(source, target)


def _copy_attributes(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
