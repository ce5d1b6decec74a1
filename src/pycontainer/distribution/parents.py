"""Directories that a layer needs and does not describe.

A layer may hold ``usr/bin/app`` without entries for ``usr`` and ``usr/bin``; umoci, bazel, jib and ko make such ones.
What these directories are is then for the layers below to say. As each layer is unpacked by itself, they are first
made with the usual mode and owner and marked, by a time that no archive gives; before an image is recorded, marked
directories of its upper layers take mode, owner, time and attributes from below. Where there is a symbolic link below,
as ``lib`` -> ``usr/lib``, what the layer has goes where the link points. The result depends on the layers below, so it
is kept under the chain ID (image-spec, config.md) instead of the diff ID.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from typing import TYPE_CHECKING

from pycontainer.errors import ImageError
from pycontainer.store.snapshots import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["chain_ids", "complete", "mark", "marked"]

_MARK = 71_000_001  # nanoseconds after 1970: no whole second, and within the reach of every file system
_CLOCK_SLACK = 10_000_000  # nanoseconds; file systems take the time of the last tick
_MAX_LINKS = 40  # as the kernel has it, see path_resolution(7)
_OPAQUE = "trusted.overlay.opaque"


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Return the chain ID of each layer: an identity of it together with all that are below."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest() if chain else diff_id)
    return chain


def mark(layer: Path, since: int) -> None:
    """Mark the directories of a layer that were made because a path needed them.

    Args:
        layer: the layer, just unpacked; all that was described has the time that the archive gives.
        since: when the unpacking began, by the clock of the file system, in nanoseconds.
    """
    until = time.time_ns() + _CLOCK_SLACK  # an archive may well hold times to come
    for path in _directories(os.fspath(layer)):
        info = os.lstat(path)
        if since <= info.st_mtime_ns <= until and stat.S_IMODE(info.st_mode) == 0o755:  # noqa: PLR2004 - the mode of made ones
            os.utime(path, ns=(_MARK, _MARK), follow_symlinks=False)


def marked(layer: Path) -> list[str]:
    """Return the marked directories of a layer, relative to it, parents first."""
    root = os.fspath(layer)
    return [os.path.relpath(path, root) for path in _directories(root) if os.lstat(path).st_mtime_ns == _MARK]


def _directories(root: str) -> Iterator[str]:
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        yield from below
        pending += below


def complete(layer: Path, lowers: Sequence[Path]) -> None:
    """Give the marked directories of a layer what the layers below say of them.

    Args:
        layer: the layer, not yet visible.
        lowers: the layers below it, complete, the topmost first.
    """
    for _ in range(_MAX_LINKS):
        moved = [name for name in marked(layer) if _follow(layer, lowers, name)]
        if not moved:
            break
    # Times last, the deepest first: what is done inside a directory changes its time.
    for name in reversed(marked(layer)):
        below = _below(layer, lowers, name)
        if below is not None and stat.S_ISDIR(below.lstat().st_mode):
            _copy_status(below, layer / name)


def _below(layer: Path, lowers: Sequence[Path], name: str) -> Path | None:
    """Return what a path is in the layers below, ``None`` also when the layer itself hides it."""
    parts = name.split("/")
    if any(_is_opaque(layer.joinpath(*parts[:count])) for count in range(1, len(parts))):
        return None
    return _find(lowers, name)


def _find(lowers: Sequence[Path], name: str) -> Path | None:
    """Return what a path is in the layers below, ``None`` when it is not there or was deleted."""
    parts = name.split("/")
    for lower in lowers:
        here = lower
        hidden = False
        for number, part in enumerate(parts):
            here = here / part
            try:
                info = here.lstat()
            except FileNotFoundError:
                break
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                return None
            if number == len(parts) - 1:
                return here
            if not stat.S_ISDIR(info.st_mode):
                return None
            hidden = hidden or _is_opaque(here)
        if hidden:
            return None
    return None


def _is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError:
        return False  # no such attribute


def _follow(layer: Path, lowers: Sequence[Path], name: str) -> bool:
    """Move what a layer has in a directory to where a link below points; return whether there is such a link."""
    source = layer / name
    below = _below(layer, lowers, name) if _is_directory(source) else None
    if below is None or not below.is_symlink() or _is_opaque(source):
        return False  # nothing there, or the layer deleted it before
    target = _resolve(name, str(below.readlink()))
    if target == name or target.startswith(name + "/"):
        msg = f"the layer puts files into {name}, which is a link to itself"
        raise ImageError(msg)
    place = layer
    for part in target.split("/") if target else []:
        place = place / part
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            return False  # this layer has something else there: the directory replaces the link
        if not place.exists():
            place.mkdir(mode=0o755)
            place.chmod(0o755)
            os.utime(place, ns=(_MARK, _MARK))
    aside = layer.with_name(layer.name + "-moved")  # as what is in it may want its name
    source.rename(aside)
    _merge(aside, place)
    return True


def _resolve(name: str, link: str) -> str:
    """Return where a link at ``name`` points, within the root; further links on the way come at the next round."""
    parts = [] if link.startswith("/") else name.split("/")[:-1]
    for part in link.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _merge(source: Path, target: Path) -> None:
    """Move all in a directory into another one, and remove it; the times of directories that were there stay."""
    merged = [(source, target)]
    for here, there in merged:  # grows meanwhile
        if there.lstat().st_mtime_ns == _MARK:
            _copy_status(here, there)
        info = there.lstat()
        for entry in list(here.iterdir()):
            place = there / entry.name
            moves, stays = _is_directory(entry), _is_directory(place)
            if moves and stays:
                merged.append((entry, place))
                continue
            if stays:
                remove_tree(place)
            elif moves:
                place.unlink(missing_ok=True)
            entry.rename(place)
        os.utime(there, ns=(info.st_atime_ns, info.st_mtime_ns))
    for here, _ in reversed(merged):
        here.rmdir()


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _copy_status(source: Path, target: Path) -> None:
    info = source.lstat()
    os.chown(target, info.st_uid, info.st_gid, follow_symlinks=False)
    target.chmod(stat.S_IMODE(info.st_mode))
    for key in os.listxattr(source, follow_symlinks=False):
        if not key.startswith("trusted.overlay."):
            os.setxattr(target, key, os.getxattr(source, key, follow_symlinks=False), follow_symlinks=False)
    os.utime(target, ns=(info.st_mtime_ns, info.st_mtime_ns))
