"""What the tables of a store's database hold, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import attrs

from pycontainer.records import Record

if TYPE_CHECKING:
    from pycontainer.model import ContainerState

__all__ = ["ContainerRow", "Content", "ImageRow", "LayerRow"]


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(text.split()) if text else ()


@attrs.frozen(eq=False, repr=False)
class ImageRow(Record):
    """One image, as recorded.

    Attributes:
        id: digest of its config.
        digest: digest of its manifest.
        media_type: of the manifest.
        manifest_size: bytes.
        added: when, in seconds since the epoch.
        mounts: JSON text.
        references: its names, whole, in order; given as one text with spaces.
        merged: the snapshot that shows all its layers at once, or ``""``.
        digests: ``repository@digest`` that it was pulled, pushed or loaded as; given as one text with spaces.
    """

    id: str
    digest: str
    media_type: str
    manifest_size: int
    added: float
    mounts: str
    references: tuple[str, ...] = attrs.field(converter=_split)
    merged: str = ""
    digests: tuple[str, ...] = attrs.field(default="", converter=_split)


@attrs.frozen(eq=False, repr=False)
class LayerRow(Record):
    """One layer of an image.

    Attributes:
        diff_id: digest of the plain tar stream.
        digest: digest of the blob.
        size: bytes, unpacked.
        snapshot: where it is, ready to be mounted: the diff ID, or, where the layers below matter, a chain ID.
        implied: how many directories it needs and does not describe; -1 when nobody counted.
        hides_all: nothing of the layers below it is seen.
    """

    diff_id: str
    digest: str
    size: int
    snapshot: str = attrs.field(default=attrs.Factory(lambda self: self.diff_id, takes_self=True))
    implied: int = 0
    hides_all: bool = attrs.field(default=False, converter=bool)


@attrs.frozen(eq=False, repr=False)
class ContainerRow(Record):
    """One container, as recorded.

    Attributes:
        id: 64 hexadecimal digits.
        name: unique in the store.
        image_id: the image, which stays as long as the container does.
        created: when, in seconds since the epoch.
        document: JSON text: what it is to run, and how.
        state: ``"created"``, ``"running"`` or ``"exited"``.
        exit_code: of the last run, where it is known.
        started: when the last run began.
        finished: when it ended.
    """

    id: str
    name: str
    image_id: str
    created: float
    document: str
    state: ContainerState = "created"
    exit_code: int | None = None
    started: float | None = None
    finished: float | None = None


class Content(NamedTuple):
    """What the images of a store need on disk.

    Attributes:
        blobs: digests of blobs, all of which should be there.
        snapshots: of layers, and of images that have one for all their layers; all should be there.
        tars: diff IDs of layers: blobs too where a layer is kept as its plain tar.
    """

    blobs: set[str]
    snapshots: set[str]
    tars: set[str]
