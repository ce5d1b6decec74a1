"""``system df``, ``system prune`` and ``system check``."""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING

import attrs
import click

from pycontainer import DiskUsage, Engine
from pycontainer.cli import FAILED, Settings
from pycontainer.cli.images import rows_of
from pycontainer.cli.tables import format_rows, size_words
from pycontainer.cli.template import to_json

if TYPE_CHECKING:
    from pycontainer import SpaceUsage

_TABLE = "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}"
_TITLES = {"TotalCount": "TOTAL"}
_IMAGES = (
    "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}"
    "\t{{.Containers}}"
)
_IMAGE_TITLES = {
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
}
_PASS = click.make_pass_decorator(Settings)


# ── df ──


@click.command("df", short_help="Show what the store takes of the disk.")
@click.option("--format", "layout", default=_TABLE, metavar="FORMAT", help="json, 'table TEMPLATE' or a Go template.")
@click.option("-v", "--verbose", is_flag=True, help="Show each image, and what it shares with others.")
@_PASS
def system_df_command(settings: Settings, layout: str, verbose: bool) -> None:  # noqa: FBT001 - click's
    """Show what images, containers, volumes and interrupted downloads take of the disk, and what of it can go."""
    with Engine(settings.root) as engine:
        usage = engine.disk_usage()
        if verbose:
            click.echo(_by_image(engine, usage), nl=False)
            return
    layout = _TABLE if layout == "table" else layout
    click.echo(format_rows(_rows(usage), _TITLES, layout), nl=False)


def _rows(usage: DiskUsage) -> list[dict[str, object]]:
    kinds: list[tuple[str, SpaceUsage]] = [
        ("Images", usage.images),
        ("Containers", usage.containers),
        ("Local Volumes", usage.volumes),
        ("Downloads", usage.downloads),
    ]
    return [
        {
            "Type": name,
            "TotalCount": space.total,
            "Active": space.active,
            "Size": size_words(space.size),
            "Reclaimable": f"{size_words(space.reclaimable)}{_percent(space)}",
        }
        for name, space in kinds
    ]


def _percent(space: SpaceUsage) -> str:
    return f" ({100 * space.reclaimable // space.size}%)" if space.size else ""


def _by_image(engine: Engine, usage: DiskUsage) -> str:
    now = dt.datetime.now(dt.UTC)
    known = {item.id: item for item in usage.by_image}
    rows = [
        row
        | {
            "Size": size_words(known[image.id].size),
            "SharedSize": size_words(known[image.id].shared),
            "UniqueSize": size_words(known[image.id].unique),
            "Containers": known[image.id].containers,
        }
        for image in engine.images.list()
        if image.id in known
        for row in rows_of(image, whole=False, now=now)
    ]
    text = "Images space usage:\n\n" + format_rows(rows, _IMAGE_TITLES, _IMAGES)
    return text + f"\nContent that no image needs: {size_words(usage.unreferenced)}\n"


# ── prune ──


@click.command("prune", short_help="Delete what nobody needs.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also images that have names, if no container uses them.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@_PASS
def system_prune_command(settings: Settings, everything: bool, force: bool) -> None:  # noqa: FBT001 - click's
    """Delete containers that do not run with their volumes, dangling images, and interrupted downloads."""
    if not force:
        if not sys.stdin.isatty():
            msg = "there is no terminal to ask on; give --force"
            raise ValueError(msg)
        images = "all images without at least one container" if everything else "all dangling images"
        click.echo("WARNING! This will remove:")
        click.echo(f"  - all stopped containers and their volumes\n  - {images}\n  - all interrupted downloads\n")
        if not click.confirm("Are you sure you want to continue?"):
            return
    with Engine(settings.root) as engine:
        gone = engine.prune(all=everything)
    if gone.containers:
        click.echo("Deleted Containers:\n" + "\n".join(gone.containers) + "\n")
    if gone.untagged or gone.images:
        click.echo("Deleted Images:")
        for text in gone.untagged:
            click.echo(f"untagged: {text}")
        for text in gone.images:
            click.echo(f"deleted: {text}")
        click.echo()
    if gone.downloads:
        click.echo(f"Deleted interrupted downloads: {gone.downloads}\n")
    click.echo(f"Total reclaimed space: {size_words(gone.size)}")


# ── check ──


@click.command("check", short_help="Verify all that the store holds.")
@click.option(
    "--repair", is_flag=True, help="Make anew what can be made; delete what is damaged, to be brought in again."
)
@click.option("--drop", is_flag=True, help="Delete images that stay damaged, unless containers are made from them.")
@click.option("--format", "layout", type=click.Choice(["text", "json"]), default="text", help="What to print.")
@_PASS
def system_check_command(settings: Settings, repair: bool, drop: bool, layout: str) -> int:  # noqa: FBT001 - click's
    """Verify blobs, layers, records and index against each other; end with status 1 when something is wrong.

    Everything is read. Images that stay damaged must be loaded or pulled again.
    """
    with Engine(settings.root) as engine:
        report = engine.check(repair=repair, drop=drop)
    if layout == "json":
        click.echo(to_json(attrs.asdict(report) | {"ok": report.ok}))
        return 0 if report.ok else FAILED
    for problem in report.problems:
        click.echo(str(problem))
        for identity in problem.images if not problem.repaired else ():
            click.echo(f"  image {identity}")
    for identity in report.dropped:
        click.echo(f"deleted: {identity}")
    click.echo(f"{report.images} images, {size_words(report.size)} read: {'whole' if report.ok else 'damaged'}")
    return 0 if report.ok else FAILED
