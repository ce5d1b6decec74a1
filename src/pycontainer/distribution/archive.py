"""Read the files of an image archive: a tar file, by an index of its members, or a directory. Nothing is written.

The archive is not trusted: names are only looked up, never used as paths, and sizes are checked before they are used.
"""

from __future__ import annotations

import os
import posixpath
import stat
from typing import TYPE_CHECKING, Protocol

import attrs

from pycontainer.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Archive", "DirectoryArchive", "FileRange", "TarArchive"]

_BLOCK = 512
_MAX_MEMBERS = 500_000
_MAX_PAX = 1 << 20
_MAX_LINKS = 8
_MAX_DIGITS = 18  # of a size, so that it fits into 63 bits


class Archive(Protocol):
    """The files of an image archive, by name."""

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""

    def read(self, name: str, limit: int) -> bytes:
        """Return a small file.

        Raises:
            ImageError: it is missing or larger than ``limit`` bytes.
        """

    def size(self, name: str) -> int:
        """Return how many bytes a file has.

        Raises:
            ImageError: there is no such file.
        """

    def open(self, name: str) -> FileRange:
        """Return a stream of a file, for as long as the archive is open.

        Raises:
            ImageError: there is no such file.
        """

    def close(self) -> None:
        """Close what is open."""


@attrs.frozen
class _Member:
    kind: str  # "file" or "link"
    offset: int
    size: int
    link: str = ""


class TarArchive:
    """A tar file.

    Args:
        fd: a seekable file, which is closed with the archive.
        path: its name, for messages.

    Raises:
        ImageError: it is no tar file, or cut short.
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._members = _index(fd, path)

    def _find(self, name: str) -> _Member:
        current = name
        for _ in range(_MAX_LINKS):
            member = self._members.get(current)
            if member is None:
                break
            if member.kind == "file":
                return member
            current = member.link
        msg = f"{self._path} has no file {name!r}: the archive is incomplete"
        raise ImageError(msg)

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return name in self._members

    def read(self, name: str, limit: int) -> bytes:
        """Return a small file; see :class:`Archive`."""
        member = self._find(name)
        if member.size > limit:
            msg = f"{self._path}: {name!r} has {member.size} bytes, at most {limit} are accepted"
            raise ImageError(msg)
        return os.pread(self._fd, member.size, member.offset)

    def size(self, name: str) -> int:
        """Return the size of a file; see :class:`Archive`."""
        return self._find(name).size

    def open(self, name: str) -> FileRange:
        """Return a stream of a file; see :class:`Archive`."""
        member = self._find(name)
        return FileRange(self._fd, member.offset, member.size)

    def close(self) -> None:
        """Close the tar file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class DirectoryArchive:
    """A directory.

    Args:
        path: the directory; links in it do not lead out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return (self._path / name).is_file()

    def read(self, name: str, limit: int) -> bytes:
        """Return a small file; see :class:`Archive`."""
        fd = self._open(name)
        try:
            size = os.fstat(fd).st_size
            if size > limit:
                msg = f"{self._path / name} has {size} bytes, at most {limit} are accepted"
                raise ImageError(msg)
            return os.pread(fd, size, 0)
        finally:
            os.close(fd)

    def size(self, name: str) -> int:
        """Return the size of a file; see :class:`Archive`."""
        fd = self._open(name)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def open(self, name: str) -> FileRange:
        """Return a stream of a file; see :class:`Archive`."""
        fd = self._open(name)
        return FileRange(fd, 0, os.fstat(fd).st_size, owned=True)

    def _open(self, name: str) -> int:
        path = self._path / name
        if not path.resolve().is_relative_to(self._path):
            msg = f"{path} leads out of {self._path}, where the archive ends"
            raise ImageError(msg)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            msg = f"cannot read {path}: {error.strerror}"
            raise ImageError(msg) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            msg = f"{path} is not a file"
            raise ImageError(msg)
        return fd

    def close(self) -> None:
        """Do nothing: each stream has a file of its own."""


class FileRange:
    """A part of a file as a stream; the file is read by position, so that several streams may share it.

    Args:
        fd: the file.
        offset: where the part begins.
        size: how many bytes it has.
        owned: close the file with the stream.
    """

    def __init__(self, fd: int, offset: int, size: int, *, owned: bool = False) -> None:
        self._fd = fd
        self._owned = owned
        self._offset = offset
        self._end = offset + size

    def read(self, size: int, /) -> bytes:
        """Return at most so many of the next bytes.

        Raises:
            ImageError: the file ends too early.
        """
        size = min(size, self._end - self._offset)
        data = os.pread(self._fd, size, self._offset)
        if size and not data:
            msg = f"the archive became shorter while it was read, {self._end - self._offset} bytes are missing"
            raise ImageError(msg)
        self._offset += len(data)
        return data

    def close(self) -> None:
        """Close the file, if it is owned."""
        if self._owned:
            self._owned = False
            os.close(self._fd)


def _index(fd: int, path: str) -> dict[str, _Member]:
    """Return the files and links of a tar file by name."""
    members: dict[str, _Member] = {}
    end = os.fstat(fd).st_size
    offset = 0
    pending: dict[str, str] = {}
    seen = 0
    while True:
        block = os.pread(fd, _BLOCK, offset)
        if (block and len(block) < _BLOCK) or offset > end:
            msg = f"{path} is cut short" if seen else f"{path} is not a tar archive"
            raise ImageError(msg)
        if len(block) < _BLOCK or block == bytes(_BLOCK):
            if not seen:
                msg = f"{path} is not a tar archive"
                raise ImageError(msg)
            return members
        seen += 1
        size = _check_header(block, path, offset, end, seen)
        kind = block[156:157]
        offset += _BLOCK
        if kind in b"xLKg" and kind:
            pending |= _extension(fd, kind, offset, size, path)
        else:
            size = _pax_size(pending, size, path, offset, end)
            _add(members, block, pending, offset, size)
            pending = {}
        offset += -(-size // _BLOCK) * _BLOCK


def _check_header(block: bytes, path: str, offset: int, end: int, seen: int) -> int:
    """Check one header and return the size of what follows."""
    stored = _number(block[148:156])
    if stored != sum(block[:148]) + 8 * 32 + sum(block[156:]):
        msg = f"{path} is not a tar archive" if seen == 1 else f"{path} is damaged: bad header at byte {offset}"
        raise ImageError(msg)
    if seen > _MAX_MEMBERS:
        msg = f"{path} has more than {_MAX_MEMBERS} members: this is no image archive"
        raise ImageError(msg)
    size = _number(block[124:136])
    if size is None or size < 0 or (block[156:157] not in b"12345" and offset + _BLOCK + size > end):
        msg = f"{path} is cut short or damaged: the member at byte {offset} goes beyond its end"
        raise ImageError(msg)
    return 0 if block[156:157] in b"123456" and block[156:157] else size


def _number(field: bytes) -> int | None:
    """Read an octal number, or a binary one as GNU tar writes it."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        return -1 if field[0] & 0x40 else value
    text = field.strip(b"\0 ")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        return None


