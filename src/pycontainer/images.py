"""The collection of all images of a store."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pycontainer.errors import Conflict, Error, NotFound, StoreError
from pycontainer.image import Image
from pycontainer.model import ImageConfig, Mount
from pycontainer.names import Reference, is_id_prefix, new_reference, parse_reference
from pycontainer.oci.image import MAX_CONFIG, parse_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pycontainer.distribution.hosts import Registries
    from pycontainer.distribution.layer import LayerLimits
    from pycontainer.distribution.save import ArchiveFormat, Packing
    from pycontainer.oci.platforms import Platform
    from pycontainer.progress import Progress
    from pycontainer.store import ImageRow, Store

__all__ = ["Images"]

_ID = "sha256:"
_ID_LENGTH = len(_ID) + 64


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

    def list(self) -> list[Image]:
        """Return all images, the newest first."""
        return [self._image(row) for row in self._store.db.images()]

    def exists(self, name: str) -> bool:
        """Tell whether there is such an image."""
        try:
            self._find(name)
        except NotFound:
            return False
        return True

    def __iter__(self) -> Iterator[Image]:
        return iter(self.list())

    def _find(self, name: str | Image) -> ImageRow:
        db = self._store.db
        if isinstance(name, Image):
            row = db.by_id(name.id)
        elif name.startswith(_ID):
            row = self._by_prefix(name) if len(name) <= _ID_LENGTH else None
        else:
            row = self._by_reference(name)
        if row is None:
            raise NotFound(self._not_found(str(name)))
        return row

    def _by_reference(self, name: str) -> ImageRow | None:
        if is_id_prefix(name) and len(name) == _ID_LENGTH - len(_ID):
            return self._store.db.by_id(_ID + name)
        reference = parse_reference(name)
        if reference.digest is not None:
            return self._by_digest(reference)
        row = self._store.db.by_name(str(reference))
        if row is None and is_id_prefix(name):
            row = self._by_prefix(_ID + name)
        return row

    def _by_digest(self, reference: Reference) -> ImageRow | None:
        for row in self._store.db.by_digest(reference.digest or ""):
            if reference.tag is None and f"{reference.name}@{reference.digest}" in row.digests:
                return row
            names = [parse_reference(text) for text in row.references]
            if any(known.name == reference.name and reference.tag in (None, known.tag) for known in names):
                return row
        return None

    def _by_prefix(self, prefix: str) -> ImageRow | None:
        if len(prefix) == _ID_LENGTH:
            row = self._store.db.by_id(prefix)
            return row or next(iter(self._store.db.by_digest(prefix)), None)
        if prefix == _ID or not is_id_prefix(prefix.removeprefix(_ID)):
            return None
        rows = self._store.db.by_prefix(prefix)
        if len(rows) > 1:
            msg = f"the ids of several images start with {prefix.removeprefix(_ID)!r}; give more digits"
            raise Conflict(msg)
        return rows[0] if rows else None

    def _not_found(self, name: str) -> str:
        import difflib  # slow to import, and only errors need it

        known = [parse_reference(text).familiar for text in self._store.db.names()]
        bases = {text.rpartition("/")[2]: text for text in known} | {text.rpartition(":")[0]: text for text in known}
        close = [bases.get(text, text) for text in difflib.get_close_matches(name, [*known, *bases], 5, 0.6)]
        msg = f"no image {name!r} in {self._store.root}"
        if close:
            return msg + f"; there is {', '.join(dict.fromkeys(close))}"
        return msg + ("; load, import or pull it" if known else "; the store holds no named image yet")

    def _image(self, row: ImageRow) -> Image:
        known = self._cache.get(row.id)
        if known is not None and known[0] == row:
            return known[1]
        document = parse_config(self._store.blobs.read(row.id, limit=MAX_CONFIG), f"the config of {row.id}")
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

    def remove(self, name: str | Image, *, force: bool = False) -> None:
        """Take a name from an image, or delete it: as ``docker rmi`` does.

        By a reference, one of several names goes; with the last name goes the image. By id, the image goes.

        Args:
            name: the image.
            force: by id, also when it has several names. Never one that is in use.

        Raises:
            NotFound: there is no such image.
            Conflict: a container uses it, or, by id, it has several names.
        """
        row = self._find(name)
        reference = None if isinstance(name, Image) else self._named(name, row)
        if reference is not None and self._store.remove_reference(reference, row.id, keep_last=True):
            return
        if reference is None and len(row.references) > 1 and not force:
            names = ", ".join(parse_reference(text).familiar for text in row.references)
            msg = f"the image {row.id} has several names: {names}; remove them one by one, or use force=True"
            raise Conflict(msg)
        self._store.remove_image(row.id)
        self._cache.pop(row.id, None)

    def _named(self, name: str, row: ImageRow) -> str | None:
        """Return the reference of an image that a name means, ``None`` when it was given by id."""
        if name.startswith(_ID):
            return None
        reference = str(parse_reference(name)) if not is_id_prefix(name) or len(name) < _ID_LENGTH - len(_ID) else ""
        return reference if reference in row.references else None

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

        if _bare_repository(repository) is None:
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
            What it can be pulled by for ever: ``"registry.example/app@sha256:…"``.

        Raises:
            NotFound: there is no such image here.
            Unauthorized: the registry wants credentials, or others.
            RegistryError: it cannot be reached, or refuses.
        """
        from pycontainer.distribution.push import push

        row = self._find(name)
        if reference is None:
            reference = None if isinstance(name, Image) else self._named(name, row)
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
        found = self._to_save(names)
        place = Path(target) if isinstance(target, str | os.PathLike) else target
        if format != "oci-dir":
            save_archive(self._store, found, place, docker=format == "docker-archive", packing=compress)
            return
        if not isinstance(place, Path) or compress is not None:
            msg = "oci-dir is a directory: it takes a path, and is not compressed"
            raise ValueError(msg)
        save_directory(self._store, found, place)

    def _to_save(self, names: Sequence[str | Image]) -> Sequence[tuple[ImageRow, tuple[str, ...]]]:
        if not names:
            msg = "no image to save is named"
            raise ValueError(msg)
        rows: dict[str, ImageRow] = {}
        kept: dict[str, dict[str, None]] = {}
        for name in names:
            for row, references in self._named_all(name):
                rows.setdefault(row.id, row)
                kept.setdefault(row.id, {}).update(dict.fromkeys(references))
        return [(row, tuple(kept[identity])) for identity, row in rows.items()]

    def _named_all(self, name: str | Image) -> Iterator[tuple[ImageRow, tuple[str, ...]]]:
        """Give the images that a name means to docker's ``save``, and the references to save them under."""
        if isinstance(name, Image):
            row = self._find(name)
            yield row, row.references
            return
        bare = None if name.startswith(_ID) else _bare_repository(name)
        found = [
            (row, tuple(text for text in row.references if parse_reference(text).name == bare))
            for row in (self._store.db.images() if bare else ())
        ]
        if any(references for _, references in found):
            yield from ((row, references) for row, references in found if references)
            return
        row = self._find(name)
        reference = self._named(name, row)
        yield row, (reference,) if reference is not None else ()

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


def _bare_repository(text: str) -> str | None:
    """Return the whole name of the repository that a text means, if it has neither tag nor digest."""
    bare = "@" not in text and ":" not in text.rpartition("/")[2]
    return parse_reference(text).name if bare else None


@contextmanager
def _disk_errors(source: object) -> Iterator[None]:
    try:
        yield
    except Error:
        raise
    except OSError as error:
        msg = f"cannot bring in {source}: {error.filename or 'write to the store'}: {os.strerror(error.errno or 0)}"
        raise StoreError(msg) from error
