"""Find the images in an archive: OCI image layouts, and through :mod:`~.docker_archive` what docker and podman save.

``docker save`` of version 25 and later writes both formats into one file; then the OCI side is read, whose blobs have
digests. Only documents are read here, and every one is checked.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

import attrs

from pycontainer.distribution.archive import Archive, DirectoryArchive, FileRange, TarArchive
from pycontainer.distribution.codec import detect, plain_chunks
from pycontainer.distribution.contents import (
    Contents,
    check_algorithm,
    check_digest,
    check_platform,
    image_document,
    known_layer_type,
    layer_source,
    whole_references,
)
from pycontainer.distribution.docker_archive import docker_sources, legacy_sources
from pycontainer.distribution.layer import LayerLimits
from pycontainer.distribution.sources import BlobSource, LayerSource, Source
from pycontainer.distribution.transfer import host_platform
from pycontainer.errors import ImageError
from pycontainer.names import parse_reference
from pycontainer.oci.image import (
    CONFIG,
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    MAX_CONFIG,
    MAX_DOCUMENT,
    REF_NAME,
    Descriptor,
    Manifest,
    parse_index,
    parse_json,
    parse_manifest_or_index,
)
from pycontainer.oci.platforms import Platform, choose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


__all__ = ["INDEX_OF", "open_archive", "read_contents"]

INDEX_OF = "io.pycontainer.image.index"  # annotation of a manifest: the index that led to it, whose blob is there too
_CONTAINERD_NAME = "io.containerd.image.name"
_ATTESTS = "vnd.docker.reference.type"
_ATTESTED = "vnd.docker.reference.digest"
_MAX_INDEXES = 4  # nested
_MANIFESTS = (MANIFEST, DOCKER_MANIFEST)
_INDEXES = (INDEX, DOCKER_LIST)


def read_contents(
    archive: Archive, path: str, *, platform: Platform | None = None, limits: LayerLimits | None = None
) -> Contents:
    """Return the images of an archive, each once, whatever the number of its names.

    Args:
        archive: the files.
        path: its name, for messages.
        platform: of images for several platforms, the one to take; of the others, refuse those that do not fit. This
            host's when not given; then images for one other platform are taken too.
        limits: what is too much for a layer.

    Raises:
        ImageError: it is no image archive, or its documents are missing, damaged or hostile.
    """
    if archive.has("oci-layout") and archive.has("index.json"):
        contents = _Layout(archive, path, platform).contents()
    elif archive.has("manifest.json"):
        contents = Contents(tuple(docker_sources(archive, path, platform)))
    elif archive.has("repositories"):
        contents = Contents(tuple(legacy_sources(archive, path, platform, limits)))
    else:
        msg = (
            f"{path} is no image archive: it has neither oci-layout and index.json nor manifest.json. "
            "Is it a root file system? Then use import_rootfs"
        )
        raise ImageError(msg)
    if not contents.sources:
        raise ImageError(f"{path} holds no image" + "".join(f"; {reason}" for reason in contents.others.values()))
    return attrs.evolve(contents, sources=_merged(contents.sources))


def _merged(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Join what is one image under several names."""
    found: dict[tuple[bytes, bytes | None], Source] = {}
    for source in sources:
        key = (source.config, source.manifest)
        known = found.setdefault(key, source)
        blobs = {blob.digest: blob for blob in (*known.blobs, *source.blobs)}
        found[key] = attrs.evolve(
            known,
            references=tuple(dict.fromkeys(known.references + source.references)),
            labels=tuple(dict.fromkeys(known.labels + source.labels)),
            digests=tuple(dict.fromkeys(known.digests + source.digests)),
            blobs=tuple(blobs.values()),
        )
    return tuple(found.values())


class _NoImage(Exception):
    """What was found is something else; the text says what."""


