"""The file systems of images, shown read-only for as long as somebody looks."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from pycontainer.runtime.overlay import add_overlay
from pycontainer.runtime.program import Program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycontainer.store import Store

__all__ = ["open_image"]


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
