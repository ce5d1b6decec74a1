"""Find the images in an archive: OCI image layouts, ``docker save`` of every age since 1.10, ``podman save``.

``docker save`` of version 25 and later writes both formats into one file; then the OCI side is read, whose blobs have
digests. Only documents are read here, and every one is checked.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from typing import TYPE_CHECKING

import attrs

from pycontainer.distribution.archive import Archive, DirectoryArchive, TarArchive
from pycontainer.distribution.codec import detect, plain_chunks
from pycontainer.distribution.sources import LayerSource, Source
from pycontainer.distribution.transfer import host_platform
from pycontainer.errors import DigestMismatch, ImageError, InvalidReference
from pycontainer.names import parse_reference
from pycontainer.oci.image import (
    CONFIG,
    DOCKER_CONFIG,
    DOCKER_LIST,
    INDEX,
    MAX_CONFIG,
    MAX_DOCUMENT,
    REF_NAME,
    Descriptor,
    ImageDocument,
    Index,
    Manifest,
    Platform,
    parse_config,
    parse_index,
    parse_json,
    parse_manifest_or_index,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["open_archive", "read_sources"]

_CONTAINERD_NAME = "io.containerd.image.name"
_ATTESTATION = "vnd.docker.reference.type"
_MAX_INDEXES = 4  # nested
_LAYER_TYPE = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:v1|nondistributable\.v1)\.tar(?:\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(?:diff|foreign\.diff)\.tar(?:\.gzip|\.zstd)?)"
)
_HASH_NAME = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")


def read_sources(archive: Archive, path: str) -> list[Source]:
    """Return the images of an archive, each once, whatever the number of its names.

    Args:
        archive: the files.
        path: its name, for messages.

    Raises:
        ImageError: it is no image archive, or its documents are missing, damaged or hostile.
    """
    if archive.has("oci-layout") and archive.has("index.json"):
        sources = _oci_sources(archive, path)
    elif archive.has("manifest.json"):
        sources = _docker_sources(archive, path)
    elif archive.has("repositories"):
        msg = f"{path} was saved by docker before 1.10, in a format no longer in use; load and save it with a newer one"
        raise ImageError(msg)
    else:
        msg = (
            f"{path} is no image archive: it has neither oci-layout and index.json nor manifest.json. "
            "Is it a root file system? Then use import_rootfs"
        )
        raise ImageError(msg)
    if not sources:
        msg = f"{path} holds no image"
        raise ImageError(msg)
    return _merged(sources)


def _merged(sources: list[Source]) -> list[Source]:
    """Join what is one image under several names."""
    found: dict[tuple[bytes, bytes | None], Source] = {}
    for source in sources:
        key = (source.config, source.manifest)
        known = found.setdefault(key, source)
        found[key] = attrs.evolve(
            known,
            references=tuple(dict.fromkeys(known.references + source.references)),
            labels=tuple(dict.fromkeys(known.labels + source.labels)),
        )
    return list(found.values())


# ── docker-archive ────────────────────────────────────────────────────────────────────────────────────────────────


def _docker_sources(archive: Archive, path: str) -> list[Source]:
    what = f"{path}: manifest.json"
    items = parse_json(archive.read("manifest.json", MAX_DOCUMENT), what)
    if isinstance(items, dict) and "schemaVersion" in items:
        msg = f"{path} is a directory of skopeo's dir: transport, not an image archive; copy it to oci-archive:FILE"
        raise ImageError(msg)
    if not isinstance(items, list):
        msg = f"{what} should be an array"
        raise ImageError(msg)
    return [_docker_source(archive, item, f"{what}: item {number}") for number, item in enumerate(items)]


def _docker_source(archive: Archive, item: object, what: str) -> Source:
    if not isinstance(item, dict):
        msg = f"{what} should be an object"
        raise ImageError(msg)
    name, layers, tags = item.get("Config"), item.get("Layers") or [], item.get("RepoTags") or []
    if not isinstance(name, str) or not _all_text(layers) or not _all_text(tags):
        msg = f"{what} should have 'Config', a string, 'Layers' and 'RepoTags', arrays of strings"
        raise ImageError(msg)
    config = archive.read(_clean(name), MAX_CONFIG)
    promised = _HASH_NAME.fullmatch(name)
    if promised:
        _check(config, "sha256:" + promised[1], f"{what}: the config {name}")
    document = _document(config, f"{what}: {name}", len(layers))
    return Source(
        config=config,
        config_type=CONFIG,
        document=document,
        layers=tuple(
            LayerSource(
                name=f"the layer {layer}",
                open=functools.partial(archive.open, _clean(layer)),
                size=archive.size(_clean(layer)),
                diff_id=diff_id,
            )
            for layer, diff_id in zip(layers, document.diff_ids, strict=True)
        ),
        references=tuple(reference for tag in tags if (reference := _reference(tag)) is not None),
        labels=tuple(tags),
    )


def _all_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and "\0" not in item for item in value)


def _clean(name: str) -> str:
    """Keep the name of a file inside a directory that is read as an archive."""
    if name.startswith("/") or ".." in name.split("/"):
        msg = f"the archive names a file outside itself: {name!r}"
        raise ImageError(msg)
    return name.removeprefix("./")


def _reference(text: str) -> str | None:
    """Return the whole reference that a name in an archive means, if it is one."""
    try:
        reference = parse_reference(text)
    except InvalidReference:
        return None
    return str(reference) if reference.digest is None else None


def _document(config: bytes, what: str, layers: int) -> ImageDocument:
    # Layer counts are compared before anything is unpacked: what is left over would be lost in silence.
    document = parse_config(config, what, limit=MAX_CONFIG)
    if len(document.diff_ids) != layers:
        msg = f"{what} names {len(document.diff_ids)} layers, the manifest {layers}"
        raise ImageError(msg)
    if not layers:
        msg = f"{what}: the image has no layers, so there is nothing to run"
        raise ImageError(msg)
    for diff_id in document.diff_ids:
        _check_algorithm(diff_id, what)
    return document


def _check_algorithm(digest: str, what: str) -> None:
    if not digest.startswith("sha256:"):
        msg = f"{what} uses {digest.partition(':')[0]} digests; only sha256 is supported"
        raise ImageError(msg)


def _check(data: bytes, digest: str, what: str) -> None:
    _check_algorithm(digest, what)
    actual = "sha256:" + hashlib.sha256(data).hexdigest()
    if actual != digest:
        raise DigestMismatch(what, digest, actual)


# ── OCI image layout ──────────────────────────────────────────────────────────────────────────────────────────────


def _oci_sources(archive: Archive, path: str) -> list[Source]:
    layout = parse_json(archive.read("oci-layout", MAX_DOCUMENT), f"{path}: oci-layout")
    version = layout.get("imageLayoutVersion") if isinstance(layout, dict) else None
    if not isinstance(version, str) or not version.startswith("1."):
        msg = f"{path}: the layout is of version {version!r}, this reads 1.x"
        raise ImageError(msg)
    index = parse_index(archive.read("index.json", MAX_DOCUMENT), f"{path}: index.json")
    entries = [entry for entry in index.manifests if _ATTESTATION not in entry.annotations]
    named = [entry for entry in entries if _names(entry)]
    if not named and len(entries) > 1 and all(entry.platform for entry in entries):
        entries = [_choose(tuple(entries), path)]  # one image, its platforms listed on top
    return [_oci_source(archive, entry, path) for entry in entries]


def _names(entry: Descriptor) -> tuple[str, ...]:
    annotations = entry.annotations
    return tuple(dict.fromkeys(annotations[key] for key in (_CONTAINERD_NAME, REF_NAME) if key in annotations))


def _references(names: tuple[str, ...]) -> tuple[str, ...]:
    # A bare word in ref.name is a tag of an image whose name the layout does not tell, as umoci writes it.
    full = [name for name in names if "/" in name or ":" in name]
    return tuple(dict.fromkeys(reference for name in full if (reference := _reference(name)) is not None))


def _blob(archive: Archive, descriptor: Descriptor, what: str, limit: int = MAX_DOCUMENT) -> bytes:
    _check_algorithm(descriptor.digest, what)
    if descriptor.size > limit:
        msg = f"{what} has {descriptor.size} bytes, at most {limit} are accepted"
        raise ImageError(msg)
    data = archive.read(_blob_name(descriptor.digest), limit)
    _check(data, descriptor.digest, what)
    if len(data) != descriptor.size:
        msg = f"{what} has {len(data)} bytes, its descriptor says {descriptor.size}"
        raise ImageError(msg)
    return data


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _oci_source(archive: Archive, entry: Descriptor, path: str) -> Source:
    names = _names(entry)
    for _ in range(_MAX_INDEXES):
        what = f"{path}: the manifest {entry.digest}"
        data = _blob(archive, entry, what)
        document = parse_manifest_or_index(data, what)
        if isinstance(document, Manifest):
            return _manifest_source(archive, document, data, names, path)
        entry = _choose(_present(archive, document), path)
    msg = f"{path}: indexes are nested deeper than {_MAX_INDEXES} levels"
    raise ImageError(msg)


def _present(archive: Archive, index: Index) -> tuple[Descriptor, ...]:
    """Return the manifests of an index that the archive has: one saved for one platform lists all of them."""
    entries = [entry for entry in index.manifests if _ATTESTATION not in entry.annotations]
    return tuple(entry for entry in entries if archive.has(_blob_name(entry.digest)))


def _choose(entries: tuple[Descriptor, ...], path: str) -> Descriptor:
    """Return the manifest for this host's platform."""
    host = host_platform()
    if len(entries) == 1 and (entries[0].platform is None or entries[0].media_type in (INDEX, DOCKER_LIST)):
        return entries[0]
    found = [
        entry
        for entry in entries
        if entry.platform and (entry.platform.os, entry.platform.architecture) == (host.os, host.architecture)
    ]
    if not found:
        offered = ", ".join(str(entry.platform or "unknown") for entry in entries) or "none"
        msg = f"{path} has no image for {host}; it has: {offered}"
        raise ImageError(msg)
    return min(found, key=lambda entry: _variant_rank(entry.platform, host))


