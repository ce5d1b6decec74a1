"""Where an archive is written to: files, pipes, streams of Python, with compression or without.

What is on disk goes from file to file within the kernel: copy_file_range(2), sendfile(2).
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Protocol

import zstandard
from isal import isal_zlib

from pycontainer.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DescriptorSink", "PackedSink", "Packing", "Sink", "StreamSink", "open_sink", "replacing"]

Packing = Literal["gzip", "zstd"]
Advance = Callable[[int], object]

_PIECE = 1 << 20
_COPY = 1 << 24  # bytes in one call, so that signals are seen and progress is told
_GZIP_WINDOW = 31  # 15 bits and a gzip header, see zlib's deflateInit2
_GZIP_LEVEL = 2
_ZSTD_LEVEL = 3
_ZSTD_THREADS = 2  # the output is the same for any number above none
_UNLINKED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)  # from file systems without O_TMPFILE
_ELSEWHERE = (errno.EXDEV, errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY, errno.EPERM)


class Sink(Protocol):
    """Takes bytes, and parts of files."""

    def write(self, data: bytes) -> None:
        """Take the next bytes, all of them."""

    def copy(self, fd: int, size: int, advance: Advance) -> None:
        """Take so many bytes of a file, from its beginning.

        Args:
            fd: the file.
            size: how many bytes.
            advance: is told how many more were taken.

        Raises:
            StoreError: it has fewer.
        """

    def finish(self) -> None:
        """Write what is still held back."""


def _ended(size: int) -> StoreError:
    return StoreError(f"a blob of the store is {size} bytes shorter than it was; load the image again")


class DescriptorSink:
    """An open file, pipe or socket.

    Args:
        fd: stays open.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._ranges = stat.S_ISREG(os.fstat(fd).st_mode)

    def write(self, data: bytes) -> None:
        """Take the next bytes; see :class:`Sink`."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def copy(self, fd: int, size: int, advance: Advance) -> None:
        """Take a file; see :class:`Sink`."""
        offset = 0
        while offset < size:
            count = self._copy_some(fd, offset, min(_COPY, size - offset))
            if count == 0:
                raise _ended(size - offset)
            offset += count
            advance(count)

    def _copy_some(self, fd: int, offset: int, size: int) -> int:
        if self._ranges:
            try:
                return os.copy_file_range(fd, self._fd, size, offset)
            except OSError as error:
                if error.errno not in _ELSEWHERE:
                    raise
                self._ranges = False  # two file systems, or one that has its own way
        try:
            return os.sendfile(self._fd, fd, offset, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
        data = os.pread(fd, min(size, _PIECE), offset)  # files opened for appending, some devices
        self.write(data)
        return len(data)

    def finish(self) -> None:
        """Do nothing: nothing is held back."""


class StreamSink:
    """A binary stream of Python.

    Args:
        stream: stays open.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        """Take the next bytes; see :class:`Sink`."""
        view = memoryview(data)
        while view:
            # A raw stream takes as much as it likes, None when it would have to wait.
            count = self._stream.write(view)
            if count is None:
                raise BlockingIOError(errno.EAGAIN, "the stream does not wait for its reader")
            view = view[count:]

    def copy(self, fd: int, size: int, advance: Advance) -> None:
        """Take a file; see :class:`Sink`."""
        _read_all(fd, size, self, advance)

    def finish(self) -> None:
        """Flush the stream."""
        self._stream.flush()


class _Packer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class PackedSink:
    """Compresses what goes to another sink; the same input gives the same output.

    Args:
        sink: gets the compressed bytes.
        packing: the format.
    """

    def __init__(self, sink: Sink, packing: Packing) -> None:
        self._sink = sink
        self._packer: _Packer
        if packing == "gzip":
            self._packer = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_WINDOW)
        else:
            self._packer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, threads=_ZSTD_THREADS).compressobj()

    def write(self, data: bytes) -> None:
        """Take the next bytes; see :class:`Sink`."""
        self._sink.write(self._packer.compress(data))

    def copy(self, fd: int, size: int, advance: Advance) -> None:
        """Take a file; see :class:`Sink`."""
        _read_all(fd, size, self, advance)

    def finish(self) -> None:
        """End the compressed stream."""
        self._sink.write(self._packer.flush())
        self._sink.finish()


def _read_all(fd: int, size: int, sink: Sink, advance: Advance) -> None:
    offset = 0
    while offset < size:
        data = os.pread(fd, min(_PIECE, size - offset), offset)
        if not data:
            raise _ended(size - offset)
        sink.write(data)
        offset += len(data)
        advance(len(data))


@contextmanager
def open_sink(target: Path | IO[bytes]) -> Iterator[Sink]:
    """Give the sink that writes to a place.

    Args:
        target: a path, see :func:`replacing`; or a binary stream, which stays open.
    """
    if isinstance(target, Path):
        with replacing(target) as fd:
            yield DescriptorSink(fd)
    elif isinstance(target, io.BufferedWriter | io.FileIO):  # others may have a descriptor and mean another one
        target.flush()
        yield DescriptorSink(target.fileno())
    else:
        yield StreamSink(target)


@contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Give a new file that takes a place when the block ends well; of one that does not, nothing is left.

    Until then it has no name where the file system can do that, so that a kill leaves nothing either. A pipe or a
    device is written to as it is.

    Args:
        path: the place; a file that is there is replaced, at once and whole. Links are followed.

    Raises:
        OSError: it cannot be written.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):  # before links are followed: /dev/stdout leads to no path
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # EISDIR for a directory
            try:
                yield fd
            finally:
                os.close(fd)
            return
    path = path.resolve()
    temporary = path.with_name(f".{path.name[:200]}.{os.urandom(8).hex()}.tmp")
    fd, named = _open_new(temporary)
    try:
        yield fd
        if named or not _link(fd, path):
            named = named or _link(fd, temporary)
            temporary.rename(path)
    except BaseException as error:
        if named:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)  # a full disk does not say which
        raise
    finally:
        os.close(fd)


def _open_new(temporary: Path) -> tuple[int, bool]:
    """Open a new file; return whether it has a name."""
    try:
        return os.open(temporary.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666), False
    except OSError as error:
        if error.errno not in _UNLINKED or not temporary.parent.is_dir():
            raise
    return os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666), True


def _link(fd: int, path: Path) -> bool:
    """Give a file without a name one, unless that is taken."""
    # Only with a directory's descriptor is it linkat(2) with AT_SYMLINK_FOLLOW, see open(2), O_TMPFILE.
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{fd}", path.name, src_dir_fd=directory, dst_dir_fd=directory)
    except FileExistsError:
        return False
    finally:
        os.close(directory)
    return True
