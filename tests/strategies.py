"""Hypothesis strategies that several test files share: directory trees, as values and on disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs
from hypothesis import strategies as st

__all__ = ["Node", "names", "trees", "write_tree"]

Kind = Literal["file", "directory", "symlink", "hardlink", "fifo", "device"]

# cap_net_raw+ep, version 2: struct vfs_cap_data in linux/capability.h
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
DEVICES = [(stat.S_IFCHR, 1, 3), (stat.S_IFCHR, 4095, 1 << 20 - 1), (stat.S_IFBLK, 7, 300)]


@attrs.frozen(kw_only=True)
class Node:
    """One name of a tree.

    Args:
        parent: which of the directories so far it goes into, modulo their number.
        name: in there; a name that is taken gets a number.
        kind: what it is.
        target: of a symbolic link.
        partner: which of the files so far a hard link goes to, modulo their number.
        pieces: content of a file: bytes after a hole of so many bytes; then a hole at the end.
        device: type, major, minor.
    """

    parent: int
    name: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    target: bytes
    partner: int
    pieces: tuple[tuple[int, bytes], ...]
    end_hole: int
    xattrs: dict[str, bytes]
    device: tuple[int, int, int]


def names(max_size: int = 255) -> st.SearchStrategy[bytes]:
    """Give names of directory entries, any bytes; none that means something in a layer."""
    plain = st.text("abcdefgh. -", min_size=1, max_size=12).map(str.encode)
    long = st.binary(min_size=1, max_size=1).map(lambda byte: byte * max_size)
    return st.one_of(plain, st.binary(min_size=1, max_size=20), long).filter(
        lambda name: not {0, 47} & set(name) and name not in (b".", b"..") and not name.startswith(b".wh.")
    )


ids = st.one_of(st.sampled_from([0, 1000, 65534, 2_097_152, 3_000_000, 2**32 - 2]), st.integers(0, 2**32 - 2))
times = st.one_of(st.integers(-(2**31), 2**33), st.just(0)).flatmap(
    lambda sec: st.integers(0, 999_999_999).map(lambda nsec: sec * 10**9 + nsec)
)
xattr_sets = st.dictionaries(
    st.sampled_from(["user.one", "user.two=2", "trusted.three", "security.capability"]),
    st.binary(max_size=300),
    max_size=3,
).map(lambda found: {key: CAPABILITY if key.startswith("security") else value for key, value in found.items()})
pieces = st.lists(
    st.tuples(st.sampled_from([0, 0, 1, 4096, 65536, 1 << 20]), st.binary(max_size=5000)), max_size=4
).map(tuple)


def trees(max_size: int = 12) -> st.SearchStrategy[list[Node]]:
    """Give trees with all kinds of files, names that are not UTF-8, any owners, times and attributes."""
    kinds: list[Kind] = ["file", "file", "directory", "directory", "symlink", "hardlink", "fifo", "device"]
    node = st.builds(
        Node,
        parent=st.integers(0, 30),
        name=names(),
        kind=st.sampled_from(kinds),
        mode=st.integers(0, 0o7777),
        uid=ids,
        gid=ids,
        mtime_ns=times,
        target=st.binary(min_size=1, max_size=200).filter(lambda target: 0 not in target),
        partner=st.integers(0, 30),
        pieces=pieces,
        end_hole=st.sampled_from([0, 0, 1, 1 << 21]),
        xattrs=xattr_sets,
        device=st.sampled_from(DEVICES),
    )
    return st.lists(node, max_size=max_size)


def write_tree(root: Path, tree: Sequence[Node]) -> None:
    """Make the tree in an empty directory; needs root."""
    directories, files = [os.fsencode(root)], list[bytes]()
    made: list[tuple[bytes, Node]] = []
    for node in tree:
        path = _free(directories[node.parent % len(directories)], node.name)
        if len(path) - len(directories[0]) > 3000:  # PATH_MAX is 4096
            continue
        if node.kind == "hardlink":
            if files:
                os.link(files[node.partner % len(files)], path)
            continue
        _make(path, node)
        made.append((path, node))
        if node.kind == "directory":
            directories.append(path)
        if node.kind == "file":
            files.append(path)
    for path, node in made:  # at the end: writing into a directory changes its time
        os.utime(path, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)


def _free(parent: bytes, name: bytes) -> bytes:
    path, number = parent + b"/" + name, 0
    while os.path.lexists(path):
        number += 1
        path = parent + b"/" + name[:250] + b"~%d" % number
    return path


def _make(path: bytes, node: Node) -> None:
    if node.kind == "file":
        with open(path, "xb") as file:  # noqa: PTH123 - bytes
            for hole, data in node.pieces:
                file.seek(hole, os.SEEK_CUR)
                file.write(data)
            file.truncate(file.tell() + node.end_hole)
    elif node.kind == "directory":
        os.mkdir(path)  # noqa: PTH102 - bytes
    elif node.kind == "symlink":
        os.symlink(node.target, path)  # noqa: PTH211 - bytes
    elif node.kind == "fifo":
        os.mkfifo(path)
    else:
        kind, major, minor = node.device
        os.mknod(path, kind, os.makedev(major, minor))
    os.chown(path, node.uid, node.gid, follow_symlinks=False)
    if node.kind != "symlink":
        os.chmod(path, node.mode)  # noqa: PTH101 - bytes
    for key, value in node.xattrs.items():
        if node.kind in ("file", "directory") and (node.kind == "file" or not key.startswith("security")):
            os.setxattr(path, key, value)
