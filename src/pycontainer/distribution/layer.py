"""Apply an image layer to a directory: one pass over the blob, both digests verified, nothing outside it touched.

The blob is read once. Each piece is hashed, decompressed, hashed again and given to a taker: here the tar reader of the
C core that writes the files straight from it, in :mod:`~pycontainer.distribution.erofs` the one that only indexes them.
Hashing, decompressing and writing all release the GIL, so layers taken in several threads run in parallel. Memory is
bounded by the size of a piece, whatever the archive says.

See the OCI image specification, "Image Layer Filesystem Changeset".
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn, Protocol, Self, cast

import attrs
import zstandard
from isal import igzip_lib, isal_zlib

from pycontainer._ffi import ffi, lib, new_error, read_error
from pycontainer.errors import DigestMismatch, ImageError, StoreError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "AppliedLayer",
    "Compression",
    "LayerLimits",
    "Marks",
    "Passed",
    "Taker",
    "apply",
    "options_of",
    "raise_failure",
    "store_error",
    "take",
    "verify",
]

Compression = Literal["auto", "none", "gzip", "zstd"]
Marks = Literal["trusted", "user", "none"]

_PIECE = 1 << 18  # bytes; of the blob and of the tar. Small enough to stay in the second-level cache between the steps
_MAX_WINDOW = 1 << 27  # of zstd: 128 MiB, what ``zstd -d`` takes without --memory
_SLACK = 64 << 20  # bytes of tar that are fine at any ratio: an empty disk image compresses well
_APPLY = "cannot apply the layer"
_MARKS = {"trusted": 0, "user": lib.PYC_LAYER_USERXATTR, "none": lib.PYC_LAYER_PLAIN}
_BROKEN: tuple[type[Exception], ...] = (cast("type[Exception]", isal_zlib.error), zstandard.ZstdError)

# Of the machine, not of the archive.
_STORE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the quota",
    errno.EROFS: "mount the store for writing",
    errno.EIO: "check the disk and the kernel's log",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise fs.file-max",
    errno.ENOMEM: "free some memory",
    errno.EACCES: "run as root, or as the owner of the store",
}
_ARCHIVE = {
    errno.EBADMSG: "the archive is damaged or hostile",
    errno.EFBIG: "too much; raise LayerLimits(...) if the image is trusted",
    errno.EXDEV: "it would lead out of the layer",
    errno.ENOTDIR: "it is not a directory",
    errno.ELOOP: "too many symbolic links",
    errno.EOVERFLOW: "Linux has no such number",
    errno.EOPNOTSUPP: "not supported here",
}


@attrs.frozen(kw_only=True)
class LayerLimits:
    """How much one layer may bring; beyond it the layer is refused.

    Args:
        size: bytes of the tar, and of the file content in it.
        ratio: bytes of tar for each byte of blob; the first 64 MiB are free.
        entries: members of the archive, and the parents they lack.
        header: bytes of one PAX header or long name: all xattrs and names of a file.
        tree: bytes of memory for the tree of a layer that is indexed: about 130 an entry, its name and xattrs included.
    """

    size: int = 1 << 40
    ratio: int = 1000
    entries: int = 20_000_000
    header: int = 1 << 20
    tree: int = 1 << 30


@attrs.frozen
class AppliedLayer:
    """What was applied.

    Args:
        diff_id: digest of the uncompressed tar.
        digest: digest of the blob.
        size: bytes of the blob.
        bytes: bytes of the uncompressed tar.
        entries: members of the archive, whiteouts included.
        content: bytes of file content written; holes are not written.
        dropped_xattrs: extended attributes that the file system cannot hold, or that mean something to the host only.
        hides_all: the layer hides all layers below it (a whiteout of the root): leave them out of the stack.
        implied: directories that the layer needs and does not describe, so that those below say what they are. It may
            count some that a later member removed.
    """

    diff_id: str
    digest: str
    size: int
    bytes: int
    entries: int
    content: int
    dropped_xattrs: int
    hides_all: bool
    implied: int


def apply(
    blob: IO[bytes] | Path | str | int,
    directory: Path | str | int,
    *,
    compression: Compression = "auto",
    expected_digest: str | None = None,
    expected_diff_id: str | None = None,
    limits: LayerLimits | None = None,
    devices: bool = True,
    owners: bool = True,
    marks: Marks = "trusted",
    copy_to: Callable[[bytes], object] | None = None,
) -> AppliedLayer:
    """Apply a layer to a directory that nobody else writes to, and verify its digests.

    On failure the directory is left half filled: remove it. Nothing is synced.

    Args:
        blob: a path, a binary stream or a file descriptor, read from its position to its end; streams stay open.
        directory: an existing directory, by path or descriptor.
        compression: of the blob; ``"auto"`` looks at its first bytes.
        expected_digest: of the blob, ``sha256:...``.
        expected_diff_id: of the uncompressed tar, ``sha256:...``.
        limits: what is too much.
        devices: make device nodes; refuse the layer otherwise.
        owners: set user and group ids; otherwise all belongs to us.
        marks: how deletions are written: ``"trusted"`` or ``"user"`` for the xattrs of an overlay mount, ``"none"`` for
            a plain tree, in which names like ``.wh.x`` are ordinary files.
        copy_to: called with every piece of the blob, in order, e.g. to store it in the same pass.

    Returns:
        The digests and sizes.

    Raises:
        DigestMismatch: a digest is not the expected one.
        ImageError: the blob or the archive in it is damaged, hostile or beyond the limits.
        StoreError: the directory cannot be written.
        Unsupported: the kernel lacks openat2(2), Linux 5.6.
    """
    limits = limits or LayerLimits()
    options = options_of(
        limits, marks=marks, devices=devices, owners=owners, vouched=bool(expected_digest or expected_diff_id)
    )
    with ExitStack() as stack:
        writer = stack.enter_context(_Writer(_open_directory(stack, directory), options))
        passed, stats = take(
            blob,
            writer,
            compression=compression,
            expected_digest=expected_digest,
            expected_diff_id=expected_diff_id,
            limits=limits,
            copy_to=copy_to,
        )
    return AppliedLayer(
        passed.diff_id,
        passed.digest,
        passed.size,
        passed.bytes,
        stats.entries,
        stats.bytes,
        stats.xattrs_dropped,
        bool(stats.root_opaque),
        stats.implied,
    )


@attrs.frozen
class Passed:
    """What one pass over a blob gives.

    Args:
        diff_id: digest of the uncompressed tar.
        digest: digest of the blob.
        size: bytes of the blob.
        bytes: bytes of the uncompressed tar.
    """

    diff_id: str
    digest: str
    size: int
    bytes: int


class Taker(Protocol):
    """Who takes the uncompressed tar."""

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next piece; it is valid during the call only."""

    def finish(self, diff_id: str, size: int) -> Any:  # noqa: ANN401 - a cffi struct has no static type
        """Take note of the end: the digest and size of the whole; return the counts."""