def _extension(fd: int, kind: bytes, offset: int, size: int, path: str) -> dict[str, str]:
    """Read a GNU long name or PAX records: only those that matter here."""
    if size > _MAX_PAX:
        msg = f"{path}: the extended header at byte {offset} has {size} bytes, at most {_MAX_PAX} are accepted"
        raise ImageError(msg)
    data = os.pread(fd, size, offset)
    if kind == b"g":
        return {}
    if kind in b"LK":
        return {"path" if kind == b"L" else "linkpath": os.fsdecode(data.rstrip(b"\0"))}
    found = {}
    at, end = 0, len(data.rstrip(b"\0"))
    while at < end:  # by position: a copy of the rest for each record would take minutes for one header
        blank = data.find(b" ", at, at + _MAX_DIGITS)
        digits = data[at : max(blank, at)]
        after = at + int(digits) if digits.isdigit() else 0
        record = data[blank + 1 : after]
        if not (blank + 1 < after <= len(data) and record.endswith(b"\n") and b"=" in record):
            msg = f"{path}: the extended header at byte {offset} is damaged"
            raise ImageError(msg)
        key, _, value = record[:-1].partition(b"=")
        if key.startswith(b"GNU.sparse."):
            msg = f"{path} was made with tar --sparse, which image archives are not; make it without"
            raise ImageError(msg)
        if key in (b"path", b"linkpath", b"size"):
            found[key.decode()] = os.fsdecode(value)
        at = after
    return found


def _pax_size(pending: dict[str, str], size: int, path: str, offset: int, end: int) -> int:
    text = pending.get("size")
    if text is None:
        return size
    if not text.isascii() or not text.isdecimal() or len(text) > _MAX_DIGITS or offset + int(text) > end:
        msg = f"{path} is cut short or damaged: the member at byte {offset} goes beyond its end"
        raise ImageError(msg)
    return int(text)


def _add(members: dict[str, _Member], block: bytes, pending: dict[str, str], offset: int, size: int) -> None:
    name = pending.get("path")
    if name is None:
        name = os.fsdecode(block[:100].split(b"\0")[0])
        if block[257:263] == b"ustar\0" and block[345]:
            name = os.fsdecode(block[345:500].split(b"\0")[0]) + "/" + name
    name = posixpath.normpath(name)
    kind = block[156:157]
    link = pending.get("linkpath") or os.fsdecode(block[157:257].split(b"\0")[0])
    if kind in (b"0", b"\0", b"7"):
        members[name] = _Member("file", offset, size)
    elif kind == b"1":
        members[name] = _Member("link", 0, 0, posixpath.normpath(link))
    elif kind == b"2":
        members[name] = _Member("link", 0, 0, posixpath.normpath(posixpath.join(posixpath.dirname(name), link)))
