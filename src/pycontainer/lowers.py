"""Layers of a root as overlayfs takes them."""

from __future__ import annotations

from typing import Self

__all__ = ["Lower"]


class Lower(str):
    """The path of a layer's root; of a layer that is mounted nowhere, also what mounts it anew.

    Attributes:
        image: options of fsopen(2) for erofs that show the layer: its source and devices. Empty for a directory. The
            path is then that of a descriptor of this process, ``/proc/self/fd/N/.``.
    """

    __slots__ = ("image",)
    image: tuple[str, ...]

    def __new__(cls, path: str, image: tuple[str, ...] = ()) -> Self:
        """Make one of a path."""
        self = super().__new__(cls, path)
        self.image = image
        return self
