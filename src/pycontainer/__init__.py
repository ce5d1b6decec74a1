r"""The SQLite of containers: a whole container engine that a Python program imports.

>>> from pycontainer import Engine
>>> with Engine() as engine:
...     engine.run(engine.images.host(), ["echo", "hello"], timeout=10).stdout
b'hello\n'
"""

from pycontainer.engine import Engine
from pycontainer.errors import (
    AlreadyExists,
    CommandNotFound,
    Conflict,
    DigestMismatch,
    Error,
    ExitError,
    ImageError,
    InvalidReference,
    InvalidSpec,
    NotFound,
    OutOfMemory,
    StartError,
    StoreError,
    TimeoutExpired,
    Unsupported,
)
from pycontainer.image import Image
from pycontainer.images import Images
from pycontainer.model import Device, IdMap, ImageConfig, Limits, Mount, Result, Rlimit, Usage
from pycontainer.running import Running

__all__ = [
    "AlreadyExists",
    "CommandNotFound",
    "Conflict",
    "Device",
    "DigestMismatch",
    "Engine",
    "Error",
    "ExitError",
    "IdMap",
    "Image",
    "ImageConfig",
    "ImageError",
    "Images",
    "InvalidReference",
    "InvalidSpec",
    "Limits",
    "Mount",
    "NotFound",
    "OutOfMemory",
    "Result",
    "Rlimit",
    "Running",
    "StartError",
    "StoreError",
    "TimeoutExpired",
    "Unsupported",
    "Usage",
]
