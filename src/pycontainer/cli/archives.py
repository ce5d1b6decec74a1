"""``load``, ``save`` and ``import``: images from and to files, as docker's and podman's commands of these names."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import click

from pycontainer import Engine
from pycontainer.cli import Settings
from pycontainer.cli.changes import parse_changes
from pycontainer.cli.progress import shown

_PASS = click.make_pass_decorator(Settings)


def _input() -> IO[bytes]:
    if os.isatty(0):
        msg = "an archive is expected on the standard input, which is a terminal; name a file with -i, or redirect one"
        raise ValueError(msg)
    return sys.stdin.buffer


@click.command("load", short_help="Load images from an archive.")
@click.option(
    "-i", "--input", "path", type=click.Path(path_type=Path), metavar="FILE", help="Instead of the standard input."
)
@click.option("--platform", metavar="OS/ARCH", help="Which of an image for several platforms; all others must fit.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing meanwhile.")
@_PASS
def load_command(settings: Settings, path: Path | None, platform: str | None, quiet: bool) -> None:  # noqa: FBT001
    """Load the images of an archive made by docker save, podman save, skopeo or umoci, or of an OCI layout.

    From the standard input, it is first written to a file in the store.
    """
    with Engine(settings.root) as engine, shown(quiet=quiet) as progress:
        loaded = engine.images.load_all(path or _input(), platform=platform, progress=progress)
    for image in loaded:
        if not image.references:
            click.echo(f"Loaded image ID: {image.id}")
        for reference in image.references:
            click.echo(f"Loaded image: {reference}")


@click.command("import", short_help="Make an image from a root file system.")
@click.argument("source", metavar="DIR|TAR|-")
@click.argument("reference", required=False)
@click.option(
    "-c", "--change", "changes", multiple=True, metavar="INSTRUCTION", help="As in a Dockerfile: CMD, ENV, USER…"
)
@click.option("-m", "--message", default="", metavar="TEXT", help="A comment for the history of the image.")
@click.option("--platform", metavar="OS/ARCH", help="What its programs are for, unless for this host.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing meanwhile.")
@_PASS
def import_command(  # noqa: PLR0917 - click calls it by name
    settings: Settings,
    source: str,
    reference: str | None,
    changes: Sequence[str],
    message: str,
    platform: str | None,
    quiet: bool,  # noqa: FBT001 - click's
) -> None:
    """Make an image of one layer from a directory or a tar; print its id."""
    config = parse_changes(changes)
    with Engine(settings.root) as engine, shown(quiet=quiet) as progress:
        image = engine.images.import_rootfs(
            _input() if source == "-" else source,
            reference=reference,
            config=config,
            message=message,
            platform=platform,
            progress=progress,
        )
    click.echo(image.id)


@click.command("save", short_help="Write images to an archive.")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "-o", "--output", "path", type=click.Path(path_type=Path), metavar="FILE", help="Instead of the standard output."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["docker-archive", "oci-archive", "oci-dir"]),
    default="docker-archive",
    show_default=True,
    help="docker-archive is an OCI layout as well.",
)
@click.option("--compress", type=click.Choice(["gzip", "zstd"]), help="Compress the archive as a whole.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing meanwhile.")
@click.option("-m", "--multi-image-archive", "_several", is_flag=True, help="Accepted: several images may be given.")
@_PASS
def save_command(
    settings: Settings,
    names: Sequence[str],
    path: Path | None,
    form: Any,  # noqa: ANN401 - one of a choice
    compress: Any,  # noqa: ANN401
    quiet: bool,  # noqa: FBT001 - click's
    _several: bool,  # noqa: FBT001
) -> None:
    """Write images to an archive for docker, podman, skopeo, containerd or pycontainer load.

    By a name without a tag, all tags of it are saved.
    """
    if path is None and form == "oci-dir":
        msg = "oci-dir is a directory; name it with -o"
        raise ValueError(msg)
    if path is None and os.isatty(1):
        msg = "an archive is not for a terminal; name a file with -o, or redirect the output"
        raise ValueError(msg)
    target = sys.stdout.buffer if path is None else path
    with Engine(settings.root) as engine, shown(quiet=quiet) as progress:
        engine.images.save(target, *names, format=form, compress=compress, progress=progress)
