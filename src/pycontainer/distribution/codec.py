"""Compressed streams: what a file is compressed with, reading it plain, and writing a compressed blob."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import zlib
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Literal, NoReturn, Protocol, Self, cast

import zstandard
from isal import igzip, isal_zlib

from pycontainer.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["HEAD", "PackedBlob", "detect", "detect_bytes", "plain_chunks"]

HEAD = 512  # bytes that tell what a stream is
_CHUNK = 1 << 20
_GZIP_WINDOW = 31  # 15 bits and a gzip header, see zlib's deflateInit2
_LEVEL = 2
_ZSTD_LEVEL = 1
_MAX_RATIO = 1000
_SLACK = 64 << 20  # bytes that are fine at any ratio
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
}
_SKIPPABLE = [bytes([number]) for number in range(0x50, 0x60)]  # RFC 8878, section 3.1.2
# isal has an error class of its own, which is not zlib's.
_BROKEN: tuple[type[Exception], ...] = (
    cast("type[Exception]", isal_zlib.error),
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    EOFError,
    ValueError,
)
_MAX_WINDOW = 1 << 27  # zstd: 128 MiB, what `zstd -d` takes without --memory


def detect(fd: int, offset: int = 0) -> str:
    """Return what a file is compressed with, by its first bytes: ``gzip``, ``zstd``, ``bzip2``, ``xz`` or ``""``."""
    return detect_bytes(os.pread(fd, HEAD, offset))


def detect_bytes(head: bytes) -> str:
    """Return what a stream is compressed with, by its first :data:`HEAD` bytes; see :func:`detect`."""
    if head[257:262] == b"ustar":
        return ""  # a tar whose first name looks like something else
    if head[1:4] == b"\x2a\x4d\x18" and head[:1] in _SKIPPABLE:
        return "zstd"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def plain_chunks(path: Path, what: str) -> Iterator[bytes]:
    """Give the content of a file without its compression, piece by piece.

    Args:
        path: the file.
        what: what it is, for the message.

    Raises:
        ImageError: the compressed stream is damaged or cut short.
    """
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        kind = detect(file.fileno())
        try:
            stream = stack.enter_context(_reader(file, kind))
            limit = os.fstat(file.fileno()).st_size * _MAX_RATIO + _SLACK
            while chunk := stream.read(_CHUNK):
                limit -= len(chunk)
                if limit < 0:
                    _refuse_bomb(what)
                yield chunk
        except _BROKEN as error:
            msg = f"{what} is not valid {kind}: {error}"
            raise ImageError(msg) from None
        except OSError as error:
            if error.errno is not None:
                raise
            msg = f"{what} is not valid {kind}: {error}"  # BadGzipFile and its kin
            raise ImageError(msg) from None


def _refuse_bomb(what: str) -> NoReturn:
    msg = f"{what} is a decompression bomb: more than {_MAX_RATIO} bytes for each one of the file"
    raise ImageError(msg)


def _reader(file: IO[bytes], kind: str) -> IO[bytes]:
    if kind == "gzip":
        return cast("IO[bytes]", igzip.open(file, "rb"))  # type: ignore[no-untyped-call]
    if kind == "bzip2":
        return bz2.open(file, "rb")
    if kind == "xz":
        return lzma.open(file, "rb")
    if kind == "zstd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        return decompressor.stream_reader(file, read_across_frames=True)
    return file


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class PackedBlob:
    """A compressed file being written, and its digest.

    The same input in the same pieces gives the same file: the header has no name and no time.

    Args:
        path: the file to make.
        kind: how.
    """

    def __init__(self, path: Path, kind: Literal["gzip", "zstd"]) -> None:
        self._file = path.open("xb", buffering=0)
        self._compressor: _Compressor = (
            isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP_WINDOW)
            if kind == "gzip"
            else zstandard.ZstdCompressor(_ZSTD_LEVEL, write_checksum=True).compressobj()
        )
        self._packed = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self._put(self._compressor.compress(data))

    def _put(self, data: bytes) -> None:
        self._packed.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def finish(self) -> str:
        """End the file and return its digest."""
        self._put(self._compressor.flush())
        self.close()
        return "sha256:" + self._packed.hexdigest()

    def close(self) -> None:
        """Close the file, complete or not."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
