"""The one door to the C core: imports the compiled module and turns its error records into exceptions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pycontainer._core import ffi, lib  # type: ignore[import-not-found]

__all__ = ["HELPER", "ffi", "lib", "new_error", "read_error"]

HELPER = Path(__file__).with_name("bin") / "pycontainer-monitor"


def new_error() -> Any:  # noqa: ANN401 - a cffi struct has no static type
    """Return an empty ``PycError *`` for a call of the core."""
    return ffi.new("PycError *")


def read_error(err: Any) -> tuple[str, str, int]:  # noqa: ANN401
    """Return ``(step, path, errno)`` of a failed call."""
    return ffi.string(err.step).decode(), os.fsdecode(ffi.string(err.path)), err.code
