"""Roots made of layers: the overlay mount, by what the kernel at hand can do.

See the kernel's filesystems/overlayfs and mount_setattr(2).
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from pycontainer._ffi import lib
from pycontainer.runtime import mounts
from pycontainer.runtime.program import CWD, Program

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["add_overlay", "kernel_version"]

_LOWERDIR_PLUS = (6, 8)  # the kernel that takes overlay layers one by one


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
        lowers: directories, topmost first; two at least when nothing is writable.
        directory: holds ``upper`` and ``work``; None for a read-only view.
        userns_fd: user namespace through whose id maps the layers are shown, or -1.
        kept: the writable layer is used again: it is synced at the end, and what it holds can be told without the
            layers below.
        top: of a read-only view, one more directory above all, with a user namespace of its own or -1.
    """
    label = "mount the root overlay"
    lowers = tuple(dict.fromkeys(lowers))  # a layer that an image has twice counts where it is topmost
    writable = [] if directory is None else [f"upperdir={directory}/upper", f"workdir={directory}/work"]
    if writable:
        writable += ["index=off", "metacopy=off", "redirect_dir=off"] if kept else ["volatile"]
    old = kernel_version() < _LOWERDIR_PLUS
    shown = {} if userns_fd < 0 else {path: _show_layer(program, path, userns_fd) for path in lowers}
    if top is not None:
        lowers = (top[0], *lowers)
        if top[1] >= 0:
            shown[top[0]] = _show_layer(program, *top)
    if not old and not shown:
        options = [f"lowerdir+={path}" for path in lowers]
        return program.mount(label, "overlay", [*options, *writable], host=True)
    # Layers shown through id maps must be attached somewhere, and before lowerdir+ the list of layers fits only into
    # mount(2): both in a mount namespace that is thrown away.
    program.step(lib.PYC_OP_ELSEWHERE, "make a mount namespace", a=len(shown) + (2 if old else 1), host=True)
    for path, fd in shown.items():
        program.step(lib.PYC_OP_ATTACH, "show the layer", path, fd=fd, fd2=CWD, host=True)
    if not old:
        options = [f"lowerdir+={path}" for path in lowers]
        return program.mount(label, "overlay", [*options, *writable], host=True)
    escaped = ":".join(path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,") for path in lowers)
    program.step(
        lib.PYC_OP_MOUNT,
        label,
        lowers[-1],
        text=",".join([f"lowerdir={escaped}", *writable]),
        kind="overlay",
        host=True,
    )
    return program.step(
        lib.PYC_OP_OPEN_TREE, label, lowers[-1], fd=CWD, a=mounts.OPEN_TREE_CLONE, host=True, result=True
    )


def _show_layer(program: Program, path: str, userns_fd: int) -> int:
    fd = program.step(
        lib.PYC_OP_OPEN_TREE, "open the layer", path, fd=CWD, a=mounts.OPEN_TREE_CLONE, host=True, result=True
    )
    program.step(lib.PYC_OP_SETATTR, f"map the ids of the layer {path}", fd=fd, fd2=userns_fd, host=True)
    return fd


@functools.lru_cache(maxsize=1)
def kernel_version() -> tuple[int, int]:
    """Return the first two numbers of the kernel's release."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor.partition("-")[0])
