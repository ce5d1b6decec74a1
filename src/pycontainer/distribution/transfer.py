"""Bring images into the store: from archives of docker and podman, from OCI image layouts, from a root file system.

Every layer goes the same way, two at a time: the blob is copied into the store's workspace, unpacked and verified in
one pass, and both are published; then the config, the manifest, and at last the record that makes the image visible.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Literal

import attrs

from pycontainer.distribution import parents
from pycontainer.distribution.archive import Archive, copy_range
from pycontainer.distribution.codec import GzipBlob, detect, plain_chunks
from pycontainer.distribution.lanes import Lane, feed
from pycontainer.distribution.layer import AppliedLayer, apply
from pycontainer.distribution.pack import pack
from pycontainer.errors import DigestMismatch, ImageError, NotFound
from pycontainer.oci.image import (
    CONFIG,
    LAYER,
    LAYER_GZIP,
    LAYER_ZSTD,
    Descriptor,
    History,
    ImageDocument,
    Manifest,
    Platform,
)
from pycontainer.store import ImageRow, LayerRow, Store

if TYPE_CHECKING:
    from pathlib import Path

    from pycontainer.model import ImageConfig

__all__ = ["LayerSource", "Progress", "Source", "add_image", "add_rootfs", "host_platform"]

_CHUNK = 1 << 20
_PARALLEL = 2  # layers at a time: unpacking is bound by the file system, not by processors
_MEDIA_TYPES = {"": LAYER, "gzip": LAYER_GZIP, "zstd": LAYER_ZSTD}


@attrs.frozen
class Progress:
    """One step of a transfer, as given to a ``progress`` callback; it may be called from several threads.

    Attributes:
        step: ``"start"`` or ``"done"`` of a layer; ``"exists"``: it was in the store; ``"image"``: all is there.
        name: the layer's diff ID, or the image's id.
        size: bytes of the layer's blob, or of all layers unpacked.
    """

    step: Literal["start", "done", "exists", "image"]
    name: str
    size: int


@attrs.frozen(kw_only=True)
class LayerSource:
    """A layer to bring in.

    Attributes:
        name: of its blob in the archive.
        diff_id: digest of the plain tar stream.
        digest: of the blob, where the archive promises one.
        size: of the blob, likewise.
        media_type: likewise.
    """

    name: str
    diff_id: str
    digest: str | None = None
    size: int | None = None
    media_type: str | None = None


@attrs.frozen(kw_only=True)
class Source:
    """An image in an archive, its documents read and checked, its layers not yet.

    Attributes:
        config: the bytes of its config.
        config_type: the media type of the config.
        document: the same, understood.
        layers: the lowest first.
        references: whole references that the archive gives it.
        labels: what else the archive calls it, to choose it by.
        manifest: the bytes of its manifest, where the archive has one.
        media_type: of that manifest.
    """

    config: bytes
    document: ImageDocument
    layers: tuple[LayerSource, ...]
    config_type: str = CONFIG
    references: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    manifest: bytes | None = None
    media_type: str = ""


Report = Callable[[Progress], object]
Write = Callable[[bytes], object]
Produce = Callable[[Write], object]


def host_platform() -> Platform:
    """Return what this host runs, in the words of image indexes."""
    machine = platform.machine().lower()
    known = {
        "x86_64": ("amd64", ""),
        "aarch64": ("arm64", "v8"),
        "armv7l": ("arm", "v7"),
        "armv6l": ("arm", "v6"),
        "i686": ("386", ""),
        "i386": ("386", ""),
        "loongarch64": ("loong64", ""),
    }
    architecture, variant = known.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)


def add_image(
    store: Store,
    archive: Archive,
    source: Source,
    *,
    references: Sequence[str],
    progress: Report | None = None,
) -> str:
    """Bring an image of an archive into the store.

    Args:
        store: where to.
        archive: holds the blobs.
        source: the image.
        references: the whole references that it gets.
        progress: is told of each step.

    Returns:
        The id of the image.

    Raises:
        ImageError: content is missing, damaged or hostile. Nothing of the image is left then.
    """
    unique = list({layer.diff_id: layer for layer in source.layers}.values())
    with store.adding() as workspace:
        adder = _Adder(store, workspace, progress)
        known = adder.find(source, references)
        if known is not None:
            return known

        def add(layer: LayerSource) -> _Added:
            return adder.add(layer, archive)

        pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="pycontainer-layer")
        try:
            added = {layer.diff_id: done for layer, done in zip(unique, pool.map(add, unique), strict=True)}
        finally:
            pool.shutdown(cancel_futures=True)
        layers = adder.complete([added[layer.diff_id] for layer in source.layers])
        return adder.finish(source, layers, references, mounts="[]")


def add_rootfs(
    store: Store,
    path: Path,
    config: ImageConfig,
    *,
    references: Sequence[str],
    mounts: str = "[]",
    progress: Report | None = None,
) -> str:
    """Make an image of one layer from a root file system.

    The same tree and config give the same image: the documents hold no time.

    Args:
        store: where to.
        path: a directory, or a tar file, plain or compressed with gzip or zstd.
        config: how containers of it run.
        references: the whole references that it gets.
        mounts: JSON text, see :class:`ImageRow`.
        progress: is told of each step.

    Returns:
        The id of the image.

    Raises:
        ImageError: the tree or the file cannot be made a layer.
    """
    with store.adding() as workspace:
        adder = _Adder(store, workspace, progress)
        layer = adder.add_directory(path) if path.is_dir() else adder.add_file(path)
        document = ImageDocument(
            platform=host_platform(),
            diff_ids=(layer.row.diff_id,),
            config=config,
            history=(History(created_by="pycontainer import"),),
        )
        source = Source(config=document.to_bytes(), document=document, layers=())
        return adder.finish(source, [layer], references, mounts=mounts)


@attrs.frozen
class _Added:
    """A layer that is in the store: its record, and what a manifest says of the blob."""

    row: LayerRow
    descriptor: Descriptor


class _Adder:
    """One image on its way into the store.

    Args:
        store: where to.
        workspace: of this operation, from :meth:`Store.adding`.
        progress: is told of each step.
    """

    def __init__(self, store: Store, workspace: Path, progress: Report | None) -> None:
        self._store = store
        self._workspace = workspace
        self._report = progress or (lambda _event: None)

    def find(self, source: Source, references: Sequence[str]) -> str | None:
        """Return the id of an image that is here already, all of it, after giving it its names."""
        store = self._store
        identity = _sha256(source.config)
        row = store.db.by_id(identity)
        if row is None or (source.manifest is not None and row.digest != _sha256(source.manifest)):
            return None
        layers = store.db.layers(identity)
        if not all(layer.snapshot in store.snapshots and layer.digest in store.blobs for layer in layers):
            return None
        try:
            for name in references:
                store.put_reference(name, identity)
        except NotFound:
            return None  # removed just now
        for layer in layers:
            self._report(Progress("exists", layer.diff_id, layer.size))
        self._report(Progress("image", identity, sum(layer.size for layer in layers)))
        return identity

    def add(self, layer: LayerSource, archive: Archive) -> _Added:
        """Bring in a layer of an archive, unless it is here; others who want the same one wait meanwhile."""
        store = self._store
        with store.snapshots.lock(layer.diff_id):
            known = self._known(layer)
            if known is not None:
                self._report(Progress("exists", layer.diff_id, known.descriptor.size))
                return known
            blob = self._workspace / ("blob-" + layer.diff_id.replace(":", "-"))
            fd, offset, size = archive.locate(layer.name)
            if layer.size is not None and layer.size != size:
                msg = f"the layer {layer.name} should have {layer.size} bytes, the archive has {size}"
                raise ImageError(msg)
            self._report(Progress("start", layer.diff_id, size))
            if layer.digest is None and detect(fd, offset) == "":
                added = self._add_plain(functools.partial(_read_range, fd, offset, size), layer.diff_id)
            else:
                self._copy(fd, offset, size, blob)
                added = self._unpack(blob, layer.diff_id, layer.digest)
        self._report(Progress("done", layer.diff_id, added.descriptor.size))
        return added if layer.media_type is None else _retyped(added, layer.media_type)

    def add_directory(self, path: Path) -> _Added:
        """Bring in a directory as a layer, without the store's own when that is in it."""
        info = self._store.root.stat()
        return self._add_plain(functools.partial(_pack, path, (info.st_dev, info.st_ino)), None)

    def add_file(self, path: Path) -> _Added:
        """Bring in a tar file, of which nothing is known yet, as a layer."""
        with path.open("rb") as opened:
            fd = opened.fileno()
            if detect(fd) not in ("gzip", "zstd"):
                return self._add_plain(functools.partial(_write_plain, path), None)
            blob = self._workspace / "blob"
            self._copy(fd, 0, os.fstat(fd).st_size, blob)
        staged, applied = self._apply(blob, "unknown", None, None)
        self._store.snapshots.publish(staged, applied.diff_id)
        return self._publish(blob, applied.diff_id, applied.digest, applied.bytes)

    def _add_plain(self, produce: Produce, diff_id: str | None) -> _Added:
        """Compress and unpack a plain tar stream at the same time.

        Args:
            produce: writes the stream.
            diff_id: what it should be, its lock held; ``None`` when nobody knows.
        """
        name = (diff_id or "unknown").replace(":", "-")
        blob = self._workspace / ("blob-" + name)
        packing = Lane(functools.partial(_compress, blob))
        if diff_id is not None and diff_id in self._store.snapshots:
            hashing = Lane(_hash)
            feed(produce, packing, hashing)
            actual, size = hashing.result()
            if actual != diff_id:
                what = "the layer"
                raise DigestMismatch(what, diff_id, actual)
        else:
            staged = self._store.snapshots.stage(self._workspace, name)
            since = staged.stat().st_mtime_ns
            unpacking = Lane(functools.partial(_apply_plain, staged, diff_id))
            feed(produce, packing, unpacking)
            applied = unpacking.result()
            actual, size = applied.diff_id, applied.bytes
            self._finish_tree(staged, applied, since)
            self._store.snapshots.publish(staged, actual)
        return self._publish(blob, actual, packing.result(), size)

    def _copy(self, fd: int, offset: int, size: int, blob: Path) -> None:
        """Copy a part of a file into the workspace."""
        target = os.open(blob, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_range(fd, offset, size, target)
        finally:
            os.close(target)

    def _known(self, layer: LayerSource) -> _Added | None:
        """Return a layer that an image of the store has, from the same blob if one is promised."""
        row = self._store.db.layer(layer.diff_id, layer.digest)
        if row is None or row.diff_id not in self._store.snapshots or row.digest not in self._store.blobs:
            return None
        return self._describe(row, layer.media_type)

    def _describe(self, row: LayerRow, media_type: str | None) -> _Added:
        with self._store.blobs.open(row.digest) as file:
            kind = detect(file.fileno())
            size = os.fstat(file.fileno()).st_size
        return _Added(
            row, Descriptor(media_type=media_type or _MEDIA_TYPES.get(kind, LAYER), digest=row.digest, size=size)
        )

    def _unpack(self, blob: Path, diff_id: str, digest: str | None) -> _Added:
        """Publish a blob and its tree; the lock of the layer is held."""
        snapshots = self._store.snapshots
        if diff_id in snapshots:  # from another blob, or just now by another process
            actual, size = _digests(blob, diff_id, digest)
            return self._publish(blob, diff_id, actual, size)
        staged, applied = self._apply(blob, diff_id, digest, diff_id)
        snapshots.publish(staged, diff_id)
        return self._publish(blob, diff_id, applied.digest, applied.bytes)

    def _publish(self, blob: Path, diff_id: str, digest: str, size: int) -> _Added:
        self._store.blobs.publish(blob, digest)
        return self._describe(LayerRow(diff_id, digest, size), None)

    def complete(self, layers: Sequence[_Added]) -> list[_Added]:
        """Have layers that need it unpacked again for what is below them; see :mod:`~.parents`."""
        store = self._store
        done: list[_Added] = []
        for layer, chain_id in zip(layers, parents.chain_ids([layer.row.diff_id for layer in layers]), strict=True):
            snapshot = layer.row.diff_id
            if done and parents.marked(store.snapshots.path(snapshot)):
                snapshot = chain_id
                with store.snapshots.lock(chain_id):
                    if chain_id not in store.snapshots:
                        self._rebuild(layer, chain_id, [item.row.snapshot for item in reversed(done)])
            done.append(attrs.evolve(layer, row=attrs.evolve(layer.row, snapshot=snapshot)))
        return done

    def _rebuild(self, layer: _Added, chain_id: str, below: Sequence[str]) -> None:
        snapshots = self._store.snapshots
        staged = self._apply(self._store.blobs.path(layer.row.digest), chain_id, layer.row.digest, layer.row.diff_id)[0]
        parents.complete(staged, [snapshots.path(snapshot) for snapshot in below])
        snapshots.publish(staged, chain_id)
        self._store.db.put_meta("collect", "1")  # the one unpacked by itself, unless another image has it

    def _apply(self, blob: Path, name: str, digest: str | None, diff_id: str | None) -> tuple[Path, AppliedLayer]:
        """Unpack a blob into the workspace, marking directories that it does not describe."""
        snapshots = self._store.snapshots
        staged = snapshots.stage(self._workspace, name.replace(":", "-"))
        since = staged.stat().st_mtime_ns
        applied = apply(blob, staged, expected_digest=digest, expected_diff_id=diff_id)
        self._finish_tree(staged, applied, since)
        return staged, applied

    def _finish_tree(self, staged: Path, applied: AppliedLayer, since: int) -> None:
        parents.mark(staged, since)
        if applied.hides_all:
            self._store.snapshots.hide_all(staged)

    def finish(self, source: Source, layers: Sequence[_Added], references: Sequence[str], *, mounts: str) -> str:
        """Write the documents and make the image visible."""
        blobs = self._store.blobs
        identity = blobs.write(source.config, self._workspace)
        data, media_type = source.manifest, source.media_type
        if data is None:
            manifest = Manifest(
                config=Descriptor(media_type=source.config_type, digest=identity, size=len(source.config)),
                layers=tuple(layer.descriptor for layer in layers),
            )
            data, media_type = manifest.to_bytes(), manifest.media_type
        row = ImageRow(
            identity,
            blobs.write(data, self._workspace),
            media_type,
            len(data),
            time.time(),
            mounts,
            " ".join(references),
        )
        self._store.put_image(row, [layer.row for layer in layers])
        self._report(Progress("image", identity, sum(layer.row.size for layer in layers)))
        return identity


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _read_range(fd: int, offset: int, size: int, write: Write) -> None:
    """Write a part of a file."""
    end = offset + size
    while offset < end:
        chunk = os.pread(fd, min(_CHUNK, end - offset), offset)
        if not chunk:
            msg = f"the archive became shorter while it was read, {end - offset} bytes are missing"
            raise ImageError(msg)
        write(chunk)
        offset += len(chunk)


def _pack(path: Path, skip: tuple[int, int], write: Write) -> None:
    pack(path, write, skip=skip)


def _write_plain(path: Path, write: Write) -> None:
    for chunk in plain_chunks(path, str(path)):
        write(chunk)


def _compress(blob: Path, stream: IO[bytes]) -> str:
    """Write a stream to a gzip blob; return its digest."""
    with GzipBlob(blob) as file:
        while chunk := stream.read(_CHUNK):
            file.write(chunk)
        return file.finish()


def _hash(stream: IO[bytes]) -> tuple[str, int]:
    plain = hashlib.sha256()
    size = 0
    while chunk := stream.read(_CHUNK):
        plain.update(chunk)
        size += len(chunk)
    return "sha256:" + plain.hexdigest(), size


def _apply_plain(staged: Path, diff_id: str | None, stream: IO[bytes]) -> AppliedLayer:
    return apply(stream, staged, compression="none", expected_diff_id=diff_id)


def _retyped(added: _Added, media_type: str) -> _Added:
    return attrs.evolve(added, descriptor=attrs.evolve(added.descriptor, media_type=media_type))


def _digests(blob: Path, diff_id: str, digest: str | None) -> tuple[str, int]:
    """Verify a blob against both digests without unpacking it; return its digest and its plain size."""
    with blob.open("rb") as file:
        actual = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if digest is not None and actual != digest:
        what = "the layer's blob"
        raise DigestMismatch(what, digest, actual)
    plain = hashlib.sha256()
    size = 0
    for chunk in plain_chunks(blob, "the layer"):
        plain.update(chunk)
        size += len(chunk)
    if diff_id != "sha256:" + plain.hexdigest():
        what = "the layer"
        raise DigestMismatch(what, diff_id, "sha256:" + plain.hexdigest())
    return actual, size
