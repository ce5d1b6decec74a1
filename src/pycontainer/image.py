"""An image, as a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pycontainer.model import ImageConfig, Mount
from pycontainer.records import Record

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["Image"]

_ID = "sha256:"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Image(Record):
    """A read-only template for containers, as the store has it; it does not change when the store does.

    Attributes:
        id: digest of its config, ``"sha256:…"``.
        references: its names, the short way: ``"debian:12"``.
        digest: digest of its manifest.
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

    @property
    def short_id(self) -> str:
        """The first twelve digits of the id."""
        return self.id[len(_ID) :][:12]

    def __str__(self) -> str:
        return self.references[0] if self.references else self.short_id
