"""Mounting an index with its tars, as the engine does, for tests that look at what the kernel makes of it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["mounted", "overlaid"]

# mount_setattr(2) and its kin have these numbers on all architectures.
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_SET_STRING, _CREATE = 1, 6
_FROM_EMPTY_PATH = 4
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@contextmanager
def _mount(kind: bytes, options: Sequence[tuple[bytes, bytes]], target: Path) -> Iterator[Path]:
    target.mkdir(exist_ok=True)
    context = _call(_FSOPEN, kind, 1)
    try:
        for key, value in options:
            _call(_FSCONFIG, context, _SET_STRING, key, value, 0)
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        mount = _call(_FSMOUNT, context, 1, 1)
    finally:
        os.close(context)
    try:
        _call(_MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(target), _FROM_EMPTY_PATH)
    finally:
        os.close(mount)
    try:
        yield target
    finally:
        if _libc.umount2(os.fsencode(target), 0) != 0:
            raise OSError(ctypes.get_errno(), f"umount {target}")


@contextmanager
def mounted(index: Path, tars: Sequence[Path], target: Path) -> Iterator[Path]:
    """Mount an index.

    Args:
        index: on a file system that erofs can read from; tmpfs is none.
        tars: its devices, in order.
        target: a directory, made if need be.
    """
    options = [(b"source", os.fsencode(index)), *((b"device", os.fsencode(tar)) for tar in tars)]
    with _mount(b"erofs", options, target) as where:
        yield where


@contextmanager
def overlaid(layers: Sequence[Path], target: Path) -> Iterator[Path]:
    """Mount an overlay to be read.

    Args:
        layers: two or more, the lowest first.
        target: a directory, made if need be.
    """
    options = [(b"source", b"overlay"), *((b"lowerdir+", os.fsencode(layer)) for layer in reversed(layers))]
    with _mount(b"overlay", options, target) as where:
        yield where
