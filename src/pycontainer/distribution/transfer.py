"""Bring images into the store: from archives, from registries, from a root file system.

Every layer goes the same way, two at a time: its blob is read once, and in the same pass hashed, kept, decompressed,
hashed again and unpacked. Verified it is published; then the config, the manifest, and at last the record that makes
the image visible.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from pycontainer.distribution.adder import AddedLayer, Adder
from pycontainer.distribution.lanes import Abandoned
from pycontainer.distribution.meter import Meter, Report
from pycontainer.distribution.pack import pack
from pycontainer.distribution.sources import BlobSource, ByteStream, LayerSource, Source
from pycontainer.oci.image import History, ImageDocument, Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pycontainer.distribution.layer import LayerLimits
    from pycontainer.model import ImageConfig
    from pycontainer.store import Store

__all__ = [
    "BlobSource",
    "ByteStream",
    "LayerSource",
    "Report",
    "Source",
    "add_image",
    "add_rootfs",
    "host_platform",
]

_PARALLEL = 2  # layers at a time: unpacking is bound by the file system, not by processors


def host_platform() -> Platform:
    """Return what this host runs, in the words of image indexes."""
    machine = os.uname().machine.lower()
    known = {
        "x86_64": ("amd64", ""),
        "aarch64": ("arm64", "v8"),
        "armv7l": ("arm", "v7"),
        "armv6l": ("arm", "v6"),
        "i686": ("386", ""),
        "i386": ("386", ""),
        "loongarch64": ("loong64", ""),
    }
    architecture, variant = known.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)


def add_image(
    store: Store,
    source: Source,
    *,
    references: Sequence[str],
    progress: Report | None = None,
    limits: LayerLimits | None = None,
    parallel: int = _PARALLEL,
    on_cancel: Callable[[], object] | None = None,
) -> str:
    """Bring an image into the store.

    Args:
        store: where to.
        source: the image.
        references: the whole references that it gets.
        progress: is told how it goes.
        limits: what is too much for a layer.
        parallel: layers at a time.
        on_cancel: wakes up those that wait for bytes of other layers, when one has failed.

    Returns:
        The id of the image.

    Raises:
        ImageError: content is missing, damaged or hostile. Nothing of the image is left then.
    """
    meter = Meter(progress)
    unique = list({layer.diff_id: layer for layer in source.layers}.values())
    for layer in unique:
        meter.expect(layer.diff_id, layer.size)
    with store.adding() as workspace:
        adder = Adder(store, workspace, meter, limits)
        known = adder.find(source, references)
        if known is not None:
            return known
        added = _add_layers(adder, unique, parallel, on_cancel)
        return adder.finish(source, [added[layer.diff_id] for layer in source.layers], references, mounts="[]")


def _add_layers(
    adder: Adder, layers: Sequence[LayerSource], parallel: int, on_cancel: Callable[[], object] | None
) -> dict[str, AddedLayer]:
    """Add layers side by side; the first failure ends all of them."""
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="pycontainer-layer")
    futures = []
    try:
        futures = [pool.submit(adder.add, layer) for layer in layers]
        failed = [future for future in wait(futures, return_when=FIRST_EXCEPTION).done if future.exception()]
        if not failed:
            return {layer.diff_id: future.result() for layer, future in zip(layers, futures, strict=True)}
    finally:
        if any(not future.done() or future.exception() for future in futures):
            adder.cancel()
            if on_cancel is not None:
                on_cancel()
        pool.shutdown(cancel_futures=True)
    error = next((error for future in failed if not isinstance(error := future.exception(), Abandoned)), None)
    raise error or Abandoned


def add_rootfs(
    store: Store,
    path: Path,
    config: ImageConfig,
    *,
    references: Sequence[str],
    mounts: str = "[]",
    platform: Platform | None = None,
    comment: str = "",
    limits: LayerLimits | None = None,
    progress: Report | None = None,
) -> str:
    """Make an image of one layer from a root file system.

    The same tree and config give the same image: the documents hold no time.

    Args:
        store: where to.
        path: a directory, or a tar file, plain or compressed with gzip or zstd.
        config: how containers of it run.
        references: the whole references that it gets.
        mounts: JSON text, see :class:`ImageRow`.
        platform: what its programs are for; this host's when not given.
        comment: for its history.
        limits: what is too much for a tar file.
        progress: is told how it goes.

    Returns:
        The id of the image.

    Raises:
        ImageError: the tree or the file cannot be made a layer.
    """
    with store.adding() as workspace:
        adder = Adder(store, workspace, Meter(progress), limits)
        if path.is_dir():
            info = store.root.stat()  # the store's own directory is left out when that is in it
            layer = adder.add_stream(functools.partial(_pack, path, (info.st_dev, info.st_ino)), name=str(path))
        else:
            layer = adder.add_file(path)
        document = ImageDocument(
            platform=platform or host_platform(),
            diff_ids=(layer.row.diff_id,),
            config=config,
            history=(History(created_by="pycontainer import", comment=comment),),
        )
        source = Source(config=document.to_bytes(), document=document, layers=())
        return adder.finish(source, [layer], references, mounts=mounts)


def _pack(path: Path, skip: tuple[int, int], write: Callable[[bytes], object]) -> None:
    pack(path, write, skip=skip)
