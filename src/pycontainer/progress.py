"""What a transfer of an image tells of itself while it runs."""

from __future__ import annotations

from typing import Literal

import attrs

__all__ = ["Progress", "ProgressState"]

ProgressState = Literal[
    "waiting", "downloading", "uploading", "verifying", "applying", "saving", "exists", "done", "image"
]


@attrs.frozen
class Progress:
    """One event of a transfer, as given to a ``progress`` callback: one call at a time, from any thread.

    Each layer begins with ``waiting`` and ends with ``exists`` or ``done``; ``image`` is the last event of all. While
    bytes move there are some twenty events a second for each layer.

    Attributes:
        state: of the layer: ``waiting`` for its turn; ``downloading`` and being applied as it comes, or ``uploading``;
            ``verifying`` a blob of a layer that is here; ``applying`` from an archive, or ``saving`` to one;
            ``exists``: nothing was to be done; ``done``. Or ``image``: everything is there.
        name: the layer's digest: its diff ID where it is known. Of ``image`` the image's id.
        done: bytes of the layer's blob that have passed. Of ``image`` the bytes of all layers, unpacked.
        size: bytes of the layer's blob; 0 as long as they are not known.
        total_done: bytes of all layers that have passed or did not need to.
        total: bytes of all layers, as far as they are known.
        seconds: since the transfer began.
        moved: bytes of all layers that have passed, without those of layers that exist.
    """

    state: ProgressState
    name: str
    done: int
    size: int
    total_done: int = 0
    total: int = 0
    seconds: float = 0.0
    moved: int = 0

    @property
    def rate(self) -> float:
        """Bytes a second of all layers, since the beginning."""
        return self.moved / self.seconds if self.seconds > 0 else 0.0
