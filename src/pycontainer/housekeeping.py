"""What a store takes of the disk, what of it can go, and what is wrong with it."""

from __future__ import annotations

from typing import Literal

import attrs

from pycontainer.records import Record

__all__ = ["CheckReport", "DiskUsage", "ImageUsage", "Problem", "ProblemKind", "Pruned", "SpaceUsage"]

ProblemKind = Literal["database", "document", "blob", "tar", "layer", "index.json", "unreferenced"]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Problem(Record):
    """Something in a store that is not as it should be.

    Attributes:
        kind: of what: the ``database``; a ``document``, config or manifest; the ``blob`` of a layer; its plain ``tar``;
            a ``layer`` as it is mounted; ``index.json``; or content that is ``unreferenced``.
        name: digest, diff ID or file.
        detail: what is wrong.
        images: ids of the images that are hurt.
        repaired: it is as it should be now. What is not must be loaded or pulled again.
    """

    kind: ProblemKind
    name: str
    detail: str
    images: tuple[str, ...] = ()
    repaired: bool = False

    def __str__(self) -> str:
        end = " (repaired)" if self.repaired else ""
        return f"{self.kind} {self.name}: {self.detail}{end}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class CheckReport(Record):
    """What a check of a store found.

    Attributes:
        problems: all of them, repaired ones too.
        images: how many were checked.
        size: bytes that were read and hashed.
        dropped: ids of damaged images that were deleted.
    """

    problems: tuple[Problem, ...]
    images: int
    size: int
    dropped: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong any more."""
        return all(problem.repaired for problem in self.problems)


@attrs.frozen(eq=False, repr=False)
class SpaceUsage(Record):
    """What one kind of thing takes of the disk.

    Attributes:
        total: how many there are.
        active: how many of them are in use.
        size: bytes on disk, what several share counted once.
        reclaimable: bytes that would come back if all that are not active were removed.
    """

    total: int
    active: int
    size: int
    reclaimable: int


@attrs.frozen(kw_only=True, eq=False, repr=False)
class ImageUsage(Record):
    """What one image takes of the disk: layers in each form in which they are kept, and documents.

    Attributes:
        id: of the image.
        shared: bytes that other images need too.
        unique: bytes that come back when it is removed.
        containers: how many are made from it.
    """

    id: str
    shared: int
    unique: int
    containers: int

    @property
    def size(self) -> int:
        """All its bytes."""
        return self.shared + self.unique


@attrs.frozen(kw_only=True, eq=False, repr=False)
class DiskUsage(Record):
    """What a store takes of the disk.

    Attributes:
        images: of all images; active ones have containers or run.
        containers: of the writable layers; active ones run.
        volumes: of what containers keep beside those.
        downloads: of interrupted pulls, for the next pull of the same layer.
        unreferenced: bytes of content that no image needs, which the next prune deletes.
        by_image: of each image.
    """

    images: SpaceUsage
    containers: SpaceUsage
    volumes: SpaceUsage
    downloads: SpaceUsage
    unreferenced: int
    by_image: tuple[ImageUsage, ...]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Pruned(Record):
    """What a prune deleted.

    Attributes:
        containers: ids.
        untagged: names of images, the short way.
        images: ids.
        downloads: how many interrupted downloads.
        size: bytes that came back.
    """

    containers: tuple[str, ...] = ()
    untagged: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    downloads: int = 0
    size: int = 0
