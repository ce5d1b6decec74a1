"""Layers that are unpacked nowhere: the uncompressed tar, verbatim, and beside it an erofs image that indexes it.

The kernel mounts the index with the tar as a further device and reads the content of files from where it lies in the
tar. So nothing is extracted: while the blob streams by, the tar is written in large pieces, and of its headers the C
core makes a tree in memory, about 100 bytes an entry, that is written at the end, a few percent of the tar.

An image of many layers, or one whose layers leave to those below what a directory is (see
:mod:`~pycontainer.distribution.parents`), gets one index for all of them, made from the tars that are there already.

To mount an index, give fsopen(2) it as ``source`` and the tars, in order, each as ``device``. Linux 6.12 takes files of
any file system with a page cache of its own (not tmpfs), 6.4 and newer take block devices. Without its devices an index
can be mounted as well, and then files read as zeros.

The same tars give the same index, byte for byte, so that one can be verified by making it again.

See "EROFS - Enhanced Read-Only File System" in the kernel's documentation.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import attrs

from pycontainer._ffi import ffi, lib, new_error
from pycontainer.distribution.layer import (
    AppliedLayer,
    Compression,
    LayerLimits,
    Marks,
    options_of,
    raise_failure,
    store_error,
    take,
)
from pycontainer.distribution.outflow import Outflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["IndexedLayer", "index", "merge"]

_INDEX = "cannot index the layer"
_MERGE = "cannot index the layers"
_FORMAT = "pycontainer erofs 1"  # of the bytes that we write, for the same tars
_ZEROS = bytes(1 << 18)


@attrs.frozen
class IndexedLayer(AppliedLayer):
    """What was indexed.

    Args:
        index_size: bytes of the index; where directories are implied, it is right only if nothing is below.
    """

    index_size: int


def index(
    blob: IO[bytes] | Path | str | int,
    tar: Path | None,
    index: Path,
    *,
    compression: Compression = "auto",
    expected_digest: str | None = None,
    expected_diff_id: str | None = None,
    limits: LayerLimits | None = None,
    devices: bool = True,
    owners: bool = True,
    marks: Marks = "trusted",
    copy_to: Callable[[bytes], object] | None = None,
) -> IndexedLayer:
    """Write a layer as a plain tar and an index of it, in one pass, and verify its digests.

    On failure both files may be left, unfinished: remove them. Nothing is synced.

    Args:
        blob: a path, a binary stream or a file descriptor, read from its position to its end; streams stay open.
        tar: the uncompressed tar, not there yet; ``None`` when the caller has it, as with a blob that is no more.
        index: the index, not there yet.
        compression: of the blob; ``"auto"`` looks at its first bytes.
        expected_digest: of the blob, ``sha256:...``.
        expected_diff_id: of the uncompressed tar, ``sha256:...``.
        limits: what is too much.
        devices: allow device nodes; refuse the layer otherwise.
        owners: keep user and group ids; otherwise all belongs to us.
        marks: how deletions are written, as in :func:`~pycontainer.distribution.layer.apply`.
        copy_to: called with every piece of the blob, in order.

    Returns:
        The digests and sizes.

    Raises:
        DigestMismatch: a digest is not the expected one.
        ImageError: the blob or the archive in it is damaged, hostile or beyond the limits.
        StoreError: the files cannot be written.
    """
    limits = limits or LayerLimits()
    options = options_of(
        limits, marks=marks, devices=devices, owners=owners, vouched=bool(expected_digest or expected_diff_id)
    )
    with ExitStack() as stack:
        copy = _TarFile(stack, tar) if tar is not None else None
        indexer = stack.enter_context(_Indexer(_create(stack, index), options, 1, _INDEX))
        passed, stats = take(
            blob,
            _Both(indexer, copy),
            compression=compression,
            expected_digest=expected_digest,
            expected_diff_id=expected_diff_id,
            limits=limits,
            copy_to=copy_to,
        )
        return IndexedLayer(
            diff_id=passed.diff_id,
            digest=passed.digest,
            size=passed.size,
            bytes=passed.bytes,
            entries=stats.entries,
            content=stats.bytes,
            dropped_xattrs=stats.xattrs_dropped,
            hides_all=bool(stats.root_opaque),
            implied=stats.implied,
            index_size=indexer.write((passed.diff_id,)),
        )


def merge(
    tars: Sequence[Path],
    index: Path,
    *,
    diff_ids: Sequence[str],
    limits: LayerLimits | None = None,
    devices: bool = True,
    owners: bool = True,
) -> int:
    """Write one index of several layers, as an overlay of them shows them: nothing of what is hidden is in it.

    Of the tars little more than the headers is read.

    Args:
        tars: uncompressed and verified, the lowest first; the devices of the index, in this order.
        index: the index, not there yet.
        diff_ids: of the tars; the index bears them.
        limits: what is too much, of each layer.
        devices: allow device nodes; refuse the layers otherwise.
        owners: keep user and group ids; otherwise all belongs to us.

    Returns:
        The bytes of the index.

    Raises:
        ImageError: a tar is damaged, hostile or beyond the limits.
        StoreError: the files cannot be read or written.
    """
    if len(tars) != len(diff_ids) or not tars:
        msg = f"merge() needs one or more tars and as many diff IDs, not {len(tars)} and {len(diff_ids)}"
        raise ValueError(msg)
    options = options_of(limits or LayerLimits(), marks="trusted", devices=devices, owners=owners, vouched=True)
    with ExitStack() as stack:
        indexer = stack.enter_context(_Indexer(_create(stack, index), options, len(tars), _MERGE))
        for tar, diff_id in zip(tars, diff_ids, strict=True):
            indexer.add_file(tar, diff_id)
        return indexer.write(diff_ids)


@contextmanager
def _trying(what: str, path: Path) -> Iterator[None]:
    """Name what was tried in the error of a system call."""
    try:
        yield
    except OSError as error:
        what = f"{what} {path}"
        raise store_error(what, error.errno or errno.EIO) from error


def _create(stack: ExitStack, path: Path) -> int:
    with _trying("cannot index the layer: make the file", path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    return fd


class _TarFile:
    """The copy of the tar; pieces of zeros become holes, so that an archive of nothing takes no room."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self._path = path
        self._fd = _create(stack, path)
        self._outflow = Outflow(self._fd)

    def feed(self, piece: bytes | memoryview) -> None:
        if not piece[0] and not piece[-1] and len(piece) <= len(_ZEROS) and piece == _ZEROS[: len(piece)]:
            self._outflow.skip(len(piece))
            return
        with _trying("cannot keep the layer: write", self._path):
            self._outflow.write(piece)

    def finish(self, size: int) -> None:
        with _trying("cannot keep the layer: set the size of", self._path):
            os.ftruncate(self._fd, size)


