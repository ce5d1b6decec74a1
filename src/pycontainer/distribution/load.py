"""Load the images of an archive into the store: all of them, or the one that is meant."""

from __future__ import annotations

import stat
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pycontainer.distribution.layout import open_archive, read_contents
from pycontainer.distribution.transfer import add_image
from pycontainer.errors import ImageError, NotFound
from pycontainer.names import new_reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycontainer.distribution.contents import Contents
    from pycontainer.distribution.layer import LayerLimits
    from pycontainer.distribution.sources import Source
    from pycontainer.distribution.transfer import Report
    from pycontainer.oci.platforms import Platform
    from pycontainer.store import Store

__all__ = ["check_source", "load_archive", "spooled"]

_CHUNK = 1 << 20


def load_archive(
    store: Store,
    archive: Path | IO[bytes],
    *,
    reference: str | None = None,
    several: bool = False,
    platform: Platform | None = None,
    limits: LayerLimits | None = None,
    progress: Report | None = None,
) -> list[str]:
    """Load images.

    Args:
        store: where to.
        archive: a file or directory; or a stream, which is first written to a file in the store.
        reference: which image, when there are several; else the name that it gets.
        several: all images.
        platform: which of an image for several platforms; all others must fit.
        limits: what is too much for a layer.
        progress: is told how it goes.

    Returns:
        The ids of the images.

    Raises:
        ImageError: the archive is damaged or hostile, or it is not clear which image is meant. Nothing of it is left.
    """
    with store.workspace() as workspace, spooled(store, archive) as path:
        shown = str(archive if isinstance(archive, Path) else getattr(archive, "name", "the stream"))
        with closing(open_archive(path, workspace, shown, limits)) as opened:
            contents = read_contents(opened, shown, platform=platform, limits=limits)
            chosen = [(source, source.references) for source in contents.sources]
            if not several:
                chosen = [_choose(contents, reference, shown)]
            return [
                add_image(store, source, references=names, progress=progress, limits=limits) for source, names in chosen
            ]


@contextmanager
def spooled(store: Store, source: Path | IO[bytes]) -> Iterator[Path]:
    """Give a path that has what a stream gives, for as long as it is needed; a path is given as it is."""
    if isinstance(source, Path):
        yield source
        return
    with store.workspace() as workspace:
        path = workspace / "stream.tar"
        with path.open("xb") as file:
            while data := source.read(_CHUNK):
                file.write(data)
        yield path


def _choose(contents: Contents, reference: str | None, path: str) -> tuple[Source, tuple[str, ...]]:
    """Return the one image that is meant, and the names it gets."""
    sources = contents.sources
    if reference is not None:
        whole = new_reference(reference)
        for item in sources:
            if whole in item.references:
                return item, (whole,)
        for item in sources:
            if reference in item.labels:
                return item, item.references or (whole,)
        if reference in contents.others:
            raise ImageError(contents.others[reference])
        if len(sources) == 1:
            return sources[0], (whole,)
    elif len(sources) == 1:
        return sources[0], sources[0].references
    names = ", ".join(label for item in sources for label in item.labels) or "none has a name"
    msg = (
        f"{path} holds {len(sources)} images ({names}); "
        + ("none of them is " + repr(reference) + "; " if reference else "")
        + "choose one with reference=…, or use load_all"
    )
    raise ImageError(msg)


def check_source(path: Path) -> Path:
    """Check that a path can be read more than once, and return it.

    Raises:
        NotFound: it is not there.
        ImageError: it cannot.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise NotFound(msg) if isinstance(error, FileNotFoundError) else ImageError(msg) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "neither a file nor a directory"
        msg = f"{path} is {kind}: archives are read in several passes; write it to a file first"
        raise ImageError(msg)
    return path
