"""The ways of images into a store and out of it: trees, archives, registries."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pycontainer.errors import Error, StoreError
from pycontainer.image import Image
from pycontainer.lookup import Lookup, bare_repository
from pycontainer.model import ImageConfig
from pycontainer.names import new_reference, parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pycontainer.distribution.hosts import Registries
    from pycontainer.distribution.layer import LayerLimits
    from pycontainer.distribution.save import ArchiveFormat, Packing
    from pycontainer.oci.platforms import Platform
    from pycontainer.progress import Progress
    from pycontainer.store import ImageRow, Store

__all__ = ["Transfers"]


class Transfers(ABC):
    """What :class:`Images` does with other places than the store.

    Args:
        store: where the images are.
        registries: how registries are reached; as the configuration files say, when not given.
    """

    def __init__(self, store: Store, registries: Registries | None) -> None:
        self._store = store
        self._registries = registries
        self._lookup = Lookup(store)

    @abstractmethod
    def get(self, name: str | Image) -> Image:
        """Return an image."""

    def _find(self, name: str | Image) -> ImageRow:
        return self._lookup.find(name)

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
        limits: LayerLimits | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Image:
        """Bring an image from its registry, or a mirror of that; only what is missing is fetched.

        An interrupted pull goes on where it was. Everything is verified before it can be seen.

        Args:
            reference: with a tag, which the image then has; or with a digest.
            platform: ``"linux/arm64"``: which of an image for several platforms; this host's when not given.
            limits: what is too much for a layer.
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
            done = pull(
                self._store,
                whole,
                registries=self._reached(),
                platform=_platform(platform),
                limits=limits,
                progress=progress,
            )
        return self.get(done.id)

    def pull_all(
        self,
        repository: str,
        *,
        platform: str | None = None,
        limits: LayerLimits | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Sequence[Image]:
        """Bring the images of all tags of a repository; see :meth:`pull`.

        Args:
            repository: without a tag.
            platform: as for :meth:`pull`.
            limits: as for :meth:`pull`.
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
                limits=limits,
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

    def export(self, name: str | Image, target: str | Path | IO[bytes]) -> None:
        """Write the file system of an image, its layers laid over each other, as a tar.

        The same image gives the same bytes. A file is replaced at the end, at once; of one that fails nothing is left.

        Args:
            name: the image.
            target: a path, or a binary stream, which stays open.

        Raises:
            NotFound: there is no such image.
            OSError: the target cannot be written.
        """
        from pycontainer.distribution.pack import pack_root
        from pycontainer.distribution.sinks import open_sink
        from pycontainer.trees import open_image

        row = self._find(name)
        place = Path(target) if isinstance(target, str | os.PathLike) else target
        with open_sink(place) as sink, open_image(self._store, row.id) as root:
            pack_root(root, sink.write)


def _platform(text: str | None) -> Platform | None:
    if text is None:
        return None
    from pycontainer.distribution.transfer import host_platform
    from pycontainer.oci.platforms import parse_platform

    return parse_platform(text, host_platform())


@contextmanager
def _disk_errors(source: object) -> Iterator[None]:
    try:
        yield
    except Error:
        raise
    except OSError as error:
        msg = f"cannot bring in {source}: {error.filename or 'write to the store'}: {os.strerror(error.errno or 0)}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            msg += "; free some space"
        raise StoreError(msg) from error
