"""Bring one image into the store: each blob in one pass, its digests verified before anybody sees it."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import IO, TYPE_CHECKING, Literal, NoReturn, cast

import attrs

from pycontainer.distribution import parents
from pycontainer.distribution.codec import PackedBlob, detect, plain_chunks
from pycontainer.distribution.lanes import Abandoned, Lane, feed
from pycontainer.distribution.layer import AppliedLayer, LayerLimits, apply, verify
from pycontainer.distribution.sources import BlobSource, kept_file
from pycontainer.errors import DigestMismatch, ImageError, NotFound
from pycontainer.oci.image import LAYER, LAYER_GZIP, LAYER_ZSTD, Descriptor, Manifest
from pycontainer.store import ImageRow, LayerRow, Store

if TYPE_CHECKING:
    from pathlib import Path

    from pycontainer.distribution.meter import Meter
    from pycontainer.distribution.sources import ByteStream, LayerSource, Source

__all__ = ["AddedLayer", "Adder"]

_CHUNK = 1 << 20
_MEDIA_TYPES = {"": LAYER, "gzip": LAYER_GZIP, "zstd": LAYER_ZSTD}

Write = Callable[[bytes], object]
Produce = Callable[[Write], object]


@attrs.frozen
class AddedLayer:
    """A layer that is in the store.

    Attributes:
        row: its record.
        descriptor: what a manifest says of its blob.
    """

    row: LayerRow
    descriptor: Descriptor


class Adder:
    """One image on its way into the store; its layers may come from several threads.

    Args:
        store: where to.
        workspace: of this operation, from :meth:`Store.adding`.
        meter: counts what passes.
        limits: what is too much for a layer.
    """

    def __init__(self, store: Store, workspace: Path, meter: Meter, limits: LayerLimits | None = None) -> None:
        self._store = store
        self._workspace = workspace
        self._meter = meter
        self._limits = limits or LayerLimits()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Let what other threads are adding end soon, with :class:`Abandoned`."""
        self._cancelled.set()

    # ── what is here already ──────────────────────────────────────────────────────────────────────────────────────

    def find(self, source: Source, references: Sequence[str]) -> str | None:
        """Return the id of an image that is here already, all of it, after giving it its names and digests."""
        store = self._store
        identity = _sha256(source.config)
        row = store.db.by_id(identity)
        if row is None or (source.manifest is not None and row.digest != _sha256(source.manifest)):
            return None
        if not {blob.digest for blob in source.blobs} <= set(store.db.blobs(identity)):
            return None
        layers = store.db.layers(identity)
        if not all(layer.snapshot in store.snapshots and layer.digest in store.blobs for layer in layers):
            return None
        try:
            for name in references:
                store.put_reference(name, identity)
            if not set(source.digests) <= set(row.digests):
                store.put_digests(identity, source.digests)
        except NotFound:
            return None  # removed just now
        for layer in layers:
            self._meter.change(layer.diff_id, "exists", store.blobs.size(layer.digest))
        self._meter.end(identity, sum(layer.size for layer in layers))
        return identity

    def _known(self, layer: LayerSource) -> AddedLayer | None:
        """Return a layer that an image of the store has, from the same blob if one is promised."""
        row = self._store.db.layer(layer.diff_id, layer.digest)
        if row is None or row.diff_id not in self._store.snapshots or row.digest not in self._store.blobs:
            return None
        return self.describe(row, layer.media_type)

    def describe(self, row: LayerRow, media_type: str | None = None) -> AddedLayer:
        """Return a layer that is here with what a manifest says of its blob."""
        with self._store.blobs.open(row.digest) as file:
            kind = detect(file.fileno())
            size = os.fstat(file.fileno()).st_size
        media_type = media_type or _MEDIA_TYPES.get(kind, LAYER)
        return AddedLayer(row, Descriptor(media_type=media_type, digest=row.digest, size=size))

    # ── layers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, layer: LayerSource) -> AddedLayer:
        """Bring in a layer, unless it is here; others who want the same one wait meanwhile.

        Raises:
            ImageError: it is not what it should be, damaged or hostile.
        """
        name = layer.diff_id
        with self._store.snapshots.lock(name, self._cancelled) as held:
            if not held:
                raise Abandoned
            added = self._known(layer)
            if added is not None:
                self._meter.change(name, "exists", added.descriptor.size)
                return added
            here = name in self._store.snapshots  # from another blob, or just now by another process
            self._meter.change(name, "verifying" if here else layer.state, layer.size)
            with closing(layer.open()) as stream:
                take = self._verify if here else self._unpack
                added = self._receive(stream, layer, functools.partial(take, diff_id=name, digest=layer.digest), name)
            self._meter.change(name, "done", added.descriptor.size)
        if layer.media_type is None:
            return added
        return attrs.evolve(added, descriptor=attrs.evolve(added.descriptor, media_type=layer.media_type))

    def _receive(
        self,
        stream: ByteStream | IO[bytes],
        layer: BlobSource,
        take: Callable[[ByteStream, Write | None], LayerRow],
        name: str,
    ) -> AddedLayer:
        """Take the blob of a layer into the store in the same pass as its content."""
        counted = _Counted(stream, layer, functools.partial(self._meter.advance, name), self._cancelled)
        kept = kept_file(stream)
        if kept is None:
            blob = self._blob_path(name if name.startswith("sha256:") else "new")
            with blob.open("xb", buffering=0) as file:
                row = take(counted, functools.partial(_write_all, file))
        else:
            blob = kept
            try:
                row = take(counted, None)
            except DigestMismatch:
                kept.unlink(missing_ok=True)  # to be resumed is what is good
                raise
        counted.check_end()
        self._store.blobs.publish(blob, row.digest)
        return self.describe(row)

    def _blob_path(self, name: str) -> Path:
        return self._workspace / ("blob-" + name.replace(":", "-"))

    def add_stream(
        self, produce: Produce, compression: Literal["none", "gzip", "zstd"] = "none", *, name: str = "new"
    ) -> AddedLayer:
        """Bring in a layer of which nothing is known yet.

        Args:
            produce: is called with the function that takes the plain tar stream.
            compression: of the blob to make.
            name: what its progress is called.
        """
        self._meter.expect(name, None)
        self._meter.change(name, "applying")
        added = self._add_stream(functools.partial(self._count, name, produce), compression)
        self._meter.change(name, "done")
        return added

    def _count(self, name: str, produce: Produce, write: Write) -> None:
        def count(data: bytes) -> None:
            self._meter.advance(name, len(data))
            write(data)

        produce(count)

    def _add_stream(self, produce: Produce, compression: Literal["none", "gzip", "zstd"]) -> AddedLayer:
        blob = self._blob_path("new")
        if compression != "none":
            packing = Lane(functools.partial(_compress, blob, compression))
            unpacking = Lane(lambda stream: self._unpack(cast("ByteStream", stream), None))
            feed(produce, packing, unpacking)
            row = attrs.evolve(unpacking.result(), digest=packing.result())
        else:
            with blob.open("xb", buffering=0) as file:
                write = functools.partial(_write_all, file)
                unpacking = Lane(lambda stream: self._unpack(cast("ByteStream", stream), write))
                feed(produce, unpacking)
                row = unpacking.result()
        self._store.blobs.publish(blob, row.digest)
        return self.describe(row)

    def add_file(self, path: Path) -> AddedLayer:
        """Bring in a tar file, of which nothing is known yet, as a layer."""
        with path.open("rb") as file:
            if detect(file.fileno()) not in ("gzip", "zstd"):
                return self.add_stream(functools.partial(_write_plain, path), name=str(path))
            source = BlobSource(name=str(path), open=lambda: file, size=os.fstat(file.fileno()).st_size)
            self._meter.expect(source.name, source.size)
            self._meter.change(source.name, "applying")
            added = self._receive(file, source, self._unpack, source.name)
            self._meter.change(source.name, "done")
        return added

    def _unpack(
        self,
        stream: ByteStream | IO[bytes],
        copy_to: Write | None,
        *,
        diff_id: str | None = None,
        digest: str | None = None,
    ) -> LayerRow:
        """Unpack the blob of a layer and publish the result."""
        staged, applied = self._apply(stream, diff_id or "new", copy_to, diff_id=diff_id, digest=digest)
        self._store.snapshots.publish(staged, applied.diff_id)
        return LayerRow(applied.diff_id, applied.digest, applied.bytes)

    def _apply(
        self,
        blob: ByteStream | IO[bytes] | Path,
        name: str,
        copy_to: Write | None = None,
        *,
        diff_id: str | None,
        digest: str | None,
    ) -> tuple[Path, AppliedLayer]:
        """Unpack a blob into the workspace, marking directories that it does not describe."""
        staged = self._store.snapshots.stage(self._workspace, name.replace(":", "-"))
        since = staged.stat().st_mtime_ns
        applied = apply(
            cast("IO[bytes] | Path", blob),
            staged,
            expected_digest=digest,
            expected_diff_id=diff_id,
            limits=self._limits,
            copy_to=copy_to,
        )
        parents.mark(staged, since)
        if applied.hides_all:
            self._store.snapshots.hide_all(staged)
        return staged, applied

    def _verify(
        self, stream: ByteStream | IO[bytes], copy_to: Write | None, *, diff_id: str, digest: str | None
    ) -> LayerRow:
        """Verify the blob of a layer that is here from another one."""
        actual, _, size = verify(
            cast("IO[bytes]", stream),
            expected_digest=digest,
            expected_diff_id=diff_id,
            limits=self._limits,
            copy_to=copy_to,
        )
        return LayerRow(diff_id, actual, size)

    # ── images ────────────────────────────────────────────────────────────────────────────────────────────────────

    def complete(self, layers: Sequence[AddedLayer]) -> list[AddedLayer]:
        """Have layers that need it unpacked again for what is below them; see :mod:`~.parents`."""
        store = self._store
        done: list[AddedLayer] = []
        for layer, chain_id in zip(layers, parents.chain_ids([layer.row.diff_id for layer in layers]), strict=True):
            snapshot = layer.row.diff_id
            if done and parents.marked(store.snapshots.path(snapshot)):
                snapshot = chain_id
                with store.snapshots.lock(chain_id):
                    if chain_id not in store.snapshots:
                        self._rebuild(layer, chain_id, [item.row.snapshot for item in reversed(done)])
            done.append(attrs.evolve(layer, row=attrs.evolve(layer.row, snapshot=snapshot)))
        return done

    def _rebuild(self, layer: AddedLayer, chain_id: str, below: Sequence[str]) -> None:
        snapshots = self._store.snapshots
        blob = self._store.blobs.path(layer.row.digest)
        staged = self._apply(blob, chain_id, digest=layer.row.digest, diff_id=layer.row.diff_id)[0]
        parents.complete(staged, [snapshots.path(snapshot) for snapshot in below])
        snapshots.publish(staged, chain_id)
        self._store.db.put_meta("collect", "1")  # the one unpacked by itself, unless another image has it

    def finish(self, source: Source, layers: Sequence[AddedLayer], references: Sequence[str], *, mounts: str) -> str:
        """Write the documents and make the image visible; return its id."""
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
            digests=" ".join(source.digests),
        )
        further = [self._add_blob(blob) for blob in source.blobs]
        self._store.put_image(row, [layer.row for layer in layers], further)
        self._meter.end(identity, sum(layer.row.size for layer in layers))
        return identity

    def _add_blob(self, blob: BlobSource) -> str:
        """Bring in a blob that is kept as it is; return its digest."""
        if blob.digest is None:
            msg = f"{blob.name}: what is kept beside an image needs a digest"
            raise ValueError(msg)
        if blob.digest in self._store.blobs:
            return blob.digest
        temporary = self._blob_path("further-" + blob.digest)
        algorithm, _, encoded = blob.digest.partition(":")
        self._store.blobs.path(blob.digest)  # refuses other algorithms
        hashed = hashlib.new(algorithm)
        with closing(blob.open()) as stream, temporary.open("xb", buffering=0) as file:
            counted = _Counted(stream, blob, lambda _count: None, self._cancelled)
            while chunk := counted.read(_CHUNK):
                hashed.update(chunk)
                _write_all(file, chunk)
            counted.check_end()
        if hashed.hexdigest() != encoded:
            raise DigestMismatch(blob.name, blob.digest, f"{algorithm}:{hashed.hexdigest()}")
        self._store.blobs.publish(temporary, blob.digest)
        return blob.digest


