"""``images``, ``tag``, ``untag``, ``rmi``, ``image exists`` and ``image prune``, as docker's and podman's commands."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterator, Sequence

import click

from pycontainer import Engine, Error, Image, NotFound
from pycontainer.cli import FAILED, Settings, tell
from pycontainer.cli.filters import list_filters, prune_filters
from pycontainer.cli.tables import age_words, format_rows, size_words
from pycontainer.names import matches, parse_reference

_NONE = "<none>"
_TABLE = "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
_TABLE_DIGESTS = "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
_TITLES = {"ID": "IMAGE ID", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "SharedSize": "SHARED SIZE"}
_TITLES |= {"UniqueSize": "UNIQUE SIZE", "VirtualSize": "SIZE"}
_PASS = click.make_pass_decorator(Settings)


def split_reference(reference: str) -> tuple[str, str]:
    """Return repository and tag of a reference that has a tag.

    >>> split_reference("registry:5000/app:1")
    ('registry:5000/app', '1')
    """
    repository, _, tag = reference.rpartition(":")
    return repository, tag


# ── images ──


def rows_of(
    image: Image, *, whole: bool, now: dt.datetime, patterns: Sequence[str] = ()
) -> Iterator[dict[str, object]]:
    """Give a row for each name of an image that a pattern fits, or one for an image without a name."""
    names = [name for name in image.references if _fits(name, patterns)] or [f"{_NONE}:{_NONE}"]
    pinned = dict(text.split("@") for text in image.repo_digests)
    for reference in names:
        repository, tag = split_reference(reference)
        yield {
            "Repository": repository,
            "Tag": tag,
            "ID": image.id if whole else image.short_id,
            "Digest": pinned.get(repository, image.digest),
            "CreatedSince": age_words(image.created, now),
            "CreatedAt": str(image.created.replace(microsecond=0)) if image.created else "N/A",
            "Size": size_words(image.size),
            "VirtualSize": size_words(image.size),
            "SharedSize": "N/A",  # as docker: it takes a look at all images, system df does that
            "UniqueSize": "N/A",
            "Containers": "N/A",
        }


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(matches(pattern, parse_reference(name)) for pattern in patterns)


@click.command("images", short_help="List images.")
@click.argument("reference", required=False)
@click.option("-a", "--all", "_all", is_flag=True, help="Accepted: there are no hidden images.")
@click.option("--digests", is_flag=True, help="Show digests of manifests.")
@click.option(
    "-f",
    "--filter",
    "filters",
    multiple=True,
    metavar="NAME=VALUE",
    help="before=IMAGE, dangling=BOOL, label=NAME[=VALUE], reference=PATTERN, since=IMAGE or until=TIME.",
)
@click.option("--format", "layout", metavar="FORMAT", help="table, json, 'table TEMPLATE' or a Go template.")
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
@click.option("-q", "--quiet", is_flag=True, help="Show ids only.")
@_PASS
def images_command(  # noqa: PLR0917 - click calls it by name
    settings: Settings,
    reference: str | None,
    _all: bool,  # noqa: FBT001 - click's
    digests: bool,  # noqa: FBT001
    filters: Sequence[str],
    layout: str | None,
    no_trunc: bool,  # noqa: FBT001
    quiet: bool,  # noqa: FBT001
) -> None:
    """List images, the newest first; those whose name is like REFERENCE, a pattern as "debian:1*"."""
    now = dt.datetime.now(dt.UTC)
    asked = list_filters([*filters, *([f"reference={reference}"] if reference is not None else [])], now)
    patterns = asked.get("reference", ())
    with Engine(settings.root) as engine:
        rows = [
            row
            for image in engine.images.list(**asked)
            for row in rows_of(image, whole=no_trunc, now=now, patterns=patterns)
        ]
    if layout in (None, "table"):
        layout = "{{.ID}}" if quiet else _TABLE_DIGESTS if digests else _TABLE
    click.echo(format_rows(rows, _TITLES, str(layout)), nl=False)


# ── tag, untag, rmi ──


@click.command("tag", short_help="Give an image one more name.")
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="REFERENCE")
@_PASS
def tag_command(settings: Settings, source: str, target: str) -> None:
    """Give IMAGE the name REFERENCE too."""
    with Engine(settings.root) as engine:
        engine.images.tag(source, target)


@click.command("untag", short_help="Take names from an image, which stays.")
@click.argument("name", metavar="IMAGE")
@click.argument("references", nargs=-1, metavar="[REFERENCE...]")
@_PASS
def untag_command(settings: Settings, name: str, references: Sequence[str]) -> None:
    """Take the names given from IMAGE, or all that it has; the image itself stays."""
    with Engine(settings.root) as engine:
        engine.images.untag(name, *references)


@click.command("rmi", short_help="Remove images.")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="By id, also with several names; of an image in use, take the name. No complaint when there is none.",
)
@click.option("--no-prune", "_no_prune", is_flag=True, help="Accepted: layers that others need always stay.")
@_PASS
def rmi_command(settings: Settings, names: Sequence[str], force: bool, _no_prune: bool) -> int:  # noqa: FBT001 - click's
    """Take names from images; an image without a name left is deleted. By an id, the image is deleted."""
    code = 0
    with Engine(settings.root) as engine:
        for name in names:
            try:
                gone = engine.images.remove(name, force=force)
            except NotFound as error:
                if not force:
                    tell(error)
                    code = FAILED
                continue
            except Error as error:
                tell(error)
                code = FAILED
                continue
            for text in gone.untagged:
                click.echo(f"Untagged: {text}")
            for text in gone.deleted:
                click.echo(f"Deleted: {text}")
    return code


# ── image exists, image prune ──


@click.command("exists", short_help="Tell by the exit status whether there is an image.")
@click.argument("name", metavar="IMAGE")
@_PASS
def image_exists_command(settings: Settings, name: str) -> int:
    """End with status 0 when there is IMAGE, with 1 when there is none."""
    with Engine(settings.root) as engine:
        return 0 if engine.images.exists(name) else FAILED


@click.command("prune", short_help="Delete images that nobody needs.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have names, if no container uses them.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option(
    "--filter", "filters", multiple=True, metavar="NAME=VALUE", help="label=NAME[=VALUE], label!=… or until=TIME."
)
@_PASS
def image_prune_command(settings: Settings, everything: bool, force: bool, filters: Sequence[str]) -> None:  # noqa: FBT001
    """Delete images without a name that no container uses."""
    asked = prune_filters(filters, dt.datetime.now(dt.UTC))
    everything = asked.pop("all", everything)
    if not force:
        what = "images without at least one container associated to them" if everything else "dangling images"
        if not sys.stdin.isatty():
            msg = "there is no terminal to ask on; give --force"
            raise ValueError(msg)
        if not click.confirm(f"WARNING! This will remove all {what}.\nAre you sure you want to continue?"):
            return
    with Engine(settings.root) as engine:
        gone = engine.images.prune(all=everything, **asked)
    if gone.deleted:
        click.echo("Deleted Images:")
        for text in gone.untagged:
            click.echo(f"untagged: {text}")
        for text in gone.deleted:
            click.echo(f"deleted: {text}")
        click.echo()
    click.echo(f"Total reclaimed space: {size_words(gone.size)}")
