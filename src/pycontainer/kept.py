"""What a container keeps on disk from run to run: its writable layer and its volumes.

::

    containers/<id>/upper        what it wrote, over the layers of its image
    containers/<id>/work         for the overlay mount, made anew for each run
    containers/<id>/volumes/N    what the image declares as volumes
    containers/<id>/group        the control group of the run that goes on, or of one whose program was killed
    containers/<id>/frozen       while that group is frozen for a commit
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import attrs

from pycontainer._ffi import lib, new_error, read_error
from pycontainer.errors import StoreError
from pycontainer.names import is_container_id
from pycontainer.records import Record
from pycontainer.runtime import mounts
from pycontainer.runtime.program import CWD, Program

if TYPE_CHECKING:
    from pathlib import Path

    from pycontainer.model import IdMap
    from pycontainer.store import Store

__all__ = ["Kept", "has_leftovers", "inverse_map", "remove_directory"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SHOWN = mounts.RDONLY | mounts.NOSUID | mounts.NODEV | mounts.NOEXEC


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Kept(Record):
    """The directory of one container.

    Args:
        id: of the container.
        directory: where it keeps what is its own.
        volumes: the paths in the container that its volumes are for, by number.
    """

    id: str
    directory: Path
    volumes: tuple[str, ...] = ()

    @property
    def upper(self) -> Path:
        """The writable layer."""
        return self.directory / "upper"

    @property
    def frozen(self) -> Path:
        """The file that is there while its processes are stopped."""
        return self.directory / "frozen"

    def volume(self, number: int) -> Path:
        """Return the directory of a volume."""
        return self.directory / "volumes" / str(number)

    def make(self, image_root: int, userns: tuple[IdMap, ...]) -> None:
        """Make the writable layer: its root is like that of the image.

        Args:
            image_root: the root directory of the image, open.
            userns: how ids of the container are shown on the host.
        """
        self.directory.mkdir(mode=0o700)
        self.upper.mkdir()
        root = os.open(".", _DIRECTORY, dir_fd=image_root)  # that of a mount is only a place
        try:
            info = os.fstat(root)
            for name in os.listxattr(root):
                if not name.startswith("trusted.overlay."):
                    os.setxattr(self.upper, name, os.getxattr(root, name))
        finally:
            os.close(root)
        os.chown(self.upper, outside(userns, info.st_uid), outside(userns, info.st_gid))
        self.upper.chmod(stat.S_IMODE(info.st_mode))
        os.utime(self.upper, ns=(info.st_mtime_ns, info.st_mtime_ns))
        (self.directory / "volumes").mkdir(mode=0o755)

    def renew_work(self) -> None:
        """Make the directory that overlay needs anew: a killed run may have left something in it."""
        remove_directory(self.directory, "work")
        (self.directory / "work").mkdir()

    def open_upper(self, userns_fd: int = -1) -> int:
        """Open the writable layer in a view of its own: read-only, no device works, with the container's ids.

        Args:
            userns_fd: a user namespace with the inverse of the container's maps, or -1.
        """
        program = Program()
        label = "open the container's layer"
        fd = program.step(
            lib.PYC_OP_OPEN_TREE, label, str(self.upper), fd=CWD, a=mounts.OPEN_TREE_CLONE, host=True, result=True
        )
        program.step(lib.PYC_OP_SETATTR, label, fd=fd, fd2=userns_fd, a=_SHOWN, host=True)
        return program.prepare()[0]

    # ── the run that goes on ──

    def note_group(self, group: str) -> None:
        """Note the control group of a run that begins."""
        (self.directory / "group").write_text(group)

    def drop_group(self) -> None:
        """Drop that note: the run is over, and nothing of it is left."""
        (self.directory / "group").unlink(missing_ok=True)

    def group(self) -> str | None:
        """Return the control group of the run that goes on or was cut off."""
        try:
            return (self.directory / "group").read_text() or None
        except FileNotFoundError:
            return None


def outside(userns: tuple[IdMap, ...], inside: int) -> int:
    """Return the host's id for one of the container; the same when it is not mapped, as such are nobody's."""
    for item in userns:
        if item.inside <= inside < item.inside + item.count:
            return item.outside + inside - item.inside
    return inside


def inverse_map(userns: tuple[IdMap, ...]) -> str:
    """Return the map by which files with the host's ids are shown with the container's, for /proc/PID/uid_map."""
    return "".join(f"{item.outside} {item.inside} {item.count}\n" for item in userns)


def remove_directory(parent: Path, name: str) -> None:
    """Remove a directory that a container filled, however deep; nothing happens when there is none.

    Raises:
        StoreError: something of it stays.
    """
    fd = os.open(parent, _DIRECTORY)
    try:
        err = new_error()
        if lib.pyc_remove_tree(fd, name.encode(), err) < 0:
            step, path, number = read_error(err)
            hint = "; something is mounted in it" if number == errno.EBUSY else ""
            msg = f"cannot remove {parent / name}: {step} {path}: {os.strerror(number)}{hint}"
            raise StoreError(msg)
    finally:
        os.close(fd)


def has_leftovers(store: Store) -> bool:
    """Tell whether killed programs may have left something of containers; cheap, as each open asks."""
    try:
        there = set(filter(is_container_id, os.listdir(store.root / "containers")))  # noqa: PTH208 - only names are wanted
    except FileNotFoundError:
        return False
    states = {row.id: row.state for row in store.db.containers()} if there else {}
    return "running" in states.values() or bool(there - states.keys())
