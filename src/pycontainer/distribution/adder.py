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

from pycontainer.distribution.codec import HEAD, PackedBlob, detect, detect_bytes, plain_chunks
from pycontainer.distribution.forms import Taken, choose_form
from pycontainer.distribution.lanes import Abandoned, Lane, feed
from pycontainer.distribution.layer import LayerLimits
from pycontainer.distribution.outflow import Outflow
from pycontainer.distribution.sources import BlobSource, kept_file
from pycontainer.errors import DigestMismatch, ImageError, NotFound
from pycontainer.oci.image import LAYER, LAYER_GZIP, LAYER_ZSTD, Descriptor, Manifest
from pycontainer.store import ImageRow, LayerRow, Store

if TYPE_CHECKING:
    from pathlib import Path

    from pycontainer.distribution.layer import Compression
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
        self._form = choose_form(store, workspace, limits or LayerLimits())
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
        if identity not in store.blobs or row.digest not in store.blobs:
            return None
        if not {blob.digest for blob in source.blobs} <= set(store.db.blobs(identity)):
            return None
        layers = store.db.layers(identity)
        if not all(self._form.has(layer) and layer.digest in store.blobs for layer in layers):
            return None
        if not self._has_merged(row):
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

    def _has_merged(self, row: ImageRow) -> bool:
        return not row.merged or (bool(self._store.indexed) and self._store.snapshots.has_index(row.merged))

    def _known(self, layer: LayerSource) -> AddedLayer | None:
        """Return a layer that an image of the store has, from the same blob if one is promised."""
        row = self._store.db.layer(layer.diff_id, layer.digest)
        if row is None or not self._form.has(row) or row.digest not in self._store.blobs:
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
            row = self._store.db.layer(name)
            here = row is not None and self._form.has(row)
            self._meter.change(name, "verifying" if here else layer.state, layer.size)
            with closing(self._open(layer)) as stream:
                added = self._receive(stream, layer, name, diff_id=name)
            self._meter.change(name, "done", added.descriptor.size)
        if layer.media_type is None:
            return added
        return attrs.evolve(added, descriptor=attrs.evolve(added.descriptor, media_type=layer.media_type))

    def _open(self, layer: LayerSource) -> ByteStream | IO[bytes]:
        """Open the blob of a layer; here if another process brought it in just now, for an image not yet complete."""
        if layer.digest is not None and layer.digest in self._store.blobs:
            return self._store.blobs.open(layer.digest)
        return layer.open()

    def _receive(
        self, stream: ByteStream | IO[bytes], source: BlobSource, name: str, *, diff_id: str | None = None
    ) -> AddedLayer:
        """Take the blob of a layer into the store in the same pass as its content."""
        counted = _Counted(stream, source, functools.partial(self._meter.advance, name), self._cancelled)
        kind = detect_bytes(counted.peek(HEAD))
        take = functools.partial(
            self._form.take,
            counted,
            diff_id=diff_id,
            digest=source.digest,
            compression=cast("Compression", kind if kind in ("gzip", "zstd") else "none"),
        )
        blob = kept_file(stream)
        if blob is None:
            blob = self._blob_path(diff_id or "new")
            with blob.open("xb", buffering=0) as file:
                taken = take(Outflow(file.fileno()).write)
        else:
            try:
                taken = take(None)
            except DigestMismatch:
                blob.unlink(missing_ok=True)  # to be resumed is what is good
                raise
        counted.check_end()
        return self._publish(taken, blob)

    def _publish(self, taken: Taken, blob: Path) -> AddedLayer:
        self._store.blobs.publish(blob, taken.row.digest)
        taken.publish()
        return self.describe(taken.row)

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
            taking = Lane(self._form.take)
            feed(produce, packing, taking)
            taken = taking.result()
            return self._publish(attrs.evolve(taken, row=attrs.evolve(taken.row, digest=packing.result())), blob)
        with blob.open("xb", buffering=0) as file:
            write = Outflow(file.fileno()).write
            taking = Lane(lambda stream: self._form.take(stream, write, compression="none"))
            feed(produce, taking)
        return self._publish(taking.result(), blob)

    def add_file(self, path: Path) -> AddedLayer:
        """Bring in a tar file, of which nothing is known yet, as a layer."""
        with path.open("rb") as file:
            if detect(file.fileno()) not in ("gzip", "zstd"):
                return self.add_stream(functools.partial(_write_plain, path), name=str(path))
            source = BlobSource(name=str(path), open=lambda: file, size=os.fstat(file.fileno()).st_size)
            self._meter.expect(source.name, source.size)
            self._meter.change(source.name, "applying")
            added = self._receive(file, source, source.name)
            self._meter.change(source.name, "done")
        return added

    # ── images ────────────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self, source: Source, layers: Sequence[AddedLayer], references: Sequence[str], *, mounts: str) -> str:
        """Write the documents and make the image visible; return its id."""
        rows, merged = self._form.join([layer.row for layer in layers])
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
            merged,
            " ".join(source.digests),
        )
        further = [self._add_blob(blob) for blob in source.blobs]
        self._store.put_image(row, rows, further)
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
            write = Outflow(file.fileno()).write
            counted = _Counted(stream, blob, lambda _count: None, self._cancelled)
            while chunk := counted.read(_CHUNK):
                hashed.update(chunk)
                write(chunk)
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
        self._head = b""

    def read(self, size: int, /) -> bytes:
        if self._head:
            head, self._head = self._head[:size], self._head[size:]
            return head
        return self._fetch(size)

    def peek(self, size: int) -> bytes:
        """Return the first bytes, which are read again afterwards."""
        head = b""
        while len(head) < size and (more := self._fetch(size - len(head))):
            head += more
        self._head = head
        return head

    def _fetch(self, size: int) -> bytes:
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


def _write_plain(path: Path, write: Write) -> None:
    for chunk in plain_chunks(path, str(path)):
        write(chunk)


def _compress(blob: Path, compression: Literal["gzip", "zstd"], stream: IO[bytes]) -> str:
    """Write a stream to a compressed blob; return its digest."""
    with PackedBlob(blob, compression) as file:
        while chunk := stream.read(_CHUNK):
            file.write(chunk)
        return file.finish()
