"""Turn trees into tar streams that are the same bytes for the same tree, and list what an overlay's upper changed.

Entries come in the order of their names, directories before what is in them. What ustar cannot say goes into PAX
records (pax(5), POSIX.1-2001): long and large values, fractions of seconds, extended attributes as
``SCHILY.xattr.*``, holes in GNU's sparse format 1.0, which docker, podman, umoci and GNU tar read. The work is done by
``csrc/changes.h``, in memory that depends on the largest directory, not on the tree.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, Self

import attrs

from pycontainer._ffi import ffi, lib, new_error, read_error
from pycontainer.errors import ImageError, StoreError, Unsupported
from pycontainer.model import Change

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Packed", "compare", "list_changes", "pack", "pack_root", "pack_upper"]

_CHUNK = 1 << 20
_LIST_CHUNK = 1 << 16
_KINDS: dict[str, Literal["added", "changed", "deleted"]] = {"A": "added", "C": "changed", "D": "deleted"}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_REASONS = {
    errno.EBUSY: "something writes to it meanwhile; pause or stop that",
    errno.EINVAL: "names that start with '.wh.' mean deletions in a layer; rename it",
    errno.EXDEV: "the tree that shows it whole is missing",
    errno.E2BIG: "they are more than 1 MiB",
    errno.ENAMETOOLONG: "the path is longer than 4095 bytes; layers cannot have such ones",
    errno.EFBIG: "there are too many of them to remember",
}

Write = Callable[[bytes], object]


@attrs.frozen
class Packed:
    """What went into an archive.

    Attributes:
        entries: its members.
        size: bytes of content.
    """

    entries: int
    size: int


def pack(directory: str | Path, write: Write, *, skip: tuple[int, int] | None = None) -> int:
    """Write a directory as the tar stream of a layer, with whole seconds as times.

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
    fd = os.open(directory, _DIRECTORY)
    try:
        flags = lib.PYC_CHANGES_RESERVED | lib.PYC_CHANGES_SECONDS
        return _pack(fd, write, f"pack {os.fsdecode(directory)}", flags, skip=skip or (0, 0)).entries
    finally:
        os.close(fd)


def pack_root(root: int, write: Write, *, layer: bool = False) -> Packed:
    """Write a whole root file system as a plain tar stream.

    Args:
        root: its root directory, open.
        write: takes the bytes.
        layer: it is to be the only layer of an image, so that names that layers reserve are refused.

    Raises:
        ImageError: it cannot be read, or changed meanwhile.
    """
    return _pack(root, write, "export the root", lib.PYC_CHANGES_RESERVED if layer else 0)


def pack_upper(upper: int, write: Write, *, base: int, merged: int = -1) -> Packed:
    """Write what an upper directory changes as the tar stream of a layer (image-spec, layer.md).

    What is as below is left out: files copied up and not changed, directories in which nothing changed. The same upper
    gives the same bytes.

    Args:
        upper: the upper directory, open.
        write: takes the bytes.
        base: the root of what lies below, open; -1 when that is not known.
        merged: the root of both, by which moved directories and files without content are read; -1: they are refused.

    Raises:
        ImageError: something cannot be said in a layer, or changed meanwhile.
    """
    flags = lib.PYC_CHANGES_UPPER | lib.PYC_CHANGES_RESERVED
    return _pack(upper, write, "make a layer of the changes", flags, base=base, merged=merged)


def list_changes(upper: int, *, base: int, merged: int = -1) -> Iterator[Change]:
    """Give what an upper directory changes, directories before what is in them.

    Exact: what is as below is not listed. A directory in which something changed counts as changed.

    Args:
        upper: the upper directory, open.
        base: the root of what lies below, open.
        merged: as for :func:`pack_upper`.
    """
    return _list(upper, lib.PYC_CHANGES_UPPER, base, merged)


def compare(new: int, *, old: int) -> Iterator[Change]:
    """Give what is different in one whole tree from another, as :func:`list_changes` does.

    What is in a directory that was deleted is not listed.

    Args:
        new: the root of the one, open.
        old: the root of the other, open.
    """
    return _list(new, 0, old, -1)


def _list(root: int, flags: int, base: int, merged: int) -> Iterator[Change]:
    rest = b""
    with _Changes(root, "list the changes", flags | lib.PYC_CHANGES_LIST, base, merged, (0, 0)) as found:
        while data := found.read(_LIST_CHUNK):
            *lines, rest = (rest + data).split(b"\0")
            for line in lines:
                yield Change(_KINDS[chr(line[0])], "/" + os.fsdecode(line[1:]))


def _pack(
    root: int,
    write: Write,
    what: str,
    flags: int,
    *,
    base: int = -1,
    merged: int = -1,
    skip: tuple[int, int] = (0, 0),
) -> Packed:
    with _Changes(root, what, flags, base, merged, skip) as found:
        while data := found.read(_CHUNK):
            write(data)
        return found.stats()


class _Changes:
    """The C core's side: a stream of bytes made of a tree; a context manager."""

    def __init__(self, root: int, what: str, flags: int, base: int, merged: int, skip: tuple[int, int]) -> None:
        self._what = what
        options = ffi.new(
            "PycChangesOptions *",
            {"flags": flags, "base": base, "merged": merged, "skip_dev": skip[0], "skip_inode": skip[1]},
        )
        ret = ffi.new("PycChanges **")
        err = new_error()
        if lib.pyc_changes_open(root, options, ret, err) < 0:
            raise _explain(what, *read_error(err))
        self._changes = ret[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        lib.pyc_changes_free(self._changes)
        self._changes = ffi.NULL

    def read(self, size: int) -> bytes:
        """Return the next bytes; fewer than asked for only at the end."""
        buffer = bytearray(size)
        got = ffi.new("size_t *")
        err = new_error()
        if lib.pyc_changes_read(self._changes, ffi.from_buffer("uint8_t[]", buffer), size, got, err) < 0:
            raise _explain(self._what, *read_error(err))
        return bytes(buffer) if got[0] == size else bytes(memoryview(buffer)[: got[0]])

    def stats(self) -> Packed:
        stats = ffi.new("PycChangesStats *")
        lib.pyc_changes_stats(self._changes, stats)
        return Packed(int(stats.entries), int(stats.bytes))


def _explain(what: str, step: str, path: str, number: int) -> Exception:
    text = f"cannot {what}: {step}" + (f" {path!r}" if path else "")
    if number == errno.ENOSYS:
        return Unsupported(f"{text}: this kernel has no openat2(2); Linux 5.6 or newer is needed")
    if number in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return StoreError(f"{text}: {os.strerror(number)}")
    if number == errno.ENOENT:
        return ImageError(f"{text}: it is gone; something writes to the tree meanwhile, pause or stop that")
    return ImageError(f"{text}: {_REASONS.get(number) or os.strerror(number)}")