class _Both:
    """Who takes the tar: the copy, if one is wanted, and the indexer."""

    def __init__(self, indexer: _Indexer, copy: _TarFile | None) -> None:
        self._indexer = indexer
        self._copy = copy

    def feed(self, piece: bytes | memoryview) -> None:
        if self._copy is not None:
            self._copy.feed(piece)
        self._indexer.feed(piece)

    def finish(self, diff_id: str, size: int) -> Any:  # noqa: ANN401 - a cffi struct has no static type
        if self._copy is not None:
            self._copy.finish(size)
        return self._indexer.end(diff_id, size)


class _Indexer:
    """The C core's side; a context manager.

    Args:
        fd: of the index, an empty file.
        options: of all layers.
        layers: that will be added.
        tried: for error messages.
    """

    def __init__(self, fd: int, options: Any, layers: int, tried: str) -> None:  # noqa: ANN401
        self._tried = tried
        self._options = options
        ret = ffi.new("PycErofs **")
        self._call(lib.pyc_erofs_open, fd, options, layers, ret)
        self._erofs = ret[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        lib.pyc_erofs_free(self._erofs)
        self._erofs = ffi.NULL

    def _call(self, function: Callable[..., int], *arguments: object) -> None:
        err = new_error()
        if function(*arguments, err) < 0:
            raise_failure(err, self._tried)

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next piece of a tar."""
        self._call(lib.pyc_erofs_feed, self._erofs, ffi.from_buffer("uint8_t[]", piece), len(piece))

    def end(self, diff_id: str, size: int) -> Any:  # noqa: ANN401 - a cffi struct has no static type
        """End a layer; return its counts."""
        stats = ffi.new("PycErofsStats *")
        self._call(lib.pyc_erofs_end, self._erofs, size, diff_id.partition(":")[2].encode(), stats)
        return stats

    def add_file(self, tar: Path, diff_id: str) -> None:
        """Take a whole layer."""
        with _trying("cannot index the layers: open", tar):
            fd = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._call(lib.pyc_erofs_feed_file, self._erofs, fd)
            self.end(diff_id, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def write(self, diff_ids: Sequence[str]) -> int:
        """Write the index; return its size."""
        # A uuid of its own for each: an overlay of two with the same one gives up features.
        words = "\n".join((_FORMAT, str(self._options.flags & ~lib.PYC_LAYER_BARE_END), *diff_ids))
        ret = ffi.new("uint64_t *")
        self._call(lib.pyc_erofs_write, self._erofs, hashlib.sha256(words.encode()).digest()[:16], ret)
        return int(ret[0])
