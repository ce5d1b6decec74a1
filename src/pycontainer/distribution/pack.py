"""Turn a directory into a layer: a tar stream that is the same bytes for the same tree.

Entries come in the order of their names. What ustar cannot say goes into PAX records (pax(5), POSIX.1-2001): long and
large values, extended attributes as ``SCHILY.xattr.*``, holes in GNU's sparse format 1.0. Times are whole seconds.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pycontainer.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["pack"]

_BLOCK = 512
_CHUNK = 1 << 20
_MAX_OCTAL_SIZE = 8**11
_MAX_OCTAL_ID = 8**7
_NAME_BYTES = 100
_MIN_HOLES = 64 * 1024  # below that a map is not worth it

Write = Callable[[bytes], object]


def pack(directory: str | Path, write: Write, *, skip: tuple[int, int] | None = None) -> int:
    """Write a directory as a tar stream.

    Sockets are left out. Directories on which another file system is mounted come empty, as with
    ``tar --one-file-system``.

    Args:
        directory: its content becomes the content of the layer, itself the root.
        write: takes the bytes.
        skip: device and inode of a directory to leave out, for a store inside the tree.

    Returns:
        How many entries were written.

    Raises:
        ImageError: a file vanished or changed while it was read, or has a name that layers reserve.
    """
    root = os.fsencode(directory)
    packer = _Packer(write)
    count = 0
    for path, name, info in _walk(root, skip):
        packer.add(path, name, info)
        count += 1
    write(bytes(2 * _BLOCK))
    return count


def _walk(root: bytes, skip: tuple[int, int] | None) -> Iterator[tuple[bytes, bytes, os.stat_result]]:
    """Give path, name in the archive and status of all entries: a directory, then all in it, in the order of names."""
    device = os.stat(root).st_dev  # noqa: PTH116 - names are bytes here
    pending = [(root, b"./")]
    while pending:
        path, name = pending.pop()
        info = os.stat(path, follow_symlinks=name == b"./")  # noqa: PTH116 - names are bytes here
        if stat.S_ISSOCK(info.st_mode) or (info.st_dev, info.st_ino) == skip:
            continue
        if not stat.S_ISDIR(info.st_mode):
            yield path, name, info
            continue
        yield path, name if name.endswith(b"/") else name + b"/", info
        if info.st_dev == device:
            prefix = b"" if name == b"./" else name + b"/"
            below = sorted(os.listdir(path), reverse=True)  # noqa: PTH208 - names are bytes here
            for entry in below:
                _check_name(path, entry)
            pending += [(path + b"/" + entry, prefix + entry) for entry in below]


def _check_name(path: bytes, name: bytes) -> None:
    if name.startswith(b".wh."):
        shown = os.fsdecode(path + b"/" + name)
        msg = f"{shown}: names that start with '.wh.' mean deletions in a layer; rename it"
        raise ImageError(msg)


class _Packer:
    def __init__(self, write: Write) -> None:
        self._write = write
        self._first: dict[tuple[int, int], bytes] = {}

    def add(self, path: bytes, name: bytes, info: os.stat_result) -> None:
        kind = stat.S_IFMT(info.st_mode)
        if kind != stat.S_IFDIR and info.st_nlink > 1:
            first = self._first.setdefault((info.st_dev, info.st_ino), name)
            if first != name:
                self._header(b"1", name, info, {}, link=first)
                return
        records = _xattrs(path)
        if kind == stat.S_IFREG:
            self._file(path, name, info, records)
        elif kind == stat.S_IFLNK:
            self._header(b"2", name, info, records, link=os.readlink(path))  # noqa: PTH115 - names are bytes here
        else:
            types = {stat.S_IFDIR: b"5", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFIFO: b"6"}
            self._header(types[kind], name, info, records)

    def _file(self, path: bytes, name: bytes, info: os.stat_result, records: dict[bytes, bytes]) -> None:
        if info.st_size == 0:
            self._header(b"0", name, info, records)
            return
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            extents = _extents(fd, info)
            if extents is None:
                self._header(b"0", name, info, records, size=info.st_size)
                self._data(fd, 0, info.st_size, path)
                self._pad(info.st_size)
                return
            sparse = b"".join(b"%d\n" % number for number in (len(extents), *sum(extents, ())))
            sparse += bytes(-len(sparse) % _BLOCK)
            size = len(sparse) + sum(length for _, length in extents)
            base = name.rpartition(b"/")[2][: _NAME_BYTES - len(b"GNUSparseFile.0/")]
            records = records | {
                b"GNU.sparse.major": b"1",
                b"GNU.sparse.minor": b"0",
                b"GNU.sparse.name": name,
                b"GNU.sparse.realsize": b"%d" % info.st_size,
            }
            self._header(b"0", b"GNUSparseFile.0/" + base, info, records, size=size)
            self._write(sparse)
            for offset, length in extents:
                self._data(fd, offset, length, path)
            self._pad(size)
        finally:
            os.close(fd)

    def _data(self, fd: int, offset: int, size: int, path: bytes) -> None:
        end = offset + size
        while offset < end:
            data = os.pread(fd, min(_CHUNK, end - offset), offset)
            if not data:
                msg = f"{os.fsdecode(path)} became shorter while it was read; import a tree that nobody writes to"
                raise ImageError(msg)
            self._write(data)
            offset += len(data)

    def _pad(self, size: int) -> None:
        if size % _BLOCK:
            self._write(bytes(-size % _BLOCK))

    def _header(
        self,
        kind: bytes,
        name: bytes,
        info: os.stat_result,
        records: dict[bytes, bytes],
        *,
        link: bytes = b"",
        size: int = 0,
    ) -> None:
        records = dict(records)
        if len(name) > _NAME_BYTES:
            records[b"path"] = name
        if len(link) > _NAME_BYTES:
            records[b"linkpath"] = link
        numbers = {
            b"uid": (info.st_uid, _MAX_OCTAL_ID),
            b"gid": (info.st_gid, _MAX_OCTAL_ID),
            b"size": (size, _MAX_OCTAL_SIZE),
            b"mtime": (int(info.st_mtime_ns // 10**9), _MAX_OCTAL_SIZE),
        }
        plain = {}
        for key, (value, limit) in numbers.items():
            plain[key] = value if 0 <= value < limit else 0
            if plain[key] != value:
                records[key] = b"%d" % value
        if records:
            body = b"".join(_record(key, records[key]) for key in sorted(records))
            self._write(_ustar(b"x", b"PaxHeaders/" + name[: _NAME_BYTES - 11], 0o644, {b"size": len(body)}))
            self._write(body + bytes(-len(body) % _BLOCK))
        device = (os.major(info.st_rdev), os.minor(info.st_rdev)) if kind in b"34" else (0, 0)
        mode = stat.S_IMODE(info.st_mode)
        self._write(_ustar(kind, name[:_NAME_BYTES], mode, plain, link=link[:_NAME_BYTES], device=device))


def _record(key: bytes, value: bytes) -> bytes:
    """Return one PAX record; its length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _ustar(
    kind: bytes,
    name: bytes,
    mode: int,
    numbers: dict[bytes, int],
    *,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    get = numbers.get
    header = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        %s%sustar\00000%s%s%07o\0%07o\0%s" % (
        name.ljust(_NAME_BYTES, b"\0"),
        mode,
        get(b"uid", 0),
        get(b"gid", 0),
        get(b"size", 0),
        get(b"mtime", 0),
        kind,
        link.ljust(_NAME_BYTES, b"\0"),
        bytes(32),
        bytes(32),
        device[0],
        device[1],
        bytes(167),
    )
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    """Return the extended attributes that belong to the content, as PAX records."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOSYS):
            return {}
        raise
    records = {}
    for name in names:
        # Labels of the host's security module and marks of overlay say something about this host, not the content.
        if name in {"security.selinux", "security.ima", "security.evm"} or name.startswith("trusted.overlay."):
            continue
        records[b"SCHILY.xattr." + os.fsencode(name)] = os.getxattr(path, name, follow_symlinks=False)
    return records


def _extents(fd: int, info: os.stat_result) -> list[tuple[int, int]] | None:
    """Return offset and length of the data of a file with holes, ``None`` for one without."""
    if info.st_size - info.st_blocks * 512 < _MIN_HOLES:
        return None
    extents = []
    offset = 0
    while offset < info.st_size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        offset = min(os.lseek(fd, start, os.SEEK_HOLE), info.st_size)
        if offset > start:
            extents.append((start, offset - start))
    # The end of the file as an empty extent, as GNU tar writes it.
    if not extents or sum(extents[-1]) < info.st_size:
        extents.append((info.st_size, 0))
    return extents
