"""An image, as a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pycontainer.model import ImageConfig, Mount
from pycontainer.oci.image import History
from pycontainer.records import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from pycontainer.store import LayerRow

__all__ = ["HistoryEntry", "Image", "ImageDetails", "RemovedImages", "history_entries"]

_ID = "sha256:"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Image(Record):
    """A read-only template for containers, as the store has it; it does not change when the store does.

    Attributes:
        id: digest of its config, ``"sha256:…"``.
        references: its names, the short way: ``"debian:12"``.
        digest: digest of its manifest.
        repo_digests: what it was pulled, pushed or loaded as: ``"debian@sha256:…"``, of its manifest or its index.
        config: how containers of it run unless told otherwise.
        architecture: as Go names it, e.g. ``"amd64"``.
        os: ``"linux"``.
        variant: of the architecture, e.g. ``"v8"``.
        created: when it was made, where it tells.
        size: bytes of its layers, unpacked.
        layers: the diff IDs of its layers, the lowest first.
        mounts: what is bound into every container of it; only the host image has any.
    """

    id: str
    references: tuple[str, ...]
    digest: str
    config: ImageConfig
    architecture: str
    os: str
    variant: str
    created: datetime | None
    size: int
    layers: tuple[str, ...]
    mounts: tuple[Mount, ...] = ()
    repo_digests: tuple[str, ...] = ()

    @property
    def labels(self) -> Mapping[str, str]:
        """Free text by name, from its config."""
        return self.config.labels

    @property
    def short_id(self) -> str:
        """The first twelve digits of the id."""
        return self.id[len(_ID) :][:12]

    def __str__(self) -> str:
        return self.references[0] if self.references else self.short_id


@attrs.frozen(kw_only=True, eq=False, repr=False)
class HistoryEntry(Record):
    """One step of the making of an image.

    Attributes:
        created: when, where it tells.
        created_by: the command.
        comment: free text.
        layer: the diff ID of the layer that it made, ``None`` when it changed the configuration only.
        size: bytes of that layer, unpacked.
    """

    created: datetime | None
    created_by: str
    comment: str
    layer: str | None
    size: int


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ImageDetails(Record):
    """Everything that is known of an image, its documents as they are.

    Attributes:
        image: the image.
        manifest: the bytes of its manifest.
        manifest_type: the media type of that.
        config: the bytes of its config.
        indexes: the bytes of the indexes that led to it, by digest.
        further: digests of all further blobs that are kept for it, such as those indexes and attestations.
        author: who made it.
        comment: of the last step of its making.
        added: when it came into the store.
        shared_size: bytes of layers that other images have too, unpacked.
    """

    image: Image
    manifest: bytes
    manifest_type: str
    config: bytes
    indexes: Mapping[str, bytes]
    further: tuple[str, ...]
    author: str
    comment: str
    added: datetime
    shared_size: int

    @property
    def unique_size(self) -> int:
        """Bytes of layers that no other image has, unpacked."""
        return self.image.size - self.shared_size


@attrs.frozen(kw_only=True, eq=False, repr=False)
class RemovedImages(Record):
    """What a removal took away.

    Attributes:
        untagged: names, the short way.
        deleted: ids of images.
        size: bytes of layers that no image needs any more, unpacked.
    """

    untagged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    size: int = 0


def history_entries(steps: Sequence[History], layers: Sequence[LayerRow]) -> tuple[HistoryEntry, ...]:
    """Return the history of an image, the last step first.

    Args:
        steps: of its config; they may tell of fewer layers than there are, or of more.
        layers: the lowest first.
    """
    untold = len(layers) - sum(not step.empty_layer for step in steps)
    rest = iter(layers)
    found = []
    for step in (*steps, *[History()] * untold):
        layer = None if step.empty_layer else next(rest, None)
        found.append(
            HistoryEntry(
                created=step.created,
                created_by=step.created_by,
                comment=step.comment,
                layer=layer.diff_id if layer is not None else None,
                size=layer.size if layer is not None else 0,
            )
        )
    return tuple(reversed(found))
