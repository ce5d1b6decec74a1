"""Find images by what people call them, and choose among them by what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pycontainer.errors import Conflict, NotFound
from pycontainer.image import Image
from pycontainer.names import Reference, is_id_prefix, matches, parse_reference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from pycontainer.store import ImageRow, Store

__all__ = ["Filters", "Lookup", "bare_repository"]

_ID = "sha256:"
_ID_LENGTH = len(_ID) + 64


class Lookup:
    """Finds the images of a store by reference, id, beginning of an id, or digest.

    Args:
        store: where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, name: str | Image) -> ImageRow:
        """Return the image of a name.

        Raises:
            NotFound: there is none; the message lists names that are alike.
            Conflict: several ids start like this.
            InvalidReference: the text cannot be the name of an image.
        """
        if isinstance(name, Image):
            row = self._store.db.by_id(name.id)
        elif name.startswith(_ID):
            row = self._by_prefix(name) if len(name) <= _ID_LENGTH else None
        else:
            row = self._by_reference(name)
        if row is None:
            raise NotFound(self._not_found(str(name)))
        return row

    def _by_reference(self, name: str) -> ImageRow | None:
        if _is_whole_id(name):
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

    def named(self, name: str | Image, row: ImageRow) -> str | None:
        """Return the reference of an image that a name means, ``None`` when it was given by id or digest."""
        if isinstance(name, Image) or name.startswith(_ID) or _is_whole_id(name):
            return None
        reference = str(parse_reference(name))
        return reference if reference in row.references else None

    def named_all(self, names: Sequence[str | Image]) -> Sequence[tuple[ImageRow, tuple[str, ...]]]:
        """Return the images that names mean to docker's ``save``, each with the references to save it under."""
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
        if isinstance(name, Image):
            row = self.find(name)
            yield row, row.references
            return
        bare = bare_repository(name)
        found = [
            (row, tuple(text for text in row.references if parse_reference(text).name == bare))
            for row in (self._store.db.images() if bare else ())
        ]
        if any(references for _, references in found):
            yield from ((row, references) for row, references in found if references)
            return
        row = self.find(name)
        reference = self.named(name, row)
        yield row, (reference,) if reference is not None else ()


def _is_whole_id(name: str) -> bool:
    return len(name) == _ID_LENGTH - len(_ID) and is_id_prefix(name)


def bare_repository(text: str) -> str | None:
    """Return the whole name of the repository that a text means, ``None`` if it has a tag or digest, or is an id."""
    if "@" in text or ":" in text.rpartition("/")[2] or _is_whole_id(text):
        return None
    return parse_reference(text).name


@attrs.frozen(kw_only=True)
class Filters:
    """What an image must be; what is not given does not matter.

    Attributes:
        references: patterns, of which one of its names matches one.
        labels: ``name`` or ``name=value``, all of which it has.
        without_labels: likewise, none of which it has.
        dangling: whether it has no name.
        before: it is older than this.
        since: it is newer than this.
    """

    references: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    without_labels: tuple[str, ...] = ()
    dangling: bool | None = None
    before: datetime | None = None
    since: datetime | None = None

    def fit(self, image: Image, made: datetime) -> bool:
        """Tell whether an image is that.

        Args:
            image: the image.
            made: when it was made, or, if it does not tell, came into the store.
        """
        if self.references and not any(
            matches(pattern, parse_reference(name)) for pattern in self.references for name in image.references
        ):
            return False
        if self.dangling is not None and self.dangling == bool(image.references):
            return False
        labels = image.config.labels
        if not all(_has(labels, label) for label in self.labels) or any(
            _has(labels, label) for label in self.without_labels
        ):
            return False
        return (self.before is None or made < self.before) and (self.since is None or made > self.since)


def _has(labels: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)