class _Layout:
    """An OCI image layout.

    Args:
        archive: the files.
        path: its name, for messages.
        platform: to choose; this host's when not given.
    """

    def __init__(self, archive: Archive, path: str, platform: Platform | None) -> None:
        self._archive = archive
        self._path = path
        self._asked = platform
        self._wanted = platform or host_platform()
        self._subjects: dict[str, str | None] = {}

    def contents(self) -> Contents:
        self._check_version()
        what = f"{self._path}: index.json"
        index = parse_index(self._archive.read("index.json", MAX_DOCUMENT), what)
        images = [entry for entry in index.manifests if _may_be_image(entry)]
        beside = [entry for entry in index.manifests if not _may_be_image(entry)]
        sources: list[Source] = []
        others: dict[str, str] = {}
        for entry in self._one_of_each(images):
            try:
                sources.append(self._source(entry, beside))
            except _NoImage as reason:
                others |= dict.fromkeys(_names(entry) or (entry.digest,), str(reason))
        for entry in beside:
            kind = entry.artifact_type or entry.media_type
            for name in _names(entry):
                others.setdefault(name, f"{name} in {self._path} is no container image but {kind!r}")
        return Contents(tuple(sources), others)

    def _check_version(self) -> None:
        layout = parse_json(self._archive.read("oci-layout", MAX_DOCUMENT), f"{self._path}: oci-layout")
        version = layout.get("imageLayoutVersion") if isinstance(layout, dict) else None
        if not isinstance(version, str) or not version.startswith("1."):
            msg = f"{self._path}: the layout is of version {version!r}, this reads 1.x"
            raise ImageError(msg)

    def _one_of_each(self, entries: Sequence[Descriptor]) -> list[Descriptor]:
        """Choose among entries that are one image for several platforms, listed on top under one name or none."""
        groups: dict[tuple[str, ...], list[Descriptor]] = {}
        for entry in entries:
            groups.setdefault(_names(entry), []).append(entry)
        found: list[Descriptor] = []
        for names, group in groups.items():
            platforms = {entry.platform for entry in group}
            one = len(platforms) == len(group) > 1 and None not in platforms and (names or len(groups) == 1)
            found += [choose(group, self._wanted, self._what(names))] if one else group
        return found

    def _what(self, names: tuple[str, ...]) -> str:
        return f"{self._path}: {names[0]}" if names else self._path

    # ── documents ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _blob(self, descriptor: Descriptor, what: str, limit: int = MAX_DOCUMENT) -> bytes:
        check_algorithm(descriptor.digest, what)
        if descriptor.size > limit:
            msg = f"{what} has {descriptor.size} bytes, at most {limit} are accepted"
            raise ImageError(msg)
        data = self._archive.read(_blob_name(descriptor.digest), limit)
        check_digest(data, descriptor.digest, what)
        if len(data) != descriptor.size:
            msg = f"{what} has {len(data)} bytes, its descriptor says {descriptor.size}"
            raise ImageError(msg)
        return data

    def _source(self, entry: Descriptor, beside: Sequence[Descriptor]) -> Source:
        """Follow an entry to the manifest for the platform, keeping what is on the way and what refers to it."""
        names = _names(entry)
        references = whole_references(_full(names))
        top = entry.annotations.get(INDEX_OF, entry.digest)
        kept: dict[str, BlobSource] = {}
        passed: list[Descriptor] = []
        targets: set[str] = set()
        for _ in range(_MAX_INDEXES):
            what = f"{self._path}: the manifest {entry.digest}"
            data = self._blob(entry, what)
            document = parse_manifest_or_index(data, what)
            targets.add(entry.digest)
            if isinstance(document, Manifest):
                break
            kept[entry.digest] = BlobSource.document(data, entry.digest)
            passed += document.manifests
            entry = choose(self._present(document.manifests), self._wanted, self._what(names))
        else:
            msg = f"{self._path}: indexes are nested deeper than {_MAX_INDEXES} levels"
            raise ImageError(msg)
        source = self._image(document, data, names)
        if top not in targets:
            top = self._index_of(top, entry.digest, kept, passed, targets)
        for other in passed:
            if other.media_type not in (*_MANIFESTS, *_INDEXES) and self._has(other):
                kept.setdefault(other.digest, self._further(other))  # of a kind that nobody here knows
        for other in (*passed, *beside):
            if other.digest not in targets and not _names_a_platform(other):
                self._keep(other, targets, kept)
        own = {document.config.digest, entry.digest, *(layer.digest for layer in document.layers)}
        digests = {f"{parse_reference(name).name}@{digest}" for name in references for digest in (top, entry.digest)}
        return attrs.evolve(
            source,
            references=references,
            blobs=tuple(blob for digest, blob in kept.items() if digest not in own),
            digests=tuple(sorted(digests)),
        )

    def _present(self, entries: Sequence[Descriptor]) -> list[Descriptor]:
        """Return the images that the archive has: one saved for one platform lists all of them."""
        return [entry for entry in entries if _may_be_image(entry) and self._archive.has(_blob_name(entry.digest))]

    def _image(self, manifest: Manifest, data: bytes, names: tuple[str, ...]) -> Source:
        what = f"{self._path}: the image {names[0] if names else manifest.config.digest}"
        if manifest.config.media_type not in (CONFIG, DOCKER_CONFIG):
            kind = manifest.artifact_type or manifest.config.media_type
            msg = f"{what} is no container image: its config is {kind!r}"
            raise _NoImage(msg)
        for layer in manifest.layers:
            if not known_layer_type(layer.media_type):
                msg = f"{what} has a layer of type {layer.media_type!r}, which cannot be unpacked"
                raise _NoImage(msg)
            check_algorithm(layer.digest, what)
        config = self._blob(manifest.config, f"{what}: its config", MAX_CONFIG)
        document = image_document(config, f"{what}: its config", len(manifest.layers))
        check_platform(document, self._asked, what)
        return Source(
            config=config,
            config_type=manifest.config.media_type,
            document=document,
            layers=tuple(
                self._layer(layer, diff_id) for layer, diff_id in zip(manifest.layers, document.diff_ids, strict=True)
            ),
            labels=names,
            manifest=data,
            media_type=manifest.media_type,
        )

    def _layer(self, layer: Descriptor, diff_id: str) -> LayerSource:
        source = layer_source(
            self._archive,
            _blob_name(layer.digest),
            diff_id,
            digest=layer.digest,
            size=layer.size,
            media_type=layer.media_type,
        )
        if self._archive.has(_blob_name(layer.digest)):
            return source
        return attrs.evolve(source, open=functools.partial(self._missing, layer))

    def _missing(self, layer: Descriptor) -> FileRange:
        if layer.urls or "foreign" in layer.media_type or "nondistributable" in layer.media_type:
            where = f" from {' or '.join(layer.urls[:3])}" if layer.urls else ""
            msg = (
                f"{self._path}: the layer {layer.digest} is not in the archive, as its licence does not allow that: it "
                f"would have to be fetched{where}, which is not done; load an archive that has it"
            )
            raise ImageError(msg)
        msg = f"{self._path} has no blob {layer.digest}: the archive is incomplete"
        raise ImageError(msg)

    # ── what is kept beside an image ──────────────────────────────────────────────────────────────────────────────

    def _index_of(
        self,
        digest: str,
        manifest: str,
        kept: dict[str, BlobSource],
        passed: list[Descriptor],
        targets: set[str],
    ) -> str:
        """Keep the index that an image once came by, if the archive has it; return what the image can be fetched by."""
        pending = [digest]
        found: dict[str, BlobSource] = {}
        entries: list[Descriptor] = []
        for name in pending:
            if not self._archive.has(_blob_name(name)) or name in found or len(found) == _MAX_INDEXES:
                continue
            what = f"{self._path}: the index {name}"
            data = self._archive.read(_blob_name(name), MAX_DOCUMENT)
            check_digest(data, name, what)
            index = parse_index(data, what)
            found[name] = BlobSource.document(data, name)
            entries += index.manifests
            pending += [entry.digest for entry in index.manifests if entry.media_type in _INDEXES]
        if manifest not in {entry.digest for entry in entries}:
            return manifest
        kept |= found
        passed += entries
        targets |= found.keys()
        return digest

    def _keep(self, entry: Descriptor, targets: set[str], kept: dict[str, BlobSource]) -> None:
        """Keep an artifact that is about an image: a signature, an attestation of how it was built."""
        if entry.digest in kept or not self._has(entry) or self._subject(entry) not in targets:
            return
        what = f"{self._path}: the manifest {entry.digest}"
        data = self._blob(entry, what)
        document = parse_manifest_or_index(data, what)
        kept[entry.digest] = BlobSource.document(data, entry.digest)
        for part in (document.config, *document.layers) if isinstance(document, Manifest) else ():
            if part.digest not in kept and self._has(part):
                kept[part.digest] = self._further(part)

    def _subject(self, entry: Descriptor) -> str | None:
        """Return the digest of what an artifact is about."""
        if entry.digest not in self._subjects:
            found = entry.annotations.get(_ATTESTED)
            if found is None and entry.media_type in _MANIFESTS:
                what = f"{self._path}: the manifest {entry.digest}"
                document = parse_manifest_or_index(self._blob(entry, what), what)
                if isinstance(document, Manifest) and document.subject is not None:
                    found = document.subject.digest
            self._subjects[entry.digest] = found
        return self._subjects[entry.digest]

    def _has(self, entry: Descriptor) -> bool:
        return entry.digest.startswith("sha256:") and self._archive.has(_blob_name(entry.digest))

    def _further(self, entry: Descriptor) -> BlobSource:
        return BlobSource(
            name=f"{self._path}: the blob {entry.digest}",
            open=functools.partial(self._archive.open, _blob_name(entry.digest)),
            digest=entry.digest,
            size=entry.size,
            media_type=entry.media_type,
        )


