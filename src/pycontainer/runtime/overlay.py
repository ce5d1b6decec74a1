"""Roots made of layers: the overlay mount, by what the kernel at hand can do.

See the kernel's filesystems/overlayfs and mount_setattr(2).
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from pycontainer._ffi import lib
from pycontainer.lowers import Lower
from pycontainer.runtime import mounts
from pycontainer.runtime.program import CWD, Program

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["add_overlay", "kernel_version"]

_LOWERDIR_PLUS = (6, 8)  # the kernel that takes overlay layers one by one
_DETACHED = (6, 15)  # and the one that takes, and clones, mounts that are attached nowhere
_LABEL = "mount the root overlay"
_STAND = "/sys"  # of a mount namespace that is thrown away: over it the layers are attached


def add_overlay(
    program: Program,
    lowers: Sequence[str],
    directory: str | None = None,
    *,
    userns_fd: int = -1,
    kept: bool = False,
    top: tuple[str, int] | None = None,
) -> int:
    """Append the host steps that mount layers over each other, attached nowhere; return the mount's operand.

    Args:
        program: where to.
        lowers: roots of the layers, topmost first; two at least when nothing is writable.
        directory: holds ``upper`` and ``work``; None for a read-only view.
        userns_fd: user namespace through whose id maps the layers are shown, or -1.
        kept: the writable layer is used again: it is synced at the end, and what it holds can be told without the
            layers below.
        top: of a read-only view, one more directory above all, with a user namespace of its own or -1.
    """
    layers = [(path, userns_fd) for path in dict.fromkeys(lowers)]  # one that comes twice counts where it is topmost
    if top is not None:
        layers.insert(0, top)
    options = [] if directory is None else [f"upperdir={directory}/upper", f"workdir={directory}/work"]
    if options:
        options += ["index=off", "metacopy=off", "redirect_dir=off"] if kept else ["volatile"]
    images = any(_image(path) for path, _ in layers)
    if images:
        # Layers that are file systems of their own: programs that stay on one, as find -xdev, want one device number.
        options.append("xino=on")
    if kernel_version() < _DETACHED and (images or any(userns >= 0 for _, userns in layers)):
        return _mount_shown(program, layers, options)
    if kernel_version() < _LOWERDIR_PLUS:
        program.step(lib.PYC_OP_ELSEWHERE, "make a mount namespace", a=2, host=True)
        return _mount_old(program, [path for path, _ in layers], options)
    taken = [
        f"lowerdir+={path}" if userns < 0 else f"lowerdir+@{_show(program, path, userns)}" for path, userns in layers
    ]
    return program.mount(_LABEL, "overlay", [*taken, *options], host=True)


def _image(path: str) -> tuple[str, ...]:
    return path.image if isinstance(path, Lower) else ()


def _mount_shown(program: Program, layers: Sequence[tuple[str, int]], options: Sequence[str]) -> int:
    """Mount layers that must be attached somewhere, in a mount namespace that is thrown away.

    Before Linux 6.15 a mount that is attached nowhere can be neither cloned nor used as a layer.
    """
    shown = [_show(program, path, userns, anew=True) for path, userns in layers]
    stand = program.mount("mount a place for the layers", "tmpfs", host=True)
    old = kernel_version() < _LOWERDIR_PLUS
    steps = 1 + 2 * len(shown) + (2 if old else 1)
    program.step(lib.PYC_OP_ELSEWHERE, "make a mount namespace", a=steps, host=True)
    program.step(lib.PYC_OP_ATTACH, "attach a place for the layers", _STAND, fd=stand, fd2=CWD, host=True)
    places = [f"{_STAND}/{number}" for number in range(len(shown))]
    for place, fd in zip(places, shown, strict=True):
        program.mkdir("make a place for the layer", place, host=True)
        program.step(lib.PYC_OP_ATTACH, "show the layer", place, fd=fd, fd2=CWD, host=True)
    if old:
        return _mount_old(program, places, options)
    return program.mount(_LABEL, "overlay", [*(f"lowerdir+={place}" for place in places), *options], host=True)


def _mount_old(program: Program, paths: Sequence[str], options: Sequence[str]) -> int:
    """Append two steps for kernels without lowerdir+, where the list of layers fits only into mount(2)."""
    escaped = ":".join(path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,") for path in paths)
    program.step(
        lib.PYC_OP_MOUNT,
        _LABEL,
        paths[-1],
        text=",".join([f"lowerdir={escaped}", *options]),
        kind="overlay",
        host=True,
    )
    return program.step(
        lib.PYC_OP_OPEN_TREE, _LABEL, paths[-1], fd=CWD, a=mounts.OPEN_TREE_CLONE, host=True, result=True
    )


def _show(program: Program, path: str, userns_fd: int, *, anew: bool = False) -> int:
    """Append the steps that show a layer, through id maps if told so, as a mount of its own.

    Args:
        program: where to.
        path: of the layer.
        userns_fd: has the maps, or -1.
        anew: mount the layer once more when it is an image, instead of cloning the mount that there is.
    """
    if anew and _image(path):
        attributes = mounts.RDONLY | mounts.NOSUID | mounts.NODEV
        fd = program.mount("mount the layer", "erofs", [*_image(path), "ro"], attributes=attributes, host=True)
    else:
        fd = program.step(
            lib.PYC_OP_OPEN_TREE, "open the layer", path, fd=CWD, a=mounts.OPEN_TREE_CLONE, host=True, result=True
        )
    if userns_fd >= 0:
        program.step(lib.PYC_OP_SETATTR, f"map the ids of the layer {path}", fd=fd, fd2=userns_fd, host=True)
    return fd


@functools.lru_cache(maxsize=1)
def kernel_version() -> tuple[int, int]:
    """Return the first two numbers of the kernel's release."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor.partition("-")[0])
