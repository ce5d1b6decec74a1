"""The collection of all images of a store."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pycontainer.errors import Conflict, Error, NotFound, StoreError
from pycontainer.image import HistoryEntry, Image, ImageDetails, RemovedImages, history_entries
from pycontainer.lookup import Filters, Lookup, bare_repository
from pycontainer.model import ImageConfig, Mount
from pycontainer.names import new_reference, parse_reference
from pycontainer.oci.image import MAX_CONFIG, MAX_DOCUMENT, ImageDocument, parse_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from pycontainer.distribution.hosts import Registries
    from pycontainer.distribution.layer import LayerLimits
    from pycontainer.distribution.save import ArchiveFormat, Packing
    from pycontainer.oci.platforms import Platform
    from pycontainer.progress import Progress
    from pycontainer.store import ImageRow, Store

__all__ = ["Images"]


class Images:
    """The images of a store.

    Wherever a name is taken, a reference (``"debian"``, ``"registry.example/app:1"``), an id with or without
    ``sha256:``, the unique beginning of an id, and ``name@sha256:…`` of a manifest work.

    Args:
        store: where they are.
        registries: how registries are reached; as the configuration files say, when not given.
    """

    def __init__(self, store: Store, registries: Registries | None = None) -> None:
        self._store = store
        self._registries = registries
        self._lookup = Lookup(store)
        self._cache: dict[str, tuple[ImageRow, Image]] = {}

    # ── look up ───────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, name: str | Image) -> Image:
        """Return an image.

        Args:
            name: what it is called.

        Raises:
            NotFound: there is none; the message lists names that are alike.
            Conflict: several ids start like this.
            InvalidReference: the text cannot be the name of an image.
        """
        return self._image(self._find(name))

    def list(
        self,
        *,
        reference: str | Sequence[str] = (),
        label: str | Sequence[str] = (),
        without_label: str | Sequence[str] = (),
        dangling: bool | None = None,
        before: str | Image | None = None,
        since: str | Image | None = None,
        until: datetime | None = None,
    ) -> Sequence[Image]:
        """Return the images that are all of this, the newest first.

        The time of an image that does not tell when it was made is that at which it came into the store.

        Args:
            reference: one of its names is like one of these patterns, as in ``"debian"``, ``"debian:1*"``, ``"*/app"``.
            label: it has each of these labels, ``"name"`` or ``"name=value"``.
            without_label: it has none of these.
            dangling: it has no name, or has one.
            before: it was made before this image.
            since: it was made after this image.
            until: it was made before this time.

        Raises:
            NotFound: there is no image ``before`` or ``since``.
            ValueError: a pattern is none.
        """
        limits = [until] if until is not None else []
        if before is not None:
            limits.append(self._made(self._find(before)))
        filters = Filters(
            references=_several(reference),
            labels=_several(label),
            without_labels=_several(without_label),
            dangling=dangling,
            before=min(limits, default=None),
            since=None if since is None else self._made(self._find(since)),
        )
        return [self._image(row) for row in self._fitting(filters)]

    def _fitting(self, filters: Filters) -> Iterator[ImageRow]:
        return (row for row in self._store.db.images() if filters.fit(self._image(row), self._made(row)))

    def _made(self, row: ImageRow) -> datetime:
        return self._image(row).created or _moment(row.added)

    def exists(self, name: str) -> bool:
        """Tell whether there is such an image."""
        try:
            self._find(name)
        except NotFound:
            return False
        return True

    def __iter__(self) -> Iterator[Image]:
        return iter(self.list())

    def history(self, name: str | Image) -> Sequence[HistoryEntry]:
        """Return how an image was made, the last step first.

        Args:
            name: the image.

        >>> from pycontainer import Engine
        >>> with Engine() as engine:
        ...     [entry.created_by for entry in engine.images.history(engine.images.host())]
        ['pycontainer import']
        """
        row = self._find(name)
        return history_entries(self._document(row).history, self._store.db.layers(row.id))

    def inspect(self, name: str | Image) -> ImageDetails:
        """Return everything that is known of an image: its documents as they are, and what it shares with others.

        Args:
            name: the image.

        Raises:
            NotFound: there is no such image.
        """
        from pycontainer.distribution.save import kept_indexes

        row = self._find(name)
        document = self._document(row)
        blobs = self._store.blobs
        further = self._store.db.blobs(row.id)
        return ImageDetails(
            image=self._image(row),
            manifest=blobs.read(row.digest, limit=MAX_DOCUMENT),
            manifest_type=row.media_type,
            config=blobs.read(row.id, limit=MAX_CONFIG),
            indexes={digest: blobs.read(digest, limit=MAX_DOCUMENT) for digest in kept_indexes(self._store, further)},
            further=further,
            author=document.author,
            comment=document.history[-1].comment if document.history else "",
            added=_moment(row.added),
            shared_size=self._store.db.shared_size(row.id),
        )

    def _find(self, name: str | Image) -> ImageRow:
        return self._lookup.find(name)

    def _document(self, row: ImageRow) -> ImageDocument:
        return parse_config(self._store.blobs.read(row.id, limit=MAX_CONFIG), f"the config of {row.id}")

    def _image(self, row: ImageRow) -> Image:
        known = self._cache.get(row.id)
        if known is not None and known[0] == row:
            return known[1]
        document = self._document(row)
        image = Image(
            id=row.id,
            references=tuple(parse_reference(text).familiar for text in row.references),
            digest=row.digest,
            config=document.config,
            architecture=document.platform.architecture,
            os=document.platform.os,
            variant=document.platform.variant,
            created=document.created,
            size=sum({layer.diff_id: layer.size for layer in self._store.db.layers(row.id)}.values()),
            layers=document.diff_ids,
            mounts=tuple(_mount(item) for item in json.loads(row.mounts)),
            repo_digests=tuple(parse_reference(text).familiar for text in row.digests),
        )
        self._cache[row.id] = (row, image)
        return image

    # ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def tag(self, name: str | Image, reference: str) -> Image:
        """Give an image one more name; the image that had the name loses it.

        Args:
            name: the image.
            reference: the new name.

        Returns:
            The image with all its names.
        """
        whole = new_reference(reference)
        row = self._find(name)
        self._store.put_reference(whole, row.id)
        return self.get(row.id)

    def untag(self, name: str | Image, *references: str) -> Image:
        """Take names from an image, which stays, without a name too.

        Args:
            name: the image.
            references: the names; all when none is given.

        Returns:
            The image with the names that it has left.

        Raises:
            NotFound: there is no such image, or one of the names is not its own.
        """
        row = self._find(name)
        wholes = [str(parse_reference(text)) for text in references] or list(row.references)
        for whole in wholes:
            if whole not in row.references:
                msg = f"the image {row.id} is not called {parse_reference(whole).familiar!r}"
                raise NotFound(msg)
        for whole in wholes:
            self._store.remove_reference(whole, row.id, keep_last=False)
        return self.get(row.id)

    def remove(self, name: str | Image, *, force: bool = False) -> RemovedImages:
        """Take a name from an image, or delete it: as ``docker rmi`` does.

        By a reference, one of several names goes; with the last name goes the image. By id, the image goes.

        Args:
            name: the image.
            force: by id, also when it has several names. By its last name, when a container uses it: then only the name
                goes.

        Returns:
            What went.

        Raises:
            NotFound: there is no such image.
            Conflict: a container uses it, or, by id, it has several names.
        """
        row = self._find(name)
        reference = self._lookup.named(name, row)
        if reference is not None and self._store.remove_reference(reference, row.id, keep_last=True):
            return RemovedImages(untagged=(parse_reference(reference).familiar,))
        names = tuple(parse_reference(text).familiar for text in row.references)
        if reference is None and len(names) > 1 and not force:
            msg = f"the image {row.id} has several names: {', '.join(names)}; remove them one by one, or use force=True"
            raise Conflict(msg)
        try:
            size = self._delete(row)
        except Conflict:
            if not force or reference is None:
                raise
            self._store.remove_reference(reference, row.id, keep_last=False)
            return RemovedImages(untagged=names)
        return RemovedImages(untagged=names, deleted=(row.id,), size=size)

    def _delete(self, row: ImageRow) -> int:
        """Delete an image; return the bytes of layers that no other image has."""
        size = self._image(row).size - self._store.db.shared_size(row.id)
        self._store.remove_image(row.id)
        self._cache.pop(row.id, None)
        return size

    def prune(
        self,
        *,
        all: bool = False,  # noqa: A002 - as docker calls it
        label: str | Sequence[str] = (),
        without_label: str | Sequence[str] = (),
        until: datetime | None = None,
    ) -> RemovedImages:
        """Delete images that have no name and that no container uses.

        Args:
            all: also those that have names.
            label: only those that have each of these labels.
            without_label: only those that have none of these.
            until: only those made before this time.

        Returns:
            What went.
        """
        filters = Filters(
            labels=_several(label),
            without_labels=_several(without_label),
            dangling=None if all else True,
            before=until,
        )
        untagged: list[str] = []
        deleted: list[str] = []
        size = 0
        for row in list(self._fitting(filters)):
            try:
                size += self._delete(row)
            except (Conflict, NotFound):
                continue  # a container uses it, or somebody else was quicker
            untagged += [parse_reference(text).familiar for text in row.references]
            deleted.append(row.id)
        return RemovedImages(untagged=tuple(untagged), deleted=tuple(deleted), size=size)

    # ── bring in ──────────────────────────────────────────────────────────────────────────────────────────────────

    def import_rootfs(
        self,
        source: str | Path | IO[bytes],
        *,
        reference: str | None = None,
        config: ImageConfig | None = None,
        message: str = "",
        platform: str | None = None,
        limits: LayerLimits | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Image:
        """Make an image of one layer from a root file system.

        The same tree and config give the same image. Sockets and what other file systems show in the tree are left out.

        Args:
            source: a directory, or a tar file, plain or compressed; or a stream of one, which is first written to a
                file in the store.
            reference: the name it gets.
            config: how containers of it run.
            message: a comment for its history.
            platform: what its programs are for, ``"linux/arm64"``; this host's when not given.
            limits: what is too much for a tar file.
            progress: is called with a :class:`Progress` at each step.

        Raises:
            ImageError: the tree or the file cannot be made a layer; nothing of it is left.
        """
        from pycontainer.distribution.load import check_source, spooled
        from pycontainer.distribution.transfer import add_rootfs

        names = () if reference is None else (new_reference(reference),)
        place = check_source(Path(source)) if isinstance(source, str | os.PathLike) else source
        with _disk_errors(place), spooled(self._store, place) as path:
            identity = add_rootfs(
                self._store,
                path,
                config or ImageConfig(),
                references=names,
                platform=_platform(platform),
                comment=message,
                limits=limits,
                progress=progress,
            )
        return self.get(identity)

    def load(
        self,
        source: str | Path | IO[bytes],
        *,
        reference: str | None = None,
        platform: str | None = None,
        limits: LayerLimits | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Image:
        """Load the image of an archive: ``docker save``, ``podman save``, or an OCI layout as tar file or directory.

        What the archive has beside it, such as the index for several platforms and attestations of how it was built, is
        kept, and goes along when the image is saved.

        Args:
            source: a path, or a binary stream, which is first written to a file in the store; tar files may be
                compressed.
            reference: which image, when the archive has several; else the name that it gets.
            platform: ``"linux/arm64"``: which of an image for several platforms; this host's when not given.
            limits: what is too much for a layer.
            progress: is called with a :class:`Progress` at each step.

        Raises:
            ImageError: the archive is damaged or hostile, or has several images and ``reference`` names none of them,
                or has none for the platform. Nothing of it is left.
        """
        return self._load(
            source, several=False, reference=reference, platform=_platform(platform), limits=limits, progress=progress
        )[0]

    def load_all(
        self,
        source: str | Path | IO[bytes],
        *,
        platform: str | None = None,
        limits: LayerLimits | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Sequence[Image]:
        """Load all images of an archive; see :meth:`load`."""
        return self._load(source, several=True, platform=_platform(platform), limits=limits, progress=progress)

    def _load(self, source: str | Path | IO[bytes], **options: Any) -> Sequence[Image]:  # noqa: ANN401 - load_archive's
        from pycontainer.distribution.load import check_source, load_archive

        place = check_source(Path(source)) if isinstance(source, str | os.PathLike) else source
        with _disk_errors(place):
            loaded = load_archive(self._store, place, **options)
        return [self.get(identity) for identity in loaded]

    # ── registries ────────────────────────────────────────────────────────────────────────────────────────────────

    def pull(
        self,
        reference: str,
        *,
        platform: str | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Image:
        """Bring an image from its registry, or a mirror of that; only what is missing is fetched.

        An interrupted pull goes on where it was. Everything is verified before it can be seen.

        Args:
            reference: with a tag, which the image then has; or with a digest.
            platform: ``"linux/arm64"``: which of an image for several platforms; this host's when not given.
            progress: is called with a :class:`Progress` at each step.

        Raises:
            ManifestUnknown: the registry has no such image.
            Unauthorized: it wants credentials, or others.
            RegistryError: it cannot be reached, or refuses.
            ImageError: the image is damaged, hostile or not for this platform; nothing of it is left.
        """
        from pycontainer.distribution.pull import pull

        whole = parse_reference(reference)
        with _disk_errors(Path(reference)):
            done = pull(self._store, whole, registries=self._reached(), platform=_platform(platform), progress=progress)
        return self.get(done.id)

    def pull_all(
        self,
        repository: str,
        *,
        platform: str | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Sequence[Image]:
        """Bring the images of all tags of a repository; see :meth:`pull`.

        Args:
            repository: without a tag.
            platform: as for :meth:`pull`.
            progress: as for :meth:`pull`.
        """
        from pycontainer.distribution.pull import pull_all

        if bare_repository(repository) is None:
            msg = f"all tags are asked for, and {repository!r} names one of them"
            raise ValueError(msg)
        with _disk_errors(Path(repository)):
            done = pull_all(
                self._store,
                parse_reference(repository),
                registries=self._reached(),
                platform=_platform(platform),
                progress=progress,
            )
        return [self.get(pulled.id) for _, pulled in done]

    def push(
        self,
        name: str | Image,
        reference: str | None = None,
        *,
        progress: Callable[[Progress], object] | None = None,
    ) -> str:
        """Bring an image to a registry; only what that lacks is sent.

        Manifests that came from elsewhere are pushed byte for byte, and with them the whole index where all of it is
        here. Plain layers of images made here are compressed on their way.

        Args:
            name: the image.
            reference: what it is called there; its own name when not given.
            progress: is called with a :class:`Progress` at each step.

        Returns:
            ``"registry.example/app@sha256:…"``, which it can be pulled by for ever.

        Raises:
            NotFound: there is no such image here.
            Unauthorized: the registry wants credentials, or others.
            RegistryError: it cannot be reached, or refuses.
        """
        from pycontainer.distribution.push import push

        row = self._find(name)
        if reference is None:
            reference = None if isinstance(name, Image) else self._lookup.named(name, row)
            names = row.references if reference is None else (reference,)
            if len(names) != 1:
                msg = f"the image {row.id} has {len(names)} names; say what to push it as"
                raise ValueError(msg)
            reference = names[0]
        whole = parse_reference(reference)
        pushed = push(self._store, row, whole, registries=self._reached(), progress=progress)
        return f"{whole.name}@{pushed.digest}"

    def _reached(self) -> Registries:
        if self._registries is None:
            from pycontainer.distribution.hosts import Registries

            self._registries = Registries.from_files()
        return self._registries

    # ── take out ──────────────────────────────────────────────────────────────────────────────────────────────────

    def save(
        self,
        target: str | Path | IO[bytes],
        *names: str | Image,
        format: ArchiveFormat = "docker-archive",  # noqa: A002 - as everybody calls it
        compress: Packing | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> None:
        """Write images to an archive that docker, podman, skopeo, containerd and :meth:`load` read.

        The same images give the same bytes. A file is replaced at the end, at once; of one that fails nothing is left.

        Args:
            target: a path, or a binary stream, which stays open.
            names: the images. By a reference with a tag it is saved under that name, by one without a tag each image of
                that repository is, by an id it has no name there, as in docker; an :class:`Image` has all its names.
            format: ``"docker-archive"``, which is an OCI layout in a tar as well; ``"oci-archive"``, that layout alone;
                ``"oci-dir"``, a directory, which must be new or empty.
            compress: ``"gzip"`` or ``"zstd"``, the archive as a whole. Layers are as the store has them.
            progress: is called with a :class:`Progress` at each step.

        Raises:
            NotFound: there is no such image.
            AlreadyExists: the directory is not empty.
            OSError: the target cannot be written.

        >>> import io
        >>> from pycontainer import Engine
        >>> with Engine() as engine:
        ...     archive = io.BytesIO()
        ...     engine.images.save(archive, engine.images.host())
        """
        from pycontainer.distribution.save import save_archive, save_directory

        if format not in ("docker-archive", "oci-archive", "oci-dir"):
            msg = f"no format of archives: {format!r}; there are docker-archive, oci-archive and oci-dir"
            raise ValueError(msg)
        if compress not in (None, "gzip", "zstd"):
            msg = f"archives are compressed with gzip or zstd, not {compress!r}"
            raise ValueError(msg)
        found = self._lookup.named_all(names)
        place = Path(target) if isinstance(target, str | os.PathLike) else target
        if format != "oci-dir":
            docker = format == "docker-archive"
            save_archive(self._store, found, place, docker=docker, packing=compress, progress=progress)
            return
        if not isinstance(place, Path) or compress is not None:
            msg = "oci-dir is a directory: it takes a path, and is not compressed"
            raise ValueError(msg)
        save_directory(self._store, found, place, progress=progress)

    def host(self) -> Image:
        """Return an image of the host's own programs, made without copying them: see :mod:`pycontainer.host`."""
        from pycontainer.host import host_image

        return self.get(host_image(self._store))


def _platform(text: str | None) -> Platform | None:
    if text is None:
        return None
    from pycontainer.distribution.transfer import host_platform
    from pycontainer.oci.platforms import parse_platform

    return parse_platform(text, host_platform())


def _mount(item: dict[str, Any]) -> Mount:
    return Mount.bind(item["source"], item["target"], read_only=True, options=item.get("options", ()))


def _several(texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _moment(seconds: float) -> datetime:
    import datetime as dt  # slow to import, and few ask

    return dt.datetime.fromtimestamp(seconds, dt.UTC)


@contextmanager
def _disk_errors(source: object) -> Iterator[None]:
    try:
        yield
    except Error:
        raise
    except OSError as error:
        msg = f"cannot bring in {source}: {error.filename or 'write to the store'}: {os.strerror(error.errno or 0)}"
        raise StoreError(msg) from error