def take(
    blob: IO[bytes] | Path | str | int,
    taker: Taker,
    *,
    compression: Compression,
    expected_digest: str | None,
    expected_diff_id: str | None,
    limits: LayerLimits,
    copy_to: Callable[[bytes], object] | None,
) -> tuple[Passed, Any]:
    """Give a layer to a taker, uncompressed, and verify its digests; the arguments are those of :func:`apply`.

    Returns:
        The digests and sizes, and what the taker returned at the end.
    """
    with ExitStack() as stack:
        source = _Source(_open_blob(stack, blob), copy_to)
        try:
            diff_id, size = _pump(source, _kind(source, compression), taker, limits)
            stats = taker.finish(diff_id, size)
        except ImageError as error:
            # A damaged blob fails in odd places: say the cause if it can be known.
            source.drain()
            _verify("the layer's blob", expected_digest, source.digest, error)
            raise
        _verify("the layer's blob", expected_digest, source.digest)
        _verify("the layer", expected_diff_id, diff_id)
        return Passed(diff_id, source.digest, source.size, size), stats


def options_of(limits: LayerLimits, *, marks: Marks, devices: bool, owners: bool, vouched: bool) -> Any:  # noqa: ANN401
    """Return the limits and options as the C core takes them.

    Args:
        limits: what is too much.
        marks: how deletions are written.
        devices: whether device nodes are allowed.
        owners: whether owners are set.
        vouched: a digest proves that nothing is missing, so that the archive's end marker may be.
    """
    flags = _MARKS[marks] | (0 if devices else lib.PYC_LAYER_NO_DEVICES) | (0 if owners else lib.PYC_LAYER_NO_OWNERS)
    return ffi.new(
        "PycLayerOptions *",
        {
            "flags": flags | (lib.PYC_LAYER_BARE_END if vouched else 0),
            "max_bytes": limits.size,
            "max_entries": limits.entries,
            "max_meta": limits.header,
            "max_tree": limits.tree,
        },
    )


