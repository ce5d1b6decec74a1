r"""The SQLite of containers: a whole container engine that a Python program imports.

>>> from pycontainer import Engine
>>> with Engine() as engine:
...     engine.run(engine.images.host(), ["echo", "hello"], timeout=10).stdout
b'hello\n'
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pycontainer.container import Container
    from pycontainer.containers import Containers, PrunedContainers
    from pycontainer.distribution.catalog import SearchResult
    from pycontainer.distribution.hosts import Registries
    from pycontainer.distribution.layer import LayerLimits
    from pycontainer.distribution.save import ArchiveFormat
    from pycontainer.distribution.sinks import Packing
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
        ManifestUnknown,
        NotFound,
        OutOfMemory,
        RegistryError,
        StartError,
        StoreError,
        TimeoutExpired,
        Unauthorized,
        Unsupported,
    )
    from pycontainer.housekeeping import CheckReport, DiskUsage, ImageUsage, Problem, Pruned, SpaceUsage
    from pycontainer.image import HistoryEntry, Image, ImageDetails, RemovedImages
    from pycontainer.images import Images
    from pycontainer.launch import Namespace
    from pycontainer.model import (
        Change,
        ContainerState,
        Device,
        IdMap,
        ImageConfig,
        Limits,
        Mount,
        Propagation,
        Result,
        Rlimit,
        Size,
        Usage,
    )
    from pycontainer.progress import Progress
    from pycontainer.running import Running
    from pycontainer.streams import Input, Output

__all__ = [
    "AlreadyExists",
    "ArchiveFormat",
    "Change",
    "CheckReport",
    "CommandNotFound",
    "Conflict",
    "Container",
    "ContainerState",
    "Containers",
    "Device",
    "DigestMismatch",
    "DiskUsage",
    "Engine",
    "Error",
    "ExitError",
    "HistoryEntry",
    "IdMap",
    "Image",
    "ImageConfig",
    "ImageDetails",
    "ImageError",
    "ImageUsage",
    "Images",
    "Input",
    "InvalidReference",
    "InvalidSpec",
    "LayerLimits",
    "Limits",
    "ManifestUnknown",
    "Mount",
    "Namespace",
    "NotFound",
    "OutOfMemory",
    "Output",
    "Packing",
    "Problem",
    "Progress",
    "Propagation",
    "Pruned",
    "PrunedContainers",
    "Registries",
    "RegistryError",
    "RemovedImages",
    "Result",
    "Rlimit",
    "Running",
    "SearchResult",
    "Size",
    "SpaceUsage",
    "StartError",
    "StoreError",
    "TimeoutExpired",
    "Unauthorized",
    "Unsupported",
    "Usage",
]

# Where each name is; errors where none is told. What a program uses is loaded when it first asks for it.
_HOMES = {
    "Container": "container",
    "ContainerState": "model",
    "Containers": "containers",
    "Engine": "engine",
    **dict.fromkeys(("HistoryEntry", "Image", "ImageDetails", "RemovedImages"), "image"),
    **dict.fromkeys(("CheckReport", "DiskUsage", "ImageUsage", "Problem", "Pruned", "SpaceUsage"), "housekeeping"),
    "Images": "images",
    "Input": "streams",
    "ArchiveFormat": "distribution.save",
    "LayerLimits": "distribution.layer",
    "Packing": "distribution.sinks",
    "Namespace": "launch",
    "Output": "streams",
    "Progress": "progress",
    "PrunedContainers": "containers",
    "Registries": "distribution.hosts",
    "Running": "running",
    "SearchResult": "distribution.catalog",
    **dict.fromkeys(
        (
            "Change",
            "Device",
            "IdMap",
            "ImageConfig",
            "Limits",
            "Mount",
            "Propagation",
            "Result",
            "Rlimit",
            "Size",
            "Usage",
        ),
        "model",
    ),
}

if not TYPE_CHECKING:  # else every misspelt name would have a type

    def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is exported
        """Load a public name where it is defined, see PEP 562."""
        if name not in __all__:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
