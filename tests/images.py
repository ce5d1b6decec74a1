"""Images as recipes: layers of entries, what the flattened tree must be, and OCI layouts with just those bytes.

A recipe is written by :mod:`tarfile` and flattened by a model of the image specification in a few lines, so neither our
code nor a peer's decides what is right.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import attrs
import zstandard

from tests.trees import Description, content_digest

__all__ = [
    "ANY_TIME",
    "Compression",
    "Entry",
    "Recipe",
    "agreed",
    "compress",
    "expected",
    "undescribed",
    "write_hybrid",
    "write_layer",
    "write_layout",
]

Kind = Literal["file", "directory", "symlink", "hardlink", "fifo", "char", "block"]
Compression = Literal["", "gzip", "zstd"]

OCI = "application/vnd.oci.image"
ANY_TIME = -1  # of a directory that no layer describes, or in which a layer changes something without describing it
_TYPES = {
    "file": (tarfile.REGTYPE, stat.S_IFREG),
    "directory": (tarfile.DIRTYPE, stat.S_IFDIR),
    "symlink": (tarfile.SYMTYPE, stat.S_IFLNK),
    "hardlink": (tarfile.LNKTYPE, 0),
    "fifo": (tarfile.FIFOTYPE, stat.S_IFIFO),
    "char": (tarfile.CHRTYPE, stat.S_IFCHR),
    "block": (tarfile.BLKTYPE, stat.S_IFBLK),
}
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_SECOND = 10**9


@attrs.frozen(kw_only=True)
class Entry:
    """One entry of a layer.

    Attributes:
        path: relative to the root; what is not UTF-8 as surrogates, see :func:`os.fsdecode`.
        mtime_ns: nanoseconds since 1970, or before.
        pieces: of a file: offsets and what is there; the rest are zeros.
        size: of a file, where that is more than the pieces say.
        target: of a link; a hard link's is a path like ``path``.
        device: major and minor.
        sparse: write holes as holes, in PAX format 1.0 of GNU tar.
    """

    path: str
    kind: Kind = "file"
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 1_700_000_000 * _SECOND
    xattrs: dict[str, bytes] = attrs.field(factory=dict)
    pieces: tuple[tuple[int, bytes], ...] = ()
    size: int = 0
    target: str = ""
    device: tuple[int, int] = (0, 0)
    sparse: bool = False

    @property
    def length(self) -> int:
        """Bytes of a file."""
        return max([self.size, *(offset + len(data) for offset, data in self.pieces)])

    def read(self, offset: int, length: int) -> bytes:
        """Return a part of its content."""
        part = bytearray(max(min(length, self.length - offset), 0))
        for start, data in self.pieces:
            begin, end = max(start, offset), min(start + len(data), offset + len(part))
            if begin < end:
                part[begin - offset : end - offset] = data[begin - start : end - start]
        return bytes(part)


@attrs.frozen(kw_only=True)
class Recipe:
    """An image: layers, the lowest first, and what its config says beside them."""

    layers: Sequence[Sequence[Entry]]
    config: dict[str, Any] = attrs.field(factory=dict)


# ── tar ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_layer(stream: IO[bytes], entries: Iterable[Entry]) -> None:
    """Write a layer as an uncompressed tar."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        for entry in entries:
            info = _info(entry)
            if entry.kind != "file":
                archive.addfile(info)
            elif entry.sparse:
                _add_sparse(archive, info, entry)
            else:
                info.size = entry.length
                archive.addfile(info, io.BytesIO(entry.read(0, entry.length)))