def _may_be_image(entry: Descriptor) -> bool:
    return (
        entry.media_type in (*_MANIFESTS, *_INDEXES)
        and _ATTESTS not in entry.annotations
        and entry.artifact_type in ("", CONFIG)
    )


def _names_a_platform(entry: Descriptor) -> bool:
    return _may_be_image(entry) and entry.platform is not None and entry.platform.os != "unknown"


def _names(entry: Descriptor) -> tuple[str, ...]:
    annotations = entry.annotations
    return tuple(dict.fromkeys(annotations[key] for key in (_CONTAINERD_NAME, REF_NAME) if key in annotations))


def _full(names: tuple[str, ...]) -> tuple[str, ...]:
    # A bare word in ref.name is a tag of an image whose name the layout does not tell, as umoci writes it.
    return tuple(name for name in names if "/" in name or ":" in name)


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def open_archive(path: Path, workspace: Path, shown: str, limits: LayerLimits | None = None) -> Archive:
    """Open an image archive.

    Args:
        path: a directory or a tar file; one that is compressed as a whole is unpacked into the workspace first.
        workspace: a directory for that.
        shown: what messages call it.
        limits: of which the size holds for what is unpacked.

    Raises:
        ImageError: it is neither.
    """
    if path.is_dir():
        return DirectoryArchive(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if detect(fd):
            plain = workspace / "archive.tar"
            _unpack(path, plain, shown, limits or LayerLimits())
            os.close(fd)
            fd = os.open(plain, os.O_RDONLY | os.O_CLOEXEC)
        return TarArchive(fd, shown)
    except BaseException:
        os.close(fd)
        raise


def _unpack(path: Path, plain: Path, shown: str, limits: LayerLimits) -> None:
    size = 0
    with plain.open("xb") as file:
        for chunk in plain_chunks(path, shown):
            size += file.write(chunk)
            if size > limits.size:
                msg = f"{shown} unpacks to more than {limits.size} bytes; raise LayerLimits(...) if it is trusted"
                raise ImageError(msg)
