"""Write images of the store to an archive, or to a directory: nothing is unpacked, packed or computed anew.

An archive is an OCI image layout; with the ``manifest.json`` of ``docker save`` in it, which names the same blobs, all
docker since 1.10, podman, skopeo, umoci and containerd read it. Manifests are what the store has, byte for byte; times,
owners and the order of the members are fixed: the same images give the same archive.
"""

from __future__ import annotations

import functools
import json
import os
import tarfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import attrs

from pycontainer.distribution.layout import INDEX_OF
from pycontainer.distribution.meter import Meter
from pycontainer.distribution.sinks import DescriptorSink, PackedSink, Packing, open_sink, replacing
from pycontainer.errors import AlreadyExists, ImageError
from pycontainer.names import parse_reference
from pycontainer.oci.image import (
    MAX_CONFIG,
    MAX_DOCUMENT,
    REF_NAME,
    Descriptor,
    Index,
    parse_config,
    parse_manifest_or_index,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from pycontainer.distribution.meter import Report
    from pycontainer.distribution.sinks import Sink
    from pycontainer.store import ImageRow, Store

__all__ = ["ArchiveFormat", "Packing", "kept_indexes", "save_archive", "save_directory"]

ArchiveFormat = Literal["docker-archive", "oci-archive", "oci-dir"]

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_CONTAINERD_NAME = "io.containerd.image.name"
_BLOCK = 512


@attrs.frozen
class _Content:
    """What an archive holds: documents by name, and the blobs, in the order of the members."""

    documents: dict[str, bytes]
    blobs: tuple[str, ...]
    layers: frozenset[str]
    directories: tuple[str, ...]


class _Copying:
    """Copies blobs and tells of the layers among them."""

    def __init__(self, store: Store, content: _Content, progress: Report | None) -> None:
        self._store = store
        self._layers = [digest for digest in content.blobs if digest in content.layers]
        self._meter = Meter(progress)
        for digest in self._layers:
            self._meter.expect(digest, store.blobs.size(digest))

    @contextmanager
    def open(self, digest: str) -> Iterator[tuple[int, int]]:
        """Give a blob, open, and its size."""
        with self._store.blobs.open(digest) as blob:
            yield blob.fileno(), os.fstat(blob.fileno()).st_size

    def copy(self, digest: str, blob: int, size: int, sink: Sink) -> None:
        """Copy a blob."""
        if digest not in self._layers:
            sink.copy(blob, size, lambda _count: None)
            return
        self._meter.change(digest, "saving")
        sink.copy(blob, size, functools.partial(self._meter.advance, digest))
        self._meter.change(digest, "done")

    def end(self, identity: str) -> None:
        """Tell that all is written."""
        self._meter.end(identity, sum(map(self._store.blobs.size, self._layers)))


def save_archive(
    store: Store,
    images: Sequence[tuple[ImageRow, Sequence[str]]],
    target: Path | IO[bytes],
    *,
    docker: bool = True,
    packing: Packing | None = None,
    progress: Report | None = None,
) -> None:
    """Write images to a tar file.

    Args:
        store: has them.
        images: each with the whole references that the archive gives it.
        target: a path, which is replaced when all is written; or a binary stream, which stays open.
        docker: also for those that know only the format of ``docker save``.
        packing: compress the whole.
        progress: is told how it goes.

    Raises:
        StoreError: a blob is missing or shorter than it was.
        OSError: the target cannot be written; of a path nothing is left.
    """
    with _kept(store, images), ExitStack() as stack:
        content = _content(store, images, docker=docker)
        sink = stack.enter_context(open_sink(target))
        if packing is not None:
            sink = PackedSink(sink, packing)
        copying = _Copying(store, content, progress)
        _write_tar(content, copying, sink)
        sink.finish()
        copying.end(images[-1][0].id)


def save_directory(
    store: Store,
    images: Sequence[tuple[ImageRow, Sequence[str]]],
    target: Path,
    *,
    progress: Report | None = None,
) -> None:
    """Write images to a directory as an OCI image layout.

    Its ``index.json`` comes last: what a killed process leaves is no layout, and the next call goes on with it.

    Args:
        store: has them.
        images: each with the whole references that the layout gives it.
        target: a directory that is missing, empty or unfinished.
        progress: is told how it goes.

    Raises:
        AlreadyExists: there is something else.
        StoreError: a blob is missing or shorter than it was.
        OSError: the target cannot be written; nothing is left.
    """
    with _kept(store, images), ExitStack() as failed:
        content = _content(store, images, docker=False)
        _make_directory(target, failed)
        for name in content.directories:
            _make_directory(target / name, failed)
        copying = _Copying(store, content, progress)
        for digest in content.blobs:
            path = target / _blob_name(digest)
            with copying.open(digest) as (blob, size), replacing(path) as fd:
                failed.callback(path.unlink, missing_ok=True)
                copying.copy(digest, blob, size, DescriptorSink(fd))
        for name, data in sorted(content.documents.items(), reverse=True):  # index.json after oci-layout
            with replacing(target / name) as fd:
                failed.callback((target / name).unlink, missing_ok=True)
                DescriptorSink(fd).write(data)
        failed.pop_all()
    copying.end(images[-1][0].id)


def _make_directory(path: Path, failed: ExitStack) -> None:
    try:
        path.mkdir()
    except FileExistsError:
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else {""}
        if path.name == "blobs" or path.parent.name == "blobs":
            return
        if names - {"blobs", "oci-layout"}:
            msg = f"{path} is there already; choose a new or empty directory"
            raise AlreadyExists(msg) from None
    else:
        failed.callback(_remove_directory, path)


def _remove_directory(path: Path) -> None:
    with suppress(OSError):  # somebody else put something there meanwhile: that is theirs
        path.rmdir()


@contextmanager
def _kept(store: Store, images: Sequence[tuple[ImageRow, Sequence[str]]]) -> Iterator[None]:
    """Keep the images from being removed meanwhile."""
    with ExitStack() as stack:
        for row, _ in images:
            store.keep(row.id)
            stack.callback(store.release, row.id)
        yield


def _content(store: Store, images: Sequence[tuple[ImageRow, Sequence[str]]], *, docker: bool) -> _Content:
    entries: list[Descriptor] = []
    items: list[dict[str, Any]] = []
    blobs: dict[str, None] = {}
    all_layers: set[str] = set()
    for row, references in images:
        layers = [layer.digest for layer in store.db.layers(row.id)]
        all_layers.update(layers)
        blobs |= dict.fromkeys((*store.db.blobs(row.id), row.digest, row.id, *layers))
        entries += _entries(store, row, references)
        items.append(
            {
                "Config": _blob_name(row.id),
                "RepoTags": list(references) or None,  # whole: podman takes "debian:12" for "localhost/debian:12"
                "Layers": [_blob_name(digest) for digest in layers],
            }
        )
    documents = {"oci-layout": _LAYOUT, "index.json": Index(manifests=tuple(entries)).to_bytes()}
    if docker:
        documents["manifest.json"] = json.dumps(items, separators=(",", ":")).encode()
    parents = sorted({f"blobs/{digest.partition(':')[0]}" for digest in blobs})
    return _Content(documents, tuple(blobs), frozenset(all_layers), ("blobs", *parents))


def _entries(store: Store, row: ImageRow, references: Sequence[str]) -> list[Descriptor]:
    """Return what ``index.json`` says of an image: an entry for each name, one without a name if there is none."""
    config = parse_config(store.blobs.read(row.id, limit=MAX_CONFIG), f"the config of {row.id}")
    plain = Descriptor(media_type=row.media_type, digest=row.digest, size=row.manifest_size, platform=config.platform)
    further = store.db.blobs(row.id)
    indexes = kept_indexes(store, further)
    inner = {entry.digest for index in indexes.values() for entry in index.manifests}
    first = min(indexes.keys() - inner, default=None)
    pulled = dict(reversed([digest.split("@") for digest in row.digests if digest.partition("@")[2] in indexes]))
    entries = []
    for name in references or ("",):
        digest = pulled.get(parse_reference(name).name if name else "", first)
        if digest is None:
            entry = plain
        elif _is_complete(digest, indexes, {row.digest, *further}):
            entry = Descriptor(media_type=indexes[digest].media_type, digest=digest, size=store.blobs.size(digest))
        else:  # a tool that follows an index to what is not there fails
            entry = attrs.evolve(plain, annotations={INDEX_OF: digest})
        if name:  # podman takes ref.name for the whole name, containerd has a name of its own for that
            entry = attrs.evolve(entry, annotations={**entry.annotations, _CONTAINERD_NAME: name, REF_NAME: name})
        entries.append(entry)
    return entries


def kept_indexes(store: Store, digests: Sequence[str]) -> dict[str, Index]:
    """Return which of the blobs that are kept for an image are indexes."""
    found: dict[str, Index] = {}
    for digest in digests:
        if store.blobs.size(digest) > MAX_DOCUMENT:
            continue
        data = store.blobs.read(digest, limit=MAX_DOCUMENT)
        try:
            document = parse_manifest_or_index(data, digest)
        except ImageError:
            continue  # of another kind
        if isinstance(document, Index):
            found[digest] = document
    return found


def _is_complete(digest: str, indexes: Mapping[str, Index], saved: AbstractSet[str]) -> bool:
    """Tell whether everything that an index leads to is saved too; indexes contain each other only by their digests."""
    return all(
        entry.digest in saved and (entry.digest not in indexes or _is_complete(entry.digest, indexes, saved))
        for entry in indexes[digest].manifests
    )


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


# ── tar ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_tar(content: _Content, copying: _Copying, sink: Sink) -> None:
    # Documents first: a reader of a stream knows what the blobs are when they come.
    for name, data in content.documents.items():
        sink.write(_header(name, len(data)) + data + _padding(len(data)))
    for name in content.directories:
        sink.write(_header(name, 0, directory=True))
    for digest in content.blobs:
        with copying.open(digest) as (blob, size):
            sink.write(_header(_blob_name(digest), size))
            copying.copy(digest, blob, size, sink)
            sink.write(_padding(size))
    sink.write(bytes(2 * _BLOCK))


def _header(name: str, size: int, *, directory: bool = False) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o755 if directory else 0o644
    member.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)
