"""What archives of every format have in common: documents that are checked, names that are understood."""

from __future__ import annotations

import functools
import hashlib
import re
from typing import TYPE_CHECKING

import attrs

from pycontainer.distribution.sources import LayerSource
from pycontainer.errors import DigestMismatch, ImageError, InvalidReference
from pycontainer.names import parse_reference
from pycontainer.oci.image import MAX_CONFIG, ImageDocument, parse_config
from pycontainer.oci.platforms import Platform, fitting, normalize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pycontainer.distribution.archive import Archive
    from pycontainer.distribution.sources import Source

__all__ = [
    "Contents",
    "check_algorithm",
    "check_digest",
    "check_platform",
    "clean_name",
    "image_document",
    "known_layer_type",
    "layer_source",
    "whole_references",
]

_LAYER_TYPE = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:v1|nondistributable\.v1)\.tar(?:\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(?:diff|foreign\.diff)\.tar(?:\.gzip|\.zstd)?)"
)


@attrs.frozen
class Contents:
    """What an archive holds.

    Attributes:
        sources: the images, each once.
        others: what is no image that can be run, by what the archive calls it, and why.
    """

    sources: tuple[Source, ...]
    others: Mapping[str, str] = attrs.field(factory=dict)


def known_layer_type(media_type: str) -> bool:
    """Tell whether a layer of this type can be unpacked."""
    return _LAYER_TYPE.fullmatch(media_type) is not None


def whole_references(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the whole references that names in an archive mean, those that are references with a tag."""
    found: dict[str, None] = {}
    for name in names:
        try:
            reference = parse_reference(name)
        except InvalidReference:
            continue
        if reference.digest is None:
            found[str(reference)] = None
    return tuple(found)


def clean_name(name: str) -> str:
    """Return the name of a file, which stays inside a directory that is read as an archive.

    Raises:
        ImageError: it leads out.
    """
    if name.startswith("/") or ".." in name.split("/"):
        msg = f"the archive names a file outside itself: {name!r}"
        raise ImageError(msg)
    return name.removeprefix("./")


def image_document(config: bytes, what: str, layers: int) -> ImageDocument:
    """Return a config understood, for an image of so many layers.

    Raises:
        ImageError: it is not valid, of another number of layers, or of none.
    """
    # Layer counts are compared before anything is unpacked: what is left over would be lost in silence.
    document = parse_config(config, what, limit=MAX_CONFIG)
    if len(document.diff_ids) != layers:
        msg = f"{what} names {len(document.diff_ids)} layers, the manifest {layers}"
        raise ImageError(msg)
    if not layers:
        msg = f"{what}: the image has no layers, so there is nothing to run"
        raise ImageError(msg)
    for diff_id in document.diff_ids:
        check_algorithm(diff_id, what)
    return document


def check_algorithm(digest: str, what: str) -> None:
    """Refuse digests that name neither layers nor documents here.

    Raises:
        ImageError: it is one of those.
    """
    if not digest.startswith("sha256:"):
        msg = f"{what} uses {digest.partition(':')[0]} digests; only sha256 is supported"
        raise ImageError(msg)


def check_digest(data: bytes, digest: str, what: str) -> None:
    """Verify a document.

    Raises:
        DigestMismatch: it is another one.
    """
    check_algorithm(digest, what)
    actual = "sha256:" + hashlib.sha256(data).hexdigest()
    if actual != digest:
        raise DigestMismatch(what, digest, actual)


def check_platform(document: ImageDocument, wanted: Platform | None, what: str) -> None:
    """Refuse an image for another platform than the one that was asked for.

    Raises:
        ImageError: it is that.
    """
    if wanted is None:
        return
    known = normalize(attrs.evolve(document.platform, os_version="", os_features=()))
    if known not in fitting(wanted):
        msg = f"{what} is for {document.platform}, not for {wanted}"
        raise ImageError(msg)


def layer_source(
    archive: Archive,
    name: str,
    diff_id: str,
    *,
    digest: str | None = None,
    size: int | None = None,
    media_type: str | None = None,
) -> LayerSource:
    """Return a layer of an archive.

    Args:
        archive: has it.
        name: of the file in there.
        diff_id: of its plain tar.
        digest: of the file, where it is promised.
        size: likewise.
        media_type: likewise.
    """
    return LayerSource(
        name=f"the layer {digest or name}",
        open=functools.partial(archive.open, name),
        diff_id=diff_id,
        digest=digest,
        size=size,
        media_type=media_type,
    )