def verify(
    blob: IO[bytes] | Path | str | int,
    *,
    expected_digest: str | None = None,
    expected_diff_id: str | None = None,
    limits: LayerLimits | None = None,
    copy_to: Callable[[bytes], object] | None = None,
) -> tuple[str, str, int]:
    """Verify the digests of a layer's blob without applying it; the arguments are those of :func:`apply`.

    Returns:
        The digest of the blob, the diff ID, and the bytes of the uncompressed tar.

    Raises:
        DigestMismatch: a digest is not the expected one.
        ImageError: the blob is damaged, or beyond the limits.
    """
    with ExitStack() as stack:
        source = _Source(_open_blob(stack, blob), copy_to)
        try:
            diff_id, size = _pump(source, _kind(source, "auto"), None, limits or LayerLimits())
        except ImageError as error:
            source.drain()
            _verify("the layer's blob", expected_digest, source.digest, error)
            raise
        _verify("the layer's blob", expected_digest, source.digest)
        _verify("the layer", expected_diff_id, diff_id)
        return source.digest, diff_id, size


def _verify(what: str, expected: str | None, actual: str, cause: Exception | None = None) -> None:
    if expected is None or expected == actual:
        return
    raise DigestMismatch(what, expected, actual) from cause


def _open_blob(stack: ExitStack, blob: IO[bytes] | Path | str | int) -> IO[bytes]:
    if isinstance(blob, int):
        return stack.enter_context(os.fdopen(blob, "rb", buffering=0, closefd=False))
    if isinstance(blob, (str, Path)):
        return stack.enter_context(Path(blob).open("rb", buffering=0))
    return blob


def _open_directory(stack: ExitStack, directory: Path | str | int) -> int:
    if isinstance(directory, int):
        return directory
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


class _Source:
    """The blob: reads it once, hashes what it reads and passes it on."""

    def __init__(self, stream: IO[bytes], copy_to: Callable[[bytes], object] | None) -> None:
        self._stream = stream
        self._copy_to = copy_to
        self._hash = hashlib.sha256()
        self._head = b""
        self.size = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def peek(self, size: int) -> bytes:
        """Return the first bytes; later reads return them again."""
        while len(self._head) < size and (more := self._fetch(size - len(self._head))):
            self._head += more
        return self._head

    def read(self, size: int = _PIECE) -> bytes:
        """Return the next bytes of the blob, ``b""`` at its end."""
        if self._head:
            head, self._head = self._head, b""
            return head
        return self._fetch(size)

    def drain(self) -> None:
        """Read to the end, so that the digest is that of the whole blob."""
        while self._fetch(_PIECE):
            pass

    def _fetch(self, size: int) -> bytes:
        piece = self._stream.read(size)
        self._hash.update(piece)
        self.size += len(piece)
        if self._copy_to and piece:
            self._copy_to(piece)
        return piece


def _kind(source: _Source, compression: Compression) -> Compression:
    """Look at the magic numbers: RFC 1952 for gzip, RFC 8878 for zstd and its skippable frames."""
    if compression not in ("auto", "none", "gzip", "zstd"):
        msg = f"compression is 'auto', 'none', 'gzip' or 'zstd', not {compression!r}"
        raise ValueError(msg)
    if compression != "auto":
        return compression
    head = source.peek(4)
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head == b"\x28\xb5\x2f\xfd" or (head[1:] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):  # noqa: PLR2004
        return "zstd"
    return "none"


def _gunzip(source: _Source) -> Iterator[bytes]:
    """Decompress one or more gzip members; zero bytes after the last one are padding."""
    data = source.read()
    while data:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while not member.eof:
            if member.needs_input and not data and not (data := source.read()):
                msg = "the gzip stream is cut short"
                raise ImageError(msg)
            plain = member.decompress(data, _PIECE)
            data = b""
            if plain:
                yield plain
        data = member.unused_data or source.read()
        if data[:1] == b"\0":
            data = _after_padding(source, data)


