"""What a directory tree is made of, as values to compare; and a small tree that has a bit of everything."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

__all__ = ["Description", "content_digest", "describe", "differences", "tree_hash", "write_sample"]

Description = dict[str, tuple[object, ...]]

_BLOCK = 4096
_SMALL = 1 << 20  # bytes; a file up to this size is read whole
_PIECE = 1 << 20
_ZEROS = bytes(_BLOCK)


def describe(root: Path, *, whole_seconds: bool = True, root_too: bool = True, ghosts: bool = True) -> Description:
    """Return type, mode, owner, time, attributes, content and link partners of everything below a directory.

    Args:
        root: the directory.
        whole_seconds: leave out what is below a second.
        root_too: describe the directory itself as well.
        ghosts: fail over names that are listed and cannot be looked at; an overlay has such ones where a directory with
            a whiteout is in one layer only.
    """
    top = os.fspath(root)
    found: Description = {}
    partners: dict[tuple[int, int], str] = {}
    paths = sorted((name, path) for name, path in _walk(top) if ghosts or os.path.lexists(path))
    for name, path in [(".", top), *paths] if root_too else paths:
        info = os.lstat(path)
        kind = stat.S_IFMT(info.st_mode)
        content: object = None
        if kind == stat.S_IFREG:
            content = _file_digest(path, info.st_size)
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)  # noqa: PTH115 - of many thousand
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = info.st_rdev
        first = partners.setdefault((info.st_dev, info.st_ino), name) if kind != stat.S_IFDIR else name
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if not key.startswith("trusted.overlay.") and key != "security.selinux"
        }
        time = info.st_mtime_ns // 10**9 if whole_seconds else info.st_mtime_ns
        found[name] = (oct(info.st_mode), info.st_uid, info.st_gid, time, attributes, content, first)
    return found


def differences(left: Mapping[str, object], right: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return what two descriptions do not agree on: by name, both sides."""
    names = sorted({*left, *right})
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}


def tree_hash(description: Mapping[str, object]) -> str:
    """Return one digest of all that a description holds."""
    text = repr(sorted((name, _ordered(values)) for name, values in description.items()))
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def content_digest(size: int, regions: Iterable[tuple[int, int]], read: Callable[[int, int], bytes]) -> str:
    """Return a digest of a file that tells content, however holes lie in it.

    Args:
        size: of the file, in bytes.
        regions: start and end of what may be other than zeros, in order.
        read: gives so many bytes at an offset; fewer only at the end.
    """
    if size <= _SMALL:
        return hashlib.sha256(read(0, size)).hexdigest()
    digest = hashlib.sha256(b"%d" % size)
    done = 0
    for begin, end in regions:
        for start in range(max(done, begin // _BLOCK * _BLOCK), end, _PIECE):
            stop = min(start + _PIECE, -(-end // _BLOCK) * _BLOCK)
            piece = read(start, stop - start)
            for offset in range(0, len(piece), _BLOCK):
                block = piece[offset : offset + _BLOCK]
                if block != _ZEROS[: len(block)]:
                    digest.update(b"%d:" % (start + offset))
                    digest.update(block)
            done = stop
    return digest.hexdigest()


def _ordered(values: object) -> object:
    if isinstance(values, tuple):
        return tuple(sorted(value.items()) if isinstance(value, dict) else value for value in values)
    return values


def _walk(top: str) -> Iterator[tuple[str, str]]:
    """Give every name below a directory, relative to it, and its path."""
    waiting = [(top, "")]
    while waiting:
        directory, prefix = waiting.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                yield prefix + entry.name, entry.path
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, prefix + entry.name + "/"))


def _file_digest(path: str, size: int) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return content_digest(size, _data(fd, size), lambda offset, length: os.pread(fd, length, offset))
    finally:
        os.close(fd)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Give where a file has data, see lseek(2)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


# cap_net_bind_service+ep, version 2: see struct vfs_cap_data in linux/capability.h
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def write_sample(root: Path, busybox: Path) -> None:
    """Fill an empty directory with a small root file system that has a bit of everything a layer can hold."""
    for name in ("bin", "etc", "home/app", "tmp", "var/empty", "usr/share/doc", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy2(busybox, root / "bin/busybox")
    for name in ("sh", "ls", "cat", "true"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
    os.link(root / "etc/passwd", root / "etc/passwd.same")
    (root / "home/app/naïve ñ ☃.txt").write_text("unicode")
    os.chown(root / "home/app", 1000, 1000)
    os.chown(root / "home/app/naïve ñ ☃.txt", 1000, 3_000_000)
    (root / "tmp").chmod(0o1777)
    (root / "var/empty").chmod(0o711)
    (root / ("usr/share/doc/" + "long-" * 30)).write_text("a name of 150 characters")
    (root / "usr/share/doc/link").symlink_to("x" * 200)
    with (root / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"an island")
        file.truncate(8 << 20)
    (root / "bin/server").write_bytes(b"#!/bin/sh\n")
    (root / "bin/server").chmod(0o755)
    os.setxattr(root / "bin/server", "security.capability", CAPABILITY)
    (root / "bin/setuid").write_bytes(b"#!/bin/sh\n")
    (root / "bin/setuid").chmod(0o4755)
    os.mkfifo(root / "dev/fifo")
    os.mknod(root / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "dev/null").chmod(0o666)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, (10**9 + number, 10**9 + number), follow_symlinks=False)
