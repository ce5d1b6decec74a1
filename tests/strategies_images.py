"""Hypothesis strategies for images: layers that add, change, replace, delete and hide what lies below."""

from __future__ import annotations

from typing import cast

import attrs
from hypothesis import strategies as st

from tests.images import Entry, Kind, expected

__all__ = ["layers"]

_MODES = {"file": "10", "directory": "04", "symlink": "12", "fifo": "01", "char": "02", "block": "06"}
_NAMES = st.lists(st.sampled_from(["a", "b", "c", "d\udcff"]), min_size=1, max_size=4).map("/".join)
_SECOND = 10**9


@attrs.define
class _Layer:
    """A layer as it grows, on the tree below it.

    Attributes:
        below: path to kind of what the lower layers make.
        entries: of this layer.
        mine: path to kind of what this layer has, implied directories too.
        gone: what it deletes.
        hidden: the directories that it makes opaque.
    """

    below: dict[str, str]
    entries: list[Entry] = attrs.field(factory=list)
    mine: dict[str, str] = attrs.field(factory=dict)
    gone: set[str] = attrs.field(factory=set)
    hidden: set[str] = attrs.field(factory=set)

    def kind(self, path: str) -> str:
        """Return what is at a path, ``""`` for nothing."""
        if path in self.mine:
            return self.mine[path]
        above = _above(path)
        covered = any(self.mine.get(parent, "directory") != "directory" for parent in above)
        replaced = any(parent in self.mine and self.below.get(parent) != "directory" for parent in above)
        if covered or replaced or self.hidden & {*above} or self.gone & {path, *above}:
            return ""
        return self.below.get(path, "")

    def has_below(self, path: str) -> bool:
        """Tell whether this layer has anything in a directory."""
        return any(name.startswith(path + "/") for name in [*self.mine, *self.gone])

    def add(self, entry: Entry, kind: str) -> None:
        """Add an entry, and the directories that it implies."""
        for parent in _above(entry.path):
            self.mine.setdefault(parent, "directory")
        self.mine[entry.path] = kind
        self.entries.append(entry)


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


@st.composite
def _layer(draw: st.DrawFn, below: dict[str, str]) -> list[Entry]:
    layer = _Layer(below)
    paths = st.one_of(_NAMES, st.sampled_from(sorted(below))) if below else _NAMES
    for _ in range(draw(st.integers(1, 8))):
        path = draw(paths)
        action = draw(st.sampled_from([*_MODES, "file", "directory", "hardlink", "delete", "delete", "hide"]))
        blocked = any(layer.kind(parent) not in ("", "directory") or parent in layer.gone for parent in _above(path))
        if blocked or path in layer.mine or path in layer.gone:
            continue
        parent, _, name = path.rpartition("/")
        if action == "delete":
            # Overlay lists whiteouts of nothing, in directories that only one layer has, as names without files.
            if layer.kind(path) and not layer.has_below(path):
                layer.gone.add(path)
                for above in _above(path):
                    layer.mine.setdefault(above, "directory")
                layer.entries.append(Entry(path=f"{parent}/.wh.{name}".lstrip("/"), mode=0))
            continue
        if layer.has_below(path) and action not in ("directory", "hide"):
            continue
        mode = draw(st.sampled_from([0o644, 0o755, 0o4711, 0o1777, 0o000, 0o2750]))
        number = draw(st.integers(0, 5))
        entry = Entry(path=path, mode=mode, uid=number * 1000, gid=number, mtime_ns=(10**9 + number) * _SECOND + number)
        if action == "hide":
            layer.add(attrs.evolve(entry, kind="directory"), "directory")
            layer.entries.append(Entry(path=f"{path}/.wh..wh..opq", mode=0))
            layer.hidden.add(path)
        elif action == "hardlink":
            partners = [other for other in layer.entries if other.kind == "file" and not _is_mark(other.path)]
            if partners:
                partner = partners[number % len(partners)]
                link = attrs.evolve(partner, path=path, kind="hardlink", target=partner.path, pieces=())
                layer.add(link, "file")
        else:
            layer.add(_filled(entry, cast("Kind", action), number), action)
    return layer.entries


def _is_mark(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".wh.")


def _filled(entry: Entry, kind: Kind, number: int) -> Entry:
    content = ((0, b"%d" % number * number),) if kind == "file" else ()
    target = "../" * number + "a" if kind == "symlink" else ""
    device = (number + 1, number) if kind in ("char", "block") else (0, 0)
    xattrs = {"user.number": b"%d" % number} if number % 2 and kind in ("file", "directory") else {}
    return attrs.evolve(entry, kind=kind, pieces=content, target=target, device=device, xattrs=xattrs)


@st.composite
def layers(draw: st.DrawFn, most: int = 5) -> list[list[Entry]]:
    """Give the layers of an image, the lowest first; each is possible on those below it.

    Only what is there is deleted, nothing is both deleted and there in one layer, no entry lies beyond a symbolic link.

    Args:
        draw: of hypothesis.
        most: how many there are at most.
    """
    found: list[list[Entry]] = []
    for _ in range(draw(st.integers(1, most))):
        below = {name: _kind(str(values[0])) for name, values in expected(found).items()}
        found.append(draw(_layer(below)))
    return [layer for layer in found if layer] or [[Entry(path="a")]]


def _kind(mode: str) -> str:
    kind = mode.removeprefix("0o").rjust(6, "0")[:2]
    return next(name for name, digits in _MODES.items() if digits == kind)
