"""The collection of all images of a store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pycontainer.errors import Conflict, NotFound
from pycontainer.image import HistoryEntry, Image, ImageDetails, RemovedImages, history_entries
from pycontainer.lookup import Filters
from pycontainer.model import Mount
from pycontainer.names import new_reference, parse_reference
from pycontainer.oci.image import MAX_CONFIG, MAX_DOCUMENT, ImageDocument, parse_config
from pycontainer.transfers import Transfers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from pycontainer.distribution.hosts import Registries
    from pycontainer.model import Change
    from pycontainer.store import ImageRow, Store

__all__ = ["Images"]


class Images(Transfers):
    """The images of a store.

    Wherever a name is taken, a reference (``"debian"``, ``"registry.example/app:1"``), an id with or without
    ``sha256:``, the unique beginning of an id, and ``name@sha256:…`` of a manifest work.

    Args:
        store: where they are.
        registries: how registries are reached; as the configuration files say, when not given.
    """

    def __init__(self, store: Store, registries: Registries | None = None) -> None:
        super().__init__(store, registries)
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
        seen = row.references if reference is None else (reference,)
        try:
            size = self._delete(row, None if force and reference is None else seen)
        except Conflict:
            if not set(self._find(row.id).references) <= set(seen):
                return self.remove(name, force=force)  # somebody has just taken or given it a name
            if not force or reference is None:
                raise
            self._store.remove_reference(reference, row.id, keep_last=False)
            return RemovedImages(untagged=names)
        return RemovedImages(untagged=names, deleted=(row.id,), size=size)

    def _delete(self, row: ImageRow, names: Iterable[str] | None) -> int:
        """Delete an image that has no other names than these; return the bytes of layers that no other image has."""
        db = self._store.db
        size = sum({layer.diff_id: layer.size for layer in db.layers(row.id)}.values()) - db.shared_size(row.id)
        self._store.remove_image(row.id, names)
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
                size += self._delete(row, row.references)
            except (Conflict, NotFound):
                continue  # a container uses it, or somebody has just named or removed it
            untagged += [parse_reference(text).familiar for text in row.references]
            deleted.append(row.id)
        return RemovedImages(untagged=tuple(untagged), deleted=tuple(deleted), size=size)

    def diff(self, old: str | Image, new: str | Image) -> Sequence[Change]:
        """Return which files of an image are not as in another one, directories before what is in them.

        Exact: type, mode, owner, time, attributes and content are compared.

        Args:
            old: the one image.
            new: the other: what only this one has is added.

        >>> from pycontainer import Engine
        >>> with Engine() as engine:
        ...     engine.images.diff(engine.images.host(), engine.images.host())
        []
        """
        from pycontainer.distribution.pack import compare
        from pycontainer.trees import open_image

        one, two = self._find(old), self._find(new)
        if one.id == two.id:
            return []
        with open_image(self._store, one.id) as before, open_image(self._store, two.id) as after:
            return list(compare(after, old=before))

    def host(self) -> Image:
        """Return an image of the host's own programs, made without copying them: see :mod:`pycontainer.host`."""
        from pycontainer.host import host_image

        return self.get(host_image(self._store))


def _mount(item: dict[str, Any]) -> Mount:
    return Mount.bind(item["source"], item["target"], read_only=True, options=item.get("options", ()))


def _several(texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)


def _moment(seconds: float) -> datetime:
    import datetime as dt  # slow to import, and few ask

    return dt.datetime.fromtimestamp(seconds, dt.UTC)
