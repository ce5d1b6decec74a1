"""An image on its way into the store, wherever it comes from: what archives and registries give to a transfer."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Literal, Protocol

import attrs

from pycontainer.oci.image import CONFIG

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from pycontainer.oci.image import ImageDocument

__all__ = ["BlobSource", "ByteStream", "LayerSource", "Source"]


class ByteStream(Protocol):
    """The bytes of a blob, read once from the beginning to the end, then closed.

    A stream that keeps what it reads, so that an interrupted one can be resumed, has an attribute ``kept``: the path of
    a file in the file system of the store that has the whole blob once everything was read. The transfer then takes
    that file instead of writing one of its own, and deletes it when the blob turns out not to be what it should be.
    """

    def read(self, size: int, /) -> bytes:
        """Return at most so many of the next bytes, ``b""`` at the end."""

    def close(self) -> None:
        """Let go of what it reads from."""


@attrs.frozen(kw_only=True)
class BlobSource:
    """A blob to bring in.

    Attributes:
        name: what to call it in messages, such as its path in an archive.
        open: gives its bytes; called once, from any thread, and not when the store has it.
        digest: of the blob, where it is promised.
        size: of the blob in bytes, likewise.
        media_type: likewise.
    """

    name: str
    open: Callable[[], ByteStream | IO[bytes]]
    digest: str | None = None
    size: int | None = None
    media_type: str | None = None

    @classmethod
    def document(cls, data: bytes, digest: str) -> Self:
        """Return a blob that is in memory.

        Args:
            data: all of it.
            digest: what it should have.
        """
        return cls(name=digest, open=lambda: io.BytesIO(data), digest=digest, size=len(data))


@attrs.frozen(kw_only=True)
class LayerSource(BlobSource):
    """A layer to bring in.

    Attributes:
        diff_id: digest of the plain tar stream.
        state: how its progress is called while its bytes come.
    """

    diff_id: str
    state: Literal["downloading", "applying"] = "applying"


@attrs.frozen(kw_only=True)
class Source:
    """An image in an archive or a registry, its documents read and checked, its layers not yet.

    Attributes:
        config: the bytes of its config.
        config_type: the media type of the config.
        document: the same, understood.
        layers: the lowest first.
        references: whole references that the archive gives it.
        labels: what else the archive calls it, to choose it by.
        manifest: the bytes of its manifest, where there is one.
        media_type: of that manifest.
        blobs: what else to keep for it, byte for byte, each with its digest: the index that led to it, attestations.
        digests: ``repository@digest`` by which it can be fetched again, of the manifest or of one of the blobs.
    """

    config: bytes
    document: ImageDocument
    layers: tuple[LayerSource, ...]
    config_type: str = CONFIG
    references: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    manifest: bytes | None = None
    media_type: str = ""
    blobs: tuple[BlobSource, ...] = ()
    digests: tuple[str, ...] = ()


def kept_file(stream: ByteStream | IO[bytes]) -> Path | None:
    """Return the file in which a stream keeps what it reads, see :class:`ByteStream`."""
    path: Path | None = getattr(stream, "kept", None)
    return path
