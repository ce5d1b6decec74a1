"""Measure what is on disk: bytes of blocks, as du(1) counts them, each file once."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from pycontainer.housekeeping import ImageUsage, SpaceUsage
from pycontainer.store import downloads

if TYPE_CHECKING:
    from pathlib import Path

    from pycontainer.store import Store

__all__ = ["disk_size", "measure_downloads", "measure_images"]

_BLOCK = 512  # of st_blocks, see stat(2)


def disk_size(path: Path) -> int:
    """Return the bytes that a file, or a directory with all in it, takes of the disk; 0 for what is not there."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return 0
    total = info.st_blocks * _BLOCK
    seen: set[tuple[int, int]] = set()
    pending = [os.fspath(path)] if path.is_dir() and not path.is_symlink() else []
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed meanwhile
        for entry in entries:
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if info.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                if (info.st_dev, info.st_ino) in seen:
                    continue
                seen.add((info.st_dev, info.st_ino))
            total += info.st_blocks * _BLOCK
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
    return total


def measure_images(store: Store) -> tuple[SpaceUsage, list[ImageUsage], int]:
    """Return the usage of all images together and of each, and the bytes of content that none of them needs."""
    sizes = _content_sizes(store)
    rows = store.db.images()
    parts = {row.id: _parts(store, row.id, row.digest, row.merged) & sizes.keys() for row in rows}
    needed = Counter(part for own in parts.values() for part in own)
    containers = Counter(container.image_id for container in store.db.containers())
    active = {row.id for row in rows if containers[row.id] or store.is_in_use(row.id)}
    kept = {part for identity in active for part in parts[identity]}
    by_image = [
        ImageUsage(
            id=row.id,
            shared=sum(sizes[part] for part in parts[row.id] if needed[part] > 1),
            unique=sum(sizes[part] for part in parts[row.id] if needed[part] == 1),
            containers=containers[row.id],
        )
        for row in rows
    ]
    size = sum(sizes[part] for part in needed)
    reclaimable = size - sum(sizes[part] for part in kept)
    unreferenced = sum(sizes.values()) - size
    return SpaceUsage(len(rows), len(active), size, reclaimable), by_image, unreferenced


def measure_downloads(store: Store) -> SpaceUsage:
    """Return the usage of interrupted downloads."""
    sizes = downloads.sizes(store.root)
    return SpaceUsage(len(sizes), 0, sum(sizes.values()), sum(sizes.values()))


def _content_sizes(store: Store) -> dict[str, int]:
    """Return the bytes on disk of all blobs by digest, and of all layers by ``"layer "`` and their name."""
    sizes = {}
    for digest in store.blobs.list():
        sizes[digest] = disk_size(store.blobs.path(digest))
    for name in store.snapshots.list():
        sizes[f"layer {name}"] = disk_size(store.snapshots.index(name)) + disk_size(store.snapshots.path(name))
    return sizes


def _parts(store: Store, identity: str, digest: str, merged: str) -> set[str]:
    parts = {identity, digest, *store.db.blobs(identity)}
    for layer in store.db.layers(identity):
        parts |= {layer.digest, layer.diff_id, f"layer {layer.snapshot}"}
    if merged:
        parts.add(f"layer {merged}")
    return parts
