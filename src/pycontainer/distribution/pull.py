"""Pull an image: documents from the registry or its mirrors, layers straight into the store, the missing ones only.

Documents that the store has are not asked for again, so that an image that is up to date costs one request.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import attrs

from pycontainer.distribution import transfer
from pycontainer.distribution.contents import check_algorithm, check_platform, image_document, known_layer_type
from pycontainer.distribution.partial import Download
from pycontainer.distribution.remote import Client, RawManifest, Remote
from pycontainer.distribution.sources import BlobSource, LayerSource, Source
from pycontainer.errors import DigestMismatch, ImageError, ManifestUnknown, NotFound
from pycontainer.oci.image import (
    CONFIG,
    DOCKER_CONFIG,
    MAX_CONFIG,
    MAX_DOCUMENT,
    Descriptor,
    Manifest,
    parse_manifest_or_index,
)
from pycontainer.oci.platforms import Platform, choose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pycontainer.distribution.download import RemoteBlob
    from pycontainer.distribution.hosts import Registries
    from pycontainer.distribution.layer import LayerLimits
    from pycontainer.distribution.sources import ByteStream
    from pycontainer.distribution.transfer import Report
    from pycontainer.names import Reference
    from pycontainer.store import Store

__all__ = ["Pulled", "pull", "pull_all"]

_MAX_INDEXES = 4  # nested
_ATTESTATION = "vnd.docker.reference.type"
_ATTESTED = "vnd.docker.reference.digest"
_MAX_ATTESTATIONS = 16  # of an image
_MAX_ATTESTATION = 64 << 20  # bytes of a part of one


@attrs.frozen
class Pulled:
    """An image that is in the store now.

    Attributes:
        id: of the image.
        digest: of the manifest or index that the reference means.
        updated: it was not all there before, or not under this name.
        place: the host that told what the reference means.
    """

    id: str
    digest: str
    updated: bool
    place: str


def pull(
    store: Store,
    reference: Reference,
    *,
    registries: Registries,
    platform: Platform | None = None,
    progress: Report | None = None,
    limits: LayerLimits | None = None,
) -> Pulled:
    """Bring an image from its registry, or a mirror, into the store.

    Args:
        store: where to.
        reference: what to pull; with a digest the tag does not matter, and is not given to the image.
        registries: how they are reached.
        platform: which of several, and no other; the host's when not given.
        progress: is told how it goes.
        limits: what is too much for a layer.

    Raises:
        ManifestUnknown: there is no such image.
        RegistryError: no place that has it can be reached, or they refuse.
        ImageError: the image is damaged, hostile or not for this platform. Nothing of it is left.
    """
    with Client(registries) as client:
        return _pull(client, store, reference, platform, progress, limits)


def pull_all(
    store: Store,
    reference: Reference,
    *,
    registries: Registries,
    platform: Platform | None = None,
    progress: Report | None = None,
    limits: LayerLimits | None = None,
) -> list[tuple[str, Pulled]]:
    """Pull every tag of a repository; see :func:`pull`.

    Returns:
        Tags and images.
    """
    with Client(registries) as client:
        done = []
        for tag in client.origin(reference).tags():
            tagged = attrs.evolve(reference, tag=tag, digest=None)
            done.append((tag, _pull(client, store, tagged, platform, progress, limits)))
        return done


def _pull(
    client: Client,
    store: Store,
    reference: Reference,
    platform: Platform | None,
    progress: Report | None,
    limits: LayerLimits | None,
) -> Pulled:
    name = str(reference) if reference.digest is None else None
    before = store.db.by_name(name) if name else None
    failures: list[str] = []
    remotes = client.remotes(reference)
    for remote in remotes:
        job = _Pull(store, remote, reference, platform)
        try:
            source = job.source(asked_before=before is not None)
            identity = job.add(source, progress, limits)
        except ImageError as error:
            client.wire.resume()
            if remote is remotes[-1]:
                for failure in failures:
                    error.add_note(failure)
                raise
            failures.append(f"the mirror {remote.endpoint.host} failed before: {error}")
            continue
        updated = job.fetched or before is None or before.id != identity
        return Pulled(identity, job.top, updated, remote.endpoint.host)
    raise AssertionError(remotes)  # the last of them returns or raises


class _Pull:
    """One image from one place.

    Args:
        store: where to.
        remote: the repository.
        reference: what is pulled.
        platform: asked for.

    Attributes:
        top: digest of what the reference means there.
        fetched: something was fetched.
    """

    def __init__(self, store: Store, remote: Remote, reference: Reference, platform: Platform | None) -> None:
        self._store = store
        self._remote = remote
        self._reference = reference
        self._asked = platform
        self._resumed = False
        self._what = str(reference)
        self.top = ""
        self.fetched = False

    # ── documents ─────────────────────────────────────────────────────────────────────────────────────────────────

    def source(self, *, asked_before: bool) -> Source:
        """Return the image, its documents read and checked.

        Args:
            asked_before: an image of this name is here: it may still be the same.
        """
        data = self._top(asked_before=asked_before)
        kept: list[BlobSource] = []
        passed: list[Descriptor] = []
        digest = self.top
        for _ in range(_MAX_INDEXES):
            what = f"{self._what}: the manifest {digest}"
            document = parse_manifest_or_index(data, what)
            if isinstance(document, Manifest):
                about = [entry for entry in passed if entry.annotations.get(_ATTESTED) == digest]
                for entry in about[:_MAX_ATTESTATIONS]:
                    kept += self._attestation(entry)
                return self._image(document, data, digest, kept)
            kept.append(BlobSource.document(data, digest))
            passed += document.manifests
            entries = [entry for entry in document.manifests if _may_be_image(entry)]
            chosen = choose(entries, self._asked or transfer.host_platform(), self._what)
            digest, data = chosen.digest, self._document(chosen, what)
        raise ImageError(f"{self._what}: indexes are nested deeper than {_MAX_INDEXES} levels")

    def _top(self, *, asked_before: bool) -> bytes:
        """Return the manifest or index that the reference means; ask for its digest alone when it may be here."""
        wanted = self._reference.digest or self._reference.tag or ""
        found: Descriptor | None = None
        if self._reference.digest is not None:
            check_algorithm(wanted, self._what)
            here = self._here(wanted, MAX_DOCUMENT)
            whole = f"{self._reference.name}@{wanted}"
            if here is not None and any(whole in row.digests for row in self._store.db.by_digest(wanted)):
                self.top = wanted
                return here
        elif asked_before:
            found = self._remote.head(wanted)
        if found is not None:
            here = self._here(found.digest, MAX_DOCUMENT)
            if here is not None:
                self.top = found.digest
                return here
            wanted = found.digest
        manifest: RawManifest = self._remote.manifest(wanted)
        self.top = manifest.digest
        self.fetched = True
        check_algorithm(self.top, self._what)
        return manifest.data

    def _here(self, digest: str, limit: int) -> bytes | None:
        """Return a document that the store has, verified."""
        if not digest.startswith("sha256:") or digest not in self._store.blobs:
            return None
        try:
            return self._store.blobs.read(digest, limit=limit)
        except (NotFound, DigestMismatch):
            return None  # removed just now, or damaged: the registry has it

    def _document(self, entry: Descriptor, what: str) -> bytes:
        check_algorithm(entry.digest, what)
        data = self._here(entry.digest, MAX_DOCUMENT)
        if data is None:
            self.fetched = True
            data = self._remote.manifest(entry.digest).data
        if len(data) != entry.size:
            raise ImageError(f"{what}: {entry.digest} has {len(data)} bytes, its descriptor says {entry.size}")
        return data

    def _attestation(self, entry: Descriptor) -> list[BlobSource]:
        """Return what tells how an image was built, so that a push of it has the whole index."""
        what = f"{self._what}: the attestation {entry.digest}"
        try:
            data = self._document(entry, what)
        except ManifestUnknown:
            return []  # the image runs without
        document = parse_manifest_or_index(data, what)
        parts = (document.config, *document.layers) if isinstance(document, Manifest) else ()
        if any(part.size > _MAX_ATTESTATION or not part.digest.startswith("sha256:") for part in parts):
            return []
        return [
            BlobSource.document(data, entry.digest),
            *(
                BlobSource(
                    name=f"{what}: {part.digest}",
                    open=functools.partial(self._fetch, part, 0),
                    digest=part.digest,
                    size=part.size,
                )
                for part in parts
            ),
        ]

    def _image(self, manifest: Manifest, data: bytes, digest: str, kept: Sequence[BlobSource]) -> Source:
        if manifest.config.media_type not in (CONFIG, DOCKER_CONFIG):
            raise ImageError(f"{self._what} is no container image: its config is {manifest.config.media_type!r}")
        for layer in (manifest.config, *manifest.layers):
            check_algorithm(layer.digest, self._what)
        for layer in manifest.layers:
            if not known_layer_type(layer.media_type):
                raise ImageError(f"{self._what} has a layer of type {layer.media_type!r}, which cannot be unpacked")
        config = self._here(manifest.config.digest, MAX_CONFIG)
        if config is None:
            self.fetched = True
            config = self._remote.blob_bytes(manifest.config, MAX_CONFIG)
        what = f"{self._what}: its config"
        document = image_document(config, what, len(manifest.layers))
        check_platform(document, self._asked, self._what)
        name = self._reference.name
        return Source(
            config=config,
            config_type=manifest.config.media_type,
            document=document,
            layers=tuple(
                self._layer(layer, diff_id) for layer, diff_id in zip(manifest.layers, document.diff_ids, strict=True)
            ),
            manifest=data,
            media_type=manifest.media_type,
            blobs=tuple(kept),
            digests=tuple(dict.fromkeys((f"{name}@{self.top}", f"{name}@{digest}"))),
        )

    # ── layers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _layer(self, layer: Descriptor, diff_id: str) -> LayerSource:
        return LayerSource(
            name=f"the layer {layer.digest} of {self._reference.name}",
            open=functools.partial(self._open, layer),
            diff_id=diff_id,
            digest=layer.digest,
            size=layer.size,
            media_type=layer.media_type,
            state="downloading",
        )

    def _open(self, layer: Descriptor) -> ByteStream:
        """Return the bytes of a layer; the lock of the layer is held."""
        self.fetched = True
        if layer.digest in self._store.blobs:  # another process has just brought it
            return self._store.blobs.open(layer.digest)
        if layer.urls and self._remote.blob_size(layer.digest) is None:
            raise ManifestUnknown(
                f"get the layer {layer.digest} of {self._reference.name}",
                self._remote.endpoint.host,
                f"it has no copy, as its licence does not allow that; there is one at {' or '.join(layer.urls[:3])}",
                hint="a layer is not fetched from elsewhere; load an archive that has it",
            )
        fetch = functools.partial(self._fetch, layer)
        download = Download(self._store.root / "downloads", layer.digest, layer.size, fetch)
        self._resumed = self._resumed or download.resumed > 0
        return download

    def _fetch(self, layer: Descriptor, offset: int) -> RemoteBlob:
        return self._remote.blob(layer, offset=offset)

    def add(self, source: Source, progress: Report | None, limits: LayerLimits | None) -> str:
        """Bring the image into the store; once more when what an earlier pull left turns out to be damaged."""
        reference = self._reference
        names = (str(reference),) if reference.digest is None else ()
        wire = self._remote.wire
        while True:
            again = self._resumed
            self._resumed = False
            try:
                return transfer.add_image(
                    self._store,
                    source,
                    references=names,
                    progress=progress,
                    limits=limits,
                    parallel=wire.registries.parallel,
                    on_cancel=wire.interrupt,
                )
            except DigestMismatch:
                if again or not self._resumed:
                    raise
                wire.resume()


def _may_be_image(entry: Descriptor) -> bool:
    """Tell whether an entry of an index may be an image: attestations are in there too."""
    unknown = entry.platform is not None and entry.platform.os == entry.platform.architecture == "unknown"
    return _ATTESTATION not in entry.annotations and not unknown and not entry.artifact_type
