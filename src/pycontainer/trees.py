"""The file systems of images: shown read-only for as long as somebody looks, and compared."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from pycontainer.model import Change
from pycontainer.runtime.overlay import add_overlay
from pycontainer.runtime.program import Program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycontainer.store import Store

__all__ = ["compare", "open_image"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE = 1 << 20


@contextlib.contextmanager
def open_image(store: Store, identity: str) -> Iterator[int]:
    """Give the root directory of an image, open and read-only, without anything that containers have beside.

    Args:
        store: has the image.
        identity: its id.

    Raises:
        NotFound: there is no such image.
        StartError: it cannot be mounted.
    """
    with contextlib.ExitStack() as stack:
        lowers = store.acquire(identity)
        stack.callback(store.release, identity)
        program = Program()
        # Overlay takes two layers at least; the lowest one may be empty.
        add_overlay(program, (*lowers, str(stack.enter_context(store.workspace()))))
        *others, root = program.prepare()
        stack.callback(os.close, root)
        for fd in others:  # views of layers, which the mount holds
            os.close(fd)
        yield root


def compare(old: int, new: int) -> list[Change]:
    """Return what is different in another tree, directories before what is in them.

    Exact: content is read where nothing else differs. A directory counts as changed when something in it changed. What
    is in a directory that was deleted is not listed.

    Args:
        old: root of the one, open.
        new: root of the other, open.
    """
    found: dict[bytes, str] = {}
    pending: list[tuple[bytes, bool]] = [(b".", True)]  # directories of the new tree, and whether the old one has them
    while pending:
        directory, both = pending.pop()
        after = _entries(new, directory)
        before = _entries(old, directory) if both else {}
        for name in before.keys() - after.keys():
            found[directory + b"/" + name] = "deleted"
        for name, now in after.items():
            path = directory + b"/" + name
            was = before.get(name)
            if was is None:
                found[path] = "added"
            elif _differ(old, was, new, now, path):
                found[path] = "changed"
            if stat.S_ISDIR(now.st_mode):
                pending.append((path, was is not None and stat.S_ISDIR(was.st_mode)))
    for path in list(found):
        parent = os.path.dirname(path)  # noqa: PTH120 - bytes
        while parent != b"." and parent not in found:
            found[parent] = "changed"
            parent = os.path.dirname(parent)  # noqa: PTH120
    return [
        Change(found[path], os.fsdecode(path[1:]))  # type: ignore[arg-type] # one of the three
        for path in sorted(found, key=lambda path: path.split(b"/"))
    ]


def _entries(root: int, path: bytes) -> dict[bytes, os.stat_result]:
    with _opened(root, path, _DIRECTORY) as fd, os.scandir(fd) as found:
        return {os.fsencode(entry.name): entry.stat(follow_symlinks=False) for entry in found}


@contextlib.contextmanager
def _opened(root: int, path: bytes, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, dir_fd=root)
    try:
        yield fd
    finally:
        os.close(fd)


def _differ(old: int, was: os.stat_result, new: int, now: os.stat_result, path: bytes) -> bool:
    """Tell whether two files differ in anything, their content included; of directories that is not what is in them."""
    if _status(was) != _status(now) or _attributes(old, path) != _attributes(new, path):
        return True
    if stat.S_ISLNK(now.st_mode):
        return os.readlink(path, dir_fd=old) != os.readlink(path, dir_fd=new)
    if not stat.S_ISREG(now.st_mode):
        return False
    with _opened(old, path, _FILE) as one, _opened(new, path, _FILE) as two:
        return any(
            os.pread(one, _PIECE, offset) != os.pread(two, _PIECE, offset) for offset in range(0, now.st_size, _PIECE)
        )


def _status(info: os.stat_result) -> tuple[int, ...]:
    size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
    return (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_rdev, size)


def _attributes(root: int, path: bytes) -> dict[str, bytes]:
    place = b"/proc/self/fd/%d/%s" % (root, path)
    return {
        name: os.getxattr(place, name, follow_symlinks=False)
        for name in os.listxattr(place, follow_symlinks=False)
        if not name.startswith("trusted.overlay.")
    }