def _after_padding(source: _Source, data: bytes) -> bytes:
    while data and not (data := data.lstrip(b"\0")):
        data = source.read()
    return data


def _unzstd(source: _Source) -> Iterator[memoryview]:
    """Decompress all zstd frames, skipping the skippable ones."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    buffer = memoryview(bytearray(_PIECE))
    with decompressor.stream_reader(
        cast("IO[bytes]", source), read_size=_PIECE, read_across_frames=True, closefd=False
    ) as reader:
        while count := reader.readinto(buffer):
            yield buffer[:count]


def _plain(source: _Source, kind: Compression) -> Iterator[bytes | memoryview]:
    if kind == "none":
        return iter(source.read, b"")
    return _gunzip(source) if kind == "gzip" else _unzstd(source)


def _pump(source: _Source, kind: Compression, taker: Taker | None, limits: LayerLimits) -> tuple[str, int]:
    """Give the whole blob to the taker; return the diff ID and the size of the tar."""
    tar_hash = hashlib.sha256()
    size = 0
    try:
        for piece in _plain(source, kind):
            size += len(piece)
            if size > limits.size or size > source.size * limits.ratio + _SLACK:
                _refuse_bomb(size, source.size, limits)
            tar_hash.update(piece)
            if taker is not None:
                taker.feed(piece)
    except _BROKEN as error:
        msg = f"the layer is not valid {kind}: {error}"
        raise ImageError(msg) from None
    return f"sha256:{tar_hash.hexdigest()}", size


def _refuse_bomb(size: int, blob_size: int, limits: LayerLimits) -> None:
    if size > limits.size:
        msg = f"the layer has more than {limits.size:,} bytes of tar; raise LayerLimits(size=...) if it is trusted"
    else:
        msg = (
            f"the layer is a decompression bomb: {size:,} bytes out of the first {blob_size:,}, more than "
            f"{limits.ratio} to one; raise LayerLimits(ratio=...) if it is trusted"
        )
    raise ImageError(msg)


class _Writer:
    """The C core's side: takes the tar piece by piece and writes files; a context manager."""

    def __init__(self, directory: int, options: Any) -> None:  # noqa: ANN401 - a cffi struct has no static type
        ret = ffi.new("PycLayer **")
        err = new_error()
        if lib.pyc_layer_open(directory, options, ret, err) < 0:
            raise_failure(err, _APPLY)
        self._layer = ret[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        lib.pyc_layer_free(self._layer)
        self._layer = ffi.NULL

    def feed(self, piece: bytes | memoryview) -> None:
        err = new_error()
        if lib.pyc_layer_feed(self._layer, ffi.from_buffer("uint8_t[]", piece), len(piece), err) < 0:
            raise_failure(err, _APPLY)

    def finish(self, _diff_id: str, _size: int) -> Any:  # noqa: ANN401 - a cffi struct has no static type
        err = new_error()
        stats = ffi.new("PycLayerStats *")
        if lib.pyc_layer_finish(self._layer, stats, err) < 0:
            raise_failure(err, _APPLY)
        return stats


def raise_failure(err: Any, tried: str) -> NoReturn:  # noqa: ANN401 - a cffi struct has no static type
    """Turn a failure of the C core into an exception by whose fault it is: the archive's, the store's, the kernel's.

    Args:
        err: a ``PycError *``.
        tried: "cannot ...", what was to be done with the layer.
    """
    step, path, number = read_error(err)
    what = f"{tried}: {step}" + (f" {path!r}" if path else "")
    if number == errno.ENOSYS:
        msg = f"{what}: this kernel has no openat2(2); Linux 5.6 or newer is needed"
        raise Unsupported(msg)
    if number in _STORE:
        raise store_error(what, number)
    msg = f"{what}: {_ARCHIVE.get(number) or os.strerror(number)}"
    raise ImageError(msg)


def store_error(what: str, number: int) -> StoreError:
    """Return the error of something that the machine refused.

    Args:
        what: "cannot ...: ...", what was tried.
        number: of errno(3).
    """
    hint = _STORE.get(number)
    return StoreError(f"{what}: {os.strerror(number)}" + (f"; {hint}" if hint else ""))
