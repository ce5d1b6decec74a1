"""Indexed layers as directories: read-only mounts of erofs, attached nowhere, that live as long as their descriptor.

From Linux 6.12 on the kernel mounts the files themselves; from 6.4 on through loop devices, which go with the mount.
A mount costs some 0.2 ms and a descriptor, so those that were used are kept, up to a number, for the next start.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NoReturn

import attrs

from pycontainer._ffi import ffi, lib, new_error, read_error
from pycontainer.errors import StoreError, Unsupported
from pycontainer.lowers import Lower

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Views"]


@attrs.define
class _View:
    """One open mount.

    Attributes:
        fd: its root.
        device: number of the file system, to tell whether the descriptor is still ours.
        source: device and inode of the index, to tell whether the path is still this one.
        index: its path.
        lower: as overlay takes it.
        loops: descriptors of loop devices, which mounting it anew needs.
        users: how many images hold it.
    """

    fd: int
    device: int
    source: tuple[int, int]
    index: Path
    lower: Lower
    loops: tuple[int, ...]
    users: int = 0


class Views:
    """The mounts of one store in this process, each shared by the images that have the layer.

    Not thread-safe; the store calls it under a lock. A forked child goes on with descriptors of its own.
    """

    def __init__(self) -> None:
        self._known: dict[str, _View] = {}
        self.loops = False  # whether this kernel wants loop devices

    def __len__(self) -> int:
        return len(self._known)

    def open(self, name: str, index: Path, devices: Sequence[Path]) -> Lower:
        """Return the root of a layer, mounted until as many :meth:`close` came.

        Args:
            name: of the layer.
            index: the erofs image.
            devices: the tars that it points into, in order.

        Raises:
            StoreError: it cannot be mounted.
            Unsupported: this kernel cannot mount any.
        """
        view = self._known.get(name)
        if view is None:
            view = self._known[name] = self._mount(index, devices)
        view.users += 1
        return view.lower

    def close(self, name: str) -> None:
        """Give back one :meth:`open`; unmount with the last."""
        view = self._known[name]
        view.users -= 1
        if view.users == 0:
            _close(self._known.pop(name))

    def close_all(self) -> None:
        """Unmount all."""
        while self._known:
            _close(self._known.popitem()[1])

    def is_open(self, name: str) -> bool:
        """Tell whether the descriptor is still ours: a program that becomes a daemon may close all it finds."""
        return _is_open(self._known[name])

    def is_current(self, name: str) -> bool:
        """Tell whether the layer in the store is still the one that is mounted."""
        view = self._known[name]
        try:
            return _source(os.stat(view.index)) == view.source  # noqa: PTH116 - half as long as Path.stat
        except OSError:
            return False

    def _mount(self, index: Path, devices: Sequence[Path]) -> _View:
        if self.loops:
            return _open(index, devices, loops=True)
        try:
            return _open(index, devices, loops=False)
        except _BlockDeviceWantedError:
            view = _open(index, devices, loops=True)
            self.loops = True
            return view


class _BlockDeviceWantedError(Exception):
    """The kernel mounts block devices only."""


def _source(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _is_open(view: _View) -> bool:
    try:
        return os.fstat(view.fd).st_dev == view.device
    except OSError:
        return False


def _close(view: _View) -> None:
    if _is_open(view):
        os.close(view.fd)
        for fd in view.loops:
            os.close(fd)


def _open(index: Path, devices: Sequence[Path], *, loops: bool) -> _View:
    held: list[int] = []
    try:
        files = [str(index), *map(str, devices)]
        if loops:
            files = [_attach(path, held) for path in files]
        options = (f"source={files[0]}", *(f"device={path}" for path in files[1:]))
        source = _source(index.stat())
        fd = _show(options, index)
    except FileNotFoundError as error:
        msg = f"mount the layer {index}: it is missing; run pycontainer system check --repair"
        raise StoreError(msg) from error
    except BaseException:
        for loop in held:
            os.close(loop)
        raise
    lower = Lower(f"/proc/self/fd/{fd}/.", options)
    return _View(fd, os.fstat(fd).st_dev, source, index, lower, tuple(held))


def _show(options: Sequence[str], index: Path) -> int:
    data = b"".join(os.fsencode(option) + b"\0" for option in options)
    err = new_error()
    fd = int(lib.pyc_view_open(b"erofs", data, len(data), os.fsencode(index), err))
    if fd < 0:
        _raise(err)
    return fd


def _attach(path: str, held: list[int]) -> str:
    name = ffi.new("char[]", lib.PYC_LOOP_NAME)
    err = new_error()
    fd = lib.pyc_loop_open(os.fsencode(path), name, err)
    if fd < 0:
        _raise(err)
    held.append(fd)
    return os.fsdecode(ffi.string(name))


_HINTS = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOENT: "a part of the layer is missing; run pycontainer system check --repair",
    errno.EUCLEAN: "the index is damaged; run pycontainer system check --repair",
    errno.EINVAL: "the index is damaged, or made for a newer kernel; run pycontainer system check --repair",
}
_UNABLE = {errno.ENODEV: "this kernel has no erofs", errno.EPERM: "mounting needs root"}


def _raise(err: object) -> NoReturn:
    step, path, number = read_error(err)
    if number == errno.ENOTBLK:
        raise _BlockDeviceWantedError
    what = f"{step} {path}: {os.strerror(number)}"
    if number in _UNABLE:
        msg = f"{what}: {_UNABLE[number]}; pycontainer system check --repair unpacks the layers instead"
        raise Unsupported(msg)
    msg = what + (f" ({_HINTS[number]})" if number in _HINTS else "")
    raise StoreError(msg)