class _Counted:
    """A stream whose bytes are counted, held to what was promised, and cut off when all is cancelled."""

    def __init__(
        self,
        stream: ByteStream | IO[bytes],
        blob: BlobSource,
        advance: Callable[[int], object],
        cancelled: threading.Event,
    ) -> None:
        self._stream = stream
        self._blob = blob
        self._advance = advance
        self._cancelled = cancelled
        self._count = 0

    def read(self, size: int, /) -> bytes:
        if self._cancelled.is_set():
            msg = "another layer of the image failed"
            raise Abandoned(msg)
        data = self._stream.read(size)
        self._count += len(data)
        if self._blob.size is not None and self._count > self._blob.size:
            self._refuse("more")
        self._advance(len(data))
        return data

    def check_end(self) -> None:
        if self._blob.size is not None and self._count < self._blob.size:
            self._refuse(f"only {self._count}")

    def close(self) -> None:
        self._stream.close()

    def _refuse(self, actual: str) -> NoReturn:
        msg = f"{self._blob.name} should have {self._blob.size} bytes, there are {actual}"
        raise ImageError(msg)


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _write_plain(path: Path, write: Write) -> None:
    for chunk in plain_chunks(path, str(path)):
        write(chunk)


def _compress(blob: Path, compression: Literal["gzip", "zstd"], stream: IO[bytes]) -> str:
    """Write a stream to a compressed blob; return its digest."""
    with PackedBlob(blob, compression) as file:
        while chunk := stream.read(_CHUNK):
            file.write(chunk)
        return file.finish()