def _variant_rank(platform: Platform | None, host: Platform) -> tuple[bool, bool]:
    variant = platform.variant if platform else ""
    return (variant != host.variant, variant != "")


def _manifest_source(archive: Archive, manifest: Manifest, data: bytes, names: tuple[str, ...], path: str) -> Source:
    what = f"{path}: the image {names[0] if names else manifest.config.digest}"
    if manifest.config.media_type not in (CONFIG, DOCKER_CONFIG):
        msg = f"{what} is no container image: its config is {manifest.config.media_type!r}"
        raise ImageError(msg)
    for layer in manifest.layers:
        if not _LAYER_TYPE.fullmatch(layer.media_type):
            msg = f"{what} has a layer of type {layer.media_type!r}, which cannot be unpacked"
            raise ImageError(msg)
        _check_algorithm(layer.digest, what)
    config = _blob(archive, manifest.config, f"{what}: its config", MAX_CONFIG)
    document = _document(config, f"{what}: its config", len(manifest.layers))
    return Source(
        config=config,
        config_type=manifest.config.media_type,
        document=document,
        layers=tuple(
            LayerSource(
                name=f"the layer {layer.digest}",
                open=functools.partial(archive.open, _blob_name(layer.digest)),
                diff_id=diff_id,
                digest=layer.digest,
                size=layer.size,
                media_type=layer.media_type,
            )
            for layer, diff_id in zip(manifest.layers, document.diff_ids, strict=True)
        ),
        references=_references(names),
        labels=names,
        manifest=data,
        media_type=manifest.media_type,
    )


def open_archive(path: Path, workspace: Path) -> Archive:
    """Open an image archive.

    Args:
        path: a directory or a tar file; one that is compressed as a whole is unpacked into the workspace first.
        workspace: a directory for that.

    Raises:
        ImageError: it is neither.
    """
    if path.is_dir():
        return DirectoryArchive(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if detect(fd):
            plain = workspace / "archive.tar"
            with plain.open("xb") as file:
                for chunk in plain_chunks(path, str(path)):
                    file.write(chunk)
            os.close(fd)
            fd = os.open(plain, os.O_RDONLY | os.O_CLOEXEC)
        return TarArchive(fd, str(path))
    except BaseException:
        os.close(fd)
        raise