def _info(entry: Entry) -> tarfile.TarInfo:
    info = tarfile.TarInfo(entry.path)
    info.type = _TYPES[entry.kind][0]
    info.mode, info.uid, info.gid, info.linkname = entry.mode, entry.uid, entry.gid, entry.target
    info.devmajor, info.devminor = entry.device
    info.mtime = max(entry.mtime_ns // _SECOND, 0)
    headers: dict[str, str] = {}
    if entry.mtime_ns % _SECOND or entry.mtime_ns < 0:
        sign = "-" if entry.mtime_ns < 0 else ""
        seconds, rest = divmod(abs(entry.mtime_ns), _SECOND)
        headers["mtime"] = f"{sign}{seconds}.{rest:09}"
    for key, value in entry.xattrs.items():
        headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    info.pax_headers = headers
    return info


def _add_sparse(archive: tarfile.TarFile, info: tarfile.TarInfo, entry: Entry) -> None:
    pieces = [*entry.pieces, (entry.length, b"")]
    numbers = [len(pieces), *(number for offset, data in pieces for number in (offset, len(data)))]
    table = b"".join(b"%d\n" % number for number in numbers)
    table += bytes(-len(table) % tarfile.BLOCKSIZE)
    content = table + b"".join(data for _, data in entry.pieces)
    info.pax_headers = {
        **info.pax_headers,
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": info.name,
        "GNU.sparse.realsize": str(entry.length),
    }
    info.name = f"GNUSparseFile.0/{Path(info.name).name}"
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


# ── the model ─────────────────────────────────────────────────────────────────────────────────────────────────────


@attrs.define(eq=False)
class _Node:
    entry: Entry
    time: int


def expected(layers: Iterable[Iterable[Entry]]) -> Description:
    """Return what :func:`tests.trees.describe` must give for the tree of all layers, without the root.

    See "Applying Changesets" in the image specification (layer.md). Times are whole nanoseconds, or :data:`ANY_TIME`.
    """
    tree: dict[str, _Node] = {}
    for layer in layers:
        _apply(tree, list(layer))
    first: dict[_Node, str] = {}
    found: Description = {}
    for name, node in sorted(tree.items()):
        partner = first.setdefault(node, name)
        found[name] = _described(node, partner)
    return found


def _described(node: _Node, partner: str) -> tuple[object, ...]:
    entry = node.entry
    content: object = None
    if entry.kind == "file":
        regions = [(offset, offset + len(data)) for offset, data in entry.pieces]
        content = content_digest(entry.length, regions, entry.read)
    elif entry.kind == "symlink":
        content = entry.target
    elif entry.kind in ("char", "block"):
        content = os.makedev(*entry.device)
    mode = 0o777 if entry.kind == "symlink" else entry.mode
    kind = _TYPES[entry.kind][1]
    return (oct(kind | mode), entry.uid, entry.gid, node.time, dict(entry.xattrs), content, partner)


def _apply(tree: dict[str, _Node], layer: list[Entry]) -> None:
    changed, described = set[str](), set[str]()
    for entry in layer:  # deletions mean what lower layers have, wherever they stand
        parent, _, name = entry.path.rpartition("/")
        if name == _OPAQUE:
            _remove_below(tree, parent)
        elif name.startswith(_WHITEOUT):
            _remove(tree, f"{parent}/{name.removeprefix(_WHITEOUT)}".lstrip("/"))
            changed.add(parent)
    for entry in layer:
        parent, _, name = entry.path.rpartition("/")
        if name.startswith(_WHITEOUT):
            continue
        _add_parents(tree, parent)
        known = tree.get(entry.path)
        if entry.kind == "directory":
            described.add(entry.path)
        if known is None or entry.kind != "directory" or known.entry.kind != "directory":
            changed.add(parent)
        if known is not None and not entry.kind == known.entry.kind == "directory":
            _remove(tree, entry.path)
        node = tree[entry.target] if entry.kind == "hardlink" else _Node(entry, entry.mtime_ns)
        tree[entry.path] = node
    for path in changed - described - {""}:
        if path in tree:
            tree[path].time = ANY_TIME


def _add_parents(tree: dict[str, _Node], path: str) -> None:
    if path and path not in tree:
        _add_parents(tree, path.rpartition("/")[0])
        tree[path] = _Node(Entry(path=path, kind="directory", mode=0o755), ANY_TIME)


def _remove(tree: dict[str, _Node], path: str) -> None:
    tree.pop(path, None)
    _remove_below(tree, path)


def _remove_below(tree: dict[str, _Node], path: str) -> None:
    for name in [name for name in tree if not path or name.startswith(path + "/")]:
        del tree[name]


def agreed(found: Description, model: Description) -> Description:
    """Return the model with the times that it leaves open taken from what was found."""
    filled = dict(model)
    for name, values in model.items():
        if values[3] == ANY_TIME and name in found:
            filled[name] = (*values[:3], found[name][3], *values[4:])
    return filled


def undescribed(layers: Iterable[Iterable[Entry]]) -> set[str]:
    """Return the directories that the uppermost layer to touch them does not describe: tools differ about these."""
    found: set[str] = set()
    for number, layer in enumerate(layers):
        entries = list(layer)
        touched = {parent for entry in entries for parent in _parents(entry.path)} if number else set()
        described = {entry.path for entry in entries if entry.kind == "directory"}
        found = (found | touched) - described
    return found


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


# ── layouts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def write_layout(
    directory: Path, recipe: Recipe, *, tag: str, compression: Compression = "", layers: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write an OCI image layout with one image.

    Args:
        directory: made by this.
        recipe: the image.
        tag: its name in the layout.
        compression: of the layers.
        layers: their uncompressed tars, where those are written already.

    Returns:
        The manifest.
    """
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)
    diff_ids, descriptors = [], []
    for plain in _plain_layers(recipe, layers):
        diff_ids.append("sha256:" + hashlib.sha256(plain).hexdigest())
        data = compress(plain, compression)
        kind = "layer.v1.tar" + (f"+{compression}" if compression else "")
        descriptors.append(_put(blobs, data, f"{OCI}.{kind}"))
    config = {
        "created": "2023-11-14T22:13:20Z",
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": recipe.config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": "2023-11-14T22:13:20Z", "created_by": f"layer {n}"} for n in range(len(diff_ids))],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": _put(blobs, _json(config), f"{OCI}.config.v1+json"),
        "layers": descriptors,
    }
    entry = _put(blobs, _json(manifest), f"{OCI}.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (directory / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return manifest


def write_hybrid(layout: Path, target: Path, reference: str) -> None:
    """Pack a layout into a tar that is an OCI archive and a docker archive at once, as docker saves since version 25.

    Args:
        layout: what :func:`write_layout` made.
        target: the tar.
        reference: the image's whole name, ``repository:tag``.
    """
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0]["annotations"]["io.containerd.image.name"] = reference
    manifest = json.loads((layout / _blob(index["manifests"][0])).read_bytes())
    item = {
        "Config": _blob(manifest["config"]),
        "RepoTags": [reference],
        "Layers": [_blob(layer) for layer in manifest["layers"]],
    }
    texts = {
        "index.json": _json(index),
        "manifest.json": _json([item]),
        "oci-layout": (layout / "oci-layout").read_bytes(),
    }
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("blobs", "blobs/sha256"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(directory)
        for path in sorted((layout / "blobs/sha256").iterdir()):
            info = tarfile.TarInfo(f"blobs/sha256/{path.name}")
            info.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(info, file)
        for text, data in texts.items():
            info = tarfile.TarInfo(text)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def compress(plain: bytes, compression: Compression) -> bytes:
    """Compress a layer, to the same bytes each time."""
    if compression == "gzip":
        return gzip.compress(plain, 1, mtime=0)
    return zstandard.compress(plain, 3) if compression == "zstd" else plain


def _plain_layers(recipe: Recipe, written: Sequence[Path]) -> Iterator[bytes]:
    if written:
        yield from (path.read_bytes() for path in written)
        return
    for layer in recipe.layers:
        out = io.BytesIO()
        write_layer(out, layer)
        yield out.getvalue()


def _put(blobs: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _blob(descriptor: dict[str, Any]) -> str:
    return "blobs/" + str(descriptor["digest"]).replace(":", "/")


def _json(document: object) -> bytes:
    return json.dumps(document).encode()
