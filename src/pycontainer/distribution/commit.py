"""Make an image of another one and what a container changed: one more layer, or one layer of everything."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any, Literal

import attrs

from pycontainer.distribution.adder import Adder
from pycontainer.distribution.meter import Meter, Report
from pycontainer.distribution.sources import Source
from pycontainer.errors import NotFound
from pycontainer.oci.image import MAX_CONFIG, config_json, parse_config, parse_json, time_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pycontainer.model import ImageConfig
    from pycontainer.store import Store

__all__ = ["BlobCompression", "Commit", "commit"]

BlobCompression = Literal["none", "gzip", "zstd"]

# What the config of an image says of how its containers run, as far as this library understands it.
_UNDERSTOOD = ("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal")
# What old versions of docker tell of the container that an image was made of.
_OF_A_CONTAINER = ("container", "container_config", "docker_version", "id", "parent")


@attrs.frozen(kw_only=True)
class Commit:
    """What the new image is to be.

    Attributes:
        parent: id of the image that the container is made from.
        config: how containers of the new one run.
        created_by: the command whose work the layer is.
        created: now.
        author: who says so.
        message: about the change.
        squash: the layer holds everything: the layers of the parent are not in the new image.
        compression: of the new layer's blob.
        references: whole references that it gets.
    """

    parent: str
    config: ImageConfig
    created_by: str
    created: dt.datetime
    author: str = ""
    message: str = ""
    squash: bool = False
    compression: BlobCompression = "none"
    references: tuple[str, ...] = ()


def commit(
    store: Store, wanted: Commit, produce: Callable[[Callable[[bytes], object]], object], progress: Report | None
) -> str:
    """Make the image; return its id.

    Args:
        store: where the parent is and the new image goes.
        wanted: what it is to be.
        produce: is called with the function that takes the plain tar stream of the new layer.
        progress: is told how it goes.

    Raises:
        ImageError: the layer cannot be made. Nothing of the image is left then.
        NotFound: the parent is gone.
    """
    with store.adding() as workspace:
        row = store.db.by_id(wanted.parent)
        if row is None:
            msg = f"no image {wanted.parent} in the store {store.root}"
            raise NotFound(msg)
        adder = Adder(store, workspace, Meter(progress))
        below = [] if wanted.squash else [adder.describe(layer) for layer in store.db.layers(wanted.parent)]
        layer = adder.add_stream(produce, wanted.compression, name="changes")
        parent = parse_json(store.blobs.read(row.id, limit=MAX_CONFIG), f"the config of {row.id}", limit=MAX_CONFIG)
        config = _child(parent, wanted, layer.row.diff_id)
        source = Source(config=config, document=parse_config(config), layers=())
        return adder.finish(source, [*below, layer], wanted.references, mounts=row.mounts)


def _child(parent: dict[str, Any], wanted: Commit, diff_id: str) -> bytes:
    """Return the config of the new image; what the parent's has and nobody here understands stays."""
    value = {name: item for name, item in parent.items() if name not in _OF_A_CONTAINER}
    value["created"] = time_text(wanted.created)
    if wanted.author:
        value["author"] = wanted.author
    kept = {name: item for name, item in (parent.get("config") or {}).items() if name not in _UNDERSTOOD}
    value["config"] = {**kept, **config_json(wanted.config)}
    step = {
        "created": value["created"],
        "created_by": wanted.created_by,
        "author": wanted.author,
        "comment": wanted.message,
    }
    steps = [] if wanted.squash else list(parent.get("history") or [])
    value["history"] = [*steps, {name: item for name, item in step.items() if item}]
    diff_ids: Sequence[str] = () if wanted.squash else parent["rootfs"]["diff_ids"]
    value["rootfs"] = {"type": "layers", "diff_ids": [*diff_ids, diff_id]}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
