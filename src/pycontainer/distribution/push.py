"""Push an image: what the registry lacks travels, what another of its repositories has is mounted from there.

Documents are pushed byte for byte as the store has them. Of an image that was made here the plain layers are compressed
on their way, and its manifest says so: what comes from a registry or a layout keeps its digest, what is new is small.
"""

from __future__ import annotations

import functools
import json
import os
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import IO, TYPE_CHECKING, cast

import attrs

from pycontainer.distribution.codec import PackedBlob
from pycontainer.distribution.meter import Meter
from pycontainer.distribution.remote import Client
from pycontainer.errors import ImageError, NotFound, StoreError
from pycontainer.oci.image import (
    LAYER,
    LAYER_GZIP,
    MAX_DOCUMENT,
    Descriptor,
    Index,
    Manifest,
    parse_manifest,
    parse_manifest_or_index,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pycontainer.distribution.hosts import Registries
    from pycontainer.distribution.remote import Remote
    from pycontainer.distribution.transfer import Report
    from pycontainer.names import Reference
    from pycontainer.store import ImageRow, Store

__all__ = ["Pushed", "push"]

_CHUNK = 1 << 20
_MAX_INDEXES = 4  # nested


@attrs.frozen
class Pushed:
    """An image that is in a registry now.

    Attributes:
        digest: of the manifest or index that the reference means there.
        size: of that, in bytes.
    """

    digest: str
    size: int


@attrs.frozen
class _Document:
    """A manifest or index to push.

    Attributes:
        data: its bytes.
        media_type: of it.
        digest: of it.
        blobs: what it refers to, documents left out.
    """

    data: bytes
    media_type: str
    digest: str
    blobs: tuple[Descriptor, ...] = ()


def push(
    store: Store,
    row: ImageRow,
    reference: Reference,
    *,
    registries: Registries,
    progress: Report | None = None,
) -> Pushed:
    """Bring an image from the store to a registry.

    Args:
        store: where from.
        row: the image.
        reference: what it is called there; its digest alone when there is no tag.
        registries: how they are reached.
        progress: is told how it goes.

    Raises:
        Unauthorized: the registry wants other credentials.
        RegistryError: it cannot be reached, or refuses.
        StoreError: a blob of the image is missing in the store.
        ImageError: it is an image of the host's own programs.
    """
    if row.mounts != "[]":
        raise ImageError(f"push {reference}: the files of this image are those of the host, bound into its containers")
    store.keep(row.id)
    try:
        with store.adding() as workspace, Client(registries) as client:
            return _Push(store, workspace, client.origin(reference, "pull", "push"), row, reference).run(progress)
    finally:
        store.release(row.id)


class _Push:
    """One image on its way; see :func:`push`."""

    def __init__(self, store: Store, workspace: Path, remote: Remote, row: ImageRow, reference: Reference) -> None:
        self._store = store
        self._workspace = workspace
        self._remote = remote
        self._row = row
        self._reference = reference
        self._diff_ids: dict[str, str] = {layer.digest: layer.diff_id for layer in store.db.layers(row.id)}

    def run(self, progress: Report | None) -> Pushed:
        meter = Meter(progress)
        documents = self._documents()
        blobs = {blob.digest: blob for document in documents for blob in document.blobs}
        # A manifest that is known elsewhere by its digest stays as it is.
        compress = not any(text.endswith(f"@{self._row.digest}") for text in self._row.digests)
        plain = {digest for digest, blob in blobs.items() if compress and blob.media_type == LAYER}
        layers = {digest: blob for digest, blob in blobs.items() if digest in self._diff_ids}
        for digest, blob in layers.items():
            meter.expect(self._diff_ids[digest], blob.size)
        sent = self._send_all(list(blobs.values()), plain, meter)
        if plain:
            documents = [self._compressed(document, sent) for document in documents]
        last = documents[-1]
        for document in documents[:-1]:
            self._remote.put_manifest(document.digest, document.data, document.media_type)
        self._remote.put_manifest(self._reference.tag or last.digest, last.data, last.media_type)
        self._record(documents)
        meter.end(self._row.id, sum(blob.size for blob in layers.values()))
        return Pushed(last.digest, len(last.data))

    # ── documents ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _documents(self) -> list[_Document]:
        """Return what to push in order, each after all that it names: the whole index where the store has all of it."""
        for digest in self._store.db.blobs(self._row.id):
            found: dict[str, _Document] = {}
            if self._collect(digest, found, 0) and self._row.digest in found and isinstance(self._read(digest), Index):
                return list(found.values())
        found = {}
        self._collect(self._row.digest, found, 0, complete=False)
        return list(found.values())

    def _collect(self, digest: str, found: dict[str, _Document], depth: int, *, complete: bool = True) -> bool:
        """Collect a document and what it names; tell whether the store has all of that."""
        document = self._read(digest)
        if document is None or depth > _MAX_INDEXES:
            return False
        if isinstance(document, Index):
            for entry in document.manifests:
                if entry.digest not in found and not self._collect(entry.digest, found, depth + 1):
                    return False
            blobs: tuple[Descriptor, ...] = ()
        else:
            blobs = (document.config, *document.layers)
            if complete and not all(blob.digest in self._store.blobs for blob in blobs):
                return False
        data = self._store.blobs.read(digest, limit=MAX_DOCUMENT)
        media_type = self._row.media_type if digest == self._row.digest else document.media_type
        found[digest] = _Document(data, media_type, digest, blobs)
        return True

    def _read(self, digest: str) -> Manifest | Index | None:
        """Return a manifest or index of the store, None when it is neither or not there."""
        if digest not in self._store.blobs or self._store.blobs.size(digest) > MAX_DOCUMENT:
            return None
        try:
            return parse_manifest_or_index(self._store.blobs.read(digest, limit=MAX_DOCUMENT), digest)
        except ImageError:
            if digest == self._row.digest:
                raise
            return None  # another kind of blob

    def _compressed(self, document: _Document, sent: dict[str, Descriptor]) -> _Document:
        """Return a manifest with the layers as they were sent."""
        value = json.loads(document.data)
        manifest = parse_manifest(document.data)
        value["layers"] = [
            {**old, **sent[layer.digest].to_json()} if layer.digest in sent else old
            for old, layer in zip(value["layers"], manifest.layers, strict=True)
        ]
        data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        digest = self._store.blobs.write(data, self._workspace)
        return attrs.evolve(document, data=data, digest=digest)

    def _record(self, documents: Sequence[_Document]) -> None:
        """Note where the image is now, so that layers can be mounted from there."""
        name = self._reference.name
        digests = [f"{name}@{document.digest}" for document in documents]
        blobs = [document.digest for document in documents if document.digest != self._row.digest]
        try:
            self._store.put_digests(self._row.id, digests, blobs)
        except NotFound:
            return  # the image was pushed; that it is gone here is no matter

    # ── blobs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _send_all(self, blobs: Sequence[Descriptor], plain: set[str], meter: Meter) -> dict[str, Descriptor]:
        """Send blobs side by side; the first failure ends all of them. Return what was sent in place of plain ones."""
        wire = self._remote.wire
        pool = ThreadPoolExecutor(wire.registries.parallel, thread_name_prefix="pycontainer-push")
        futures = {}
        try:
            for blob in blobs:
                if blob.urls and blob.digest not in self._store.blobs:
                    continue  # its licence has everybody fetch it from there
                job = self._send_compressed if blob.digest in plain else self._send
                futures[pool.submit(job, blob, meter)] = blob.digest
            done = wait(futures, return_when=FIRST_EXCEPTION).done
            for future in done:
                future.result()
            return {digest: sent for future, digest in futures.items() if (sent := future.result()) is not None}
        finally:
            if any(not future.done() for future in futures):
                wire.interrupt()
            pool.shutdown(cancel_futures=True)

    def _send(self, blob: Descriptor, meter: Meter) -> None:
        self._upload(blob, functools.partial(self._open, blob.digest), self._diff_ids.get(blob.digest), meter)

    def _send_compressed(self, blob: Descriptor, meter: Meter) -> Descriptor:
        diff_id = self._diff_ids[blob.digest]
        known = self._compressed_before().get(blob.digest)
        if known is not None and self._remote.blob_size(known.digest) is not None:
            meter.change(diff_id, "exists", known.size)
            return known
        path = self._workspace / ("gzip-" + blob.digest.replace(":", "-"))
        with self._open(blob.digest, 0) as plain, PackedBlob(path, "gzip") as packed:
            while chunk := plain.read(_CHUNK):
                packed.write(chunk)
            digest = packed.finish()
        try:
            small = Descriptor(media_type=LAYER_GZIP, digest=digest, size=path.stat().st_size)
            meter.expect(diff_id, small.size)
            self._upload(small, functools.partial(_open_at, path), diff_id, meter)
        finally:
            path.unlink()
        return small

    def _compressed_before(self) -> dict[str, Descriptor]:
        """Return what became of the plain layers when the image was pushed before."""
        ours = self._read(self._row.digest)
        for digest in self._store.db.blobs(self._row.id):
            other = self._read(digest)
            if isinstance(ours, Manifest) and isinstance(other, Manifest) and other.config == ours.config:
                pairs = zip(ours.layers, other.layers, strict=False)
                return {plain.digest: packed for plain, packed in pairs if packed.media_type == LAYER_GZIP}
        return {}

    def _upload(self, blob: Descriptor, open_at: Callable[[int], IO[bytes]], diff_id: str | None, meter: Meter) -> None:
        told = 0

        def report(offset: int) -> None:
            nonlocal told
            if diff_id is not None:
                if not told:
                    meter.change(diff_id, "uploading")
                meter.advance(diff_id, offset - told)
                told = offset

        how = self._remote.upload(
            blob.digest, blob.size, open_at, mount_from=self._elsewhere(diff_id, blob.digest), progress=report
        )
        if diff_id is not None:
            meter.change(diff_id, "done" if how == "sent" else "exists", blob.size)

    def _elsewhere(self, diff_id: str | None, digest: str) -> str | None:
        """Return another repository of the registry that has a blob, as far as is known here."""
        if diff_id is None:
            return None
        before = self._reference.registry + "/"
        for name, known in self._store.db.repositories(diff_id):
            if known == digest and name.startswith(before) and name != self._reference.name:
                return name.removeprefix(before)
        return None

    def _open(self, digest: str, offset: int) -> IO[bytes]:
        try:
            file = self._store.blobs.open(digest)
        except NotFound as error:
            raise StoreError(f"push {self._reference}: {error}; pull or load the image again") from None
        file.seek(offset)
        return cast("IO[bytes]", file)


def _open_at(path: Path, offset: int) -> IO[bytes]:
    file = path.open("rb")
    file.seek(offset, os.SEEK_SET)
    return cast("IO[bytes]", file)
