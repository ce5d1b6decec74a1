"""Content by digest: files named by their hash, complete and verified before anybody sees them."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, BinaryIO

from pycontainer.errors import DigestMismatch, ImageError, NotFound, StoreError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Blobs"]

_CHUNK = 1 << 20


class Blobs:
    """The blobs of a store, laid out as an OCI image layout wants: ``blobs/<algorithm>/<hex>``.

    Args:
        directory: the ``blobs`` directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, digest: str) -> Path:
        """Return where a blob is, or would be."""
        algorithm, _, encoded = digest.partition(":")
        if algorithm not in {"sha256", "sha512"}:
            msg = f"content named by {algorithm} is not supported, only by sha256 and sha512: {digest}"
            raise ImageError(msg)
        return self._directory / algorithm / encoded

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).exists()

    def size(self, digest: str) -> int:
        """Return how many bytes a blob has.

        Raises:
            NotFound: there is no such blob.
        """
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise NotFound(self._missing(digest)) from None

    def _missing(self, digest: str) -> str:
        return f"no blob {digest} in the store {self._directory.parent}"

    def read(self, digest: str, *, limit: int) -> bytes:
        """Return the bytes of a small blob, verified again.

        Args:
            digest: which one.
            limit: bytes allowed.

        Raises:
            NotFound: there is no such blob.
            DigestMismatch: it was changed on disk.
            ImageError: it is larger than the limit.
        """
        try:
            with self.path(digest).open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise NotFound(self._missing(digest)) from None
        if len(data) > limit:
            msg = f"the blob {digest} is larger than the {limit} bytes that are accepted for it"
            raise ImageError(msg)
        _verify(data, digest, f"the blob in {self._directory.parent}")
        return data

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading.

        Raises:
            NotFound: there is no such blob.
        """
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            raise NotFound(self._missing(digest)) from None

    def write(self, data: bytes, workspace: Path, digest: str | None = None) -> str:
        """Keep a small blob and return its digest.

        Args:
            data: all of it.
            workspace: a directory of the caller's in the store, for the unfinished file.
            digest: what it should have.

        Raises:
            DigestMismatch: it has another one.
        """
        if digest is None:
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
        else:
            _verify(data, digest, "the content")
        if digest not in self:
            temporary = workspace / digest.replace(":", "-")
            temporary.write_bytes(data)
            self.publish(temporary, digest)
        return digest

    def publish(self, temporary: Path, digest: str) -> None:
        """Make a complete, verified file visible under its digest.

        Args:
            temporary: the file, in the store; it is gone afterwards.
            digest: what was computed over it.
        """
        target = self.path(digest)
        temporary.chmod(0o644)
        try:
            temporary.rename(target)
        except FileNotFoundError:
            target.parent.mkdir(exist_ok=True)
            temporary.rename(target)

    def list(self) -> dict[str, int]:
        """Return the size in bytes of every blob, by digest."""
        found: dict[str, int] = {}
        for algorithm in os.scandir(self._directory):
            if algorithm.is_dir(follow_symlinks=False):
                with os.scandir(algorithm) as entries:
                    for entry in entries:
                        found[f"{algorithm.name}:{entry.name}"] = entry.stat(follow_symlinks=False).st_size
        return found

    def remove(self, digest: str) -> None:
        """Delete a blob; no error when it is gone already."""
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            msg = f"cannot delete the blob {digest}: {error.strerror}"
            raise StoreError(msg) from error


def _verify(data: bytes, digest: str, what: str) -> None:
    algorithm, _, encoded = digest.partition(":")
    if algorithm not in {"sha256", "sha512"}:
        msg = f"content named by {algorithm} is not supported, only by sha256 and sha512: {digest}"
        raise ImageError(msg)
    actual = hashlib.new(algorithm, data).hexdigest()
    if actual != encoded:
        raise DigestMismatch(what, digest, f"{algorithm}:{actual}")
