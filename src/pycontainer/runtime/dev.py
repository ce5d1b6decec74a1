"""What a container finds in /dev: the specification's default devices and links, and those of its document."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pycontainer._ffi import lib
from pycontainer.errors import Unsupported
from pycontainer.runtime import mounts
from pycontainer.runtime.program import CWD

if TYPE_CHECKING:
    from pycontainer.oci import runtime as oci
    from pycontainer.runtime.program import Program

__all__ = ["add_devices"]

_S_IFCHR, _S_IFBLK, _S_IFIFO = 0o020000, 0o060000, 0o010000
_DEFAULT_DEVICES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)
_DEFAULT_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)


def add_devices(program: Program, spec: oci.Spec, *, userns: bool) -> None:
    """Append the steps that make devices and links (config-linux.md, "Devices" and "Default Devices").

    Args:
        program: where to.
        spec: the document.
        userns: the container is in a user namespace, where nodes are bound, not made.

    Raises:
        Unsupported: the host has no node of a device to bind.
    """
    dev = next((m for m in reversed(spec.mounts) if m.destination.rstrip("/") == "/dev"), None)
    own = spec.linux.devices
    if dev is None or not mounts.is_bind(dev):
        named = {device.path for device in own}
        for path, major, minor in _DEFAULT_DEVICES:
            if path not in named:
                _add_node(program, path, _S_IFCHR | 0o666, os.makedev(major, minor), 0, userns=userns)
        for path, text in _DEFAULT_LINKS:
            program.step(lib.PYC_OP_SYMLINK, "link", path, fd=CWD, text=text, flags=lib.PYC_EXISTS_OK)
        if any(m.destination.rstrip("/") == "/dev/pts" for m in spec.mounts):
            program.step(lib.PYC_OP_SYMLINK, "link", "/dev/ptmx", fd=CWD, text="pts/ptmx", flags=lib.PYC_EXISTS_OK)
    for device in own:
        kind = {"c": _S_IFCHR, "u": _S_IFCHR, "b": _S_IFBLK, "p": _S_IFIFO}[device.type]
        mode = kind | (0o666 if device.file_mode is None else device.file_mode & 0o7777)
        owner = (device.uid or 0) << 32 | (device.gid or 0)
        directory = os.path.dirname(device.path)  # noqa: PTH120 - a path of the container
        program.step(lib.PYC_OP_MKDIR_IN, "make the directory of a device", directory)
        number = os.makedev(device.major or 0, device.minor or 0)
        _add_node(program, device.path, mode, number, owner, userns=userns)


def _add_node(program: Program, path: str, mode: int, number: int, owner: int, *, userns: bool) -> None:
    if not userns or mode & 0o170000 == _S_IFIFO:
        program.step(
            lib.PYC_OP_MKNOD, "make the device", path, fd=CWD, a=mode, b=number, c=owner, flags=lib.PYC_EXISTS_OK
        )
        return
    fd = program.step(
        lib.PYC_OP_OPEN_TREE,
        "open the host's device",
        _host_device(path, mode, number),
        fd=CWD,
        a=mounts.OPEN_TREE_CLONE,
        host=True,
        result=True,
    )
    program.attach("bind the device", fd, path, flags=lib.PYC_MAKE_FILE)


def _host_device(path: str, mode: int, number: int) -> str:
    """Return the host's node of a device, which a user namespace can only bind, not make."""
    for candidate in (
        path,
        f"/dev/{path.rpartition('/')[2]}",
        f"/dev/{'block' if mode & _S_IFBLK == _S_IFBLK else 'char'}/{os.major(number)}:{os.minor(number)}",
    ):
        try:
            found = Path(candidate).stat()
        except FileNotFoundError:
            continue
        if found.st_rdev == number and found.st_mode & 0o170000 == mode & 0o170000:
            return candidate
    msg = f"device {path}: a container in a user namespace can only get devices that the host has a node of"
    raise Unsupported(msg)
