"""``inspect``, ``history`` and ``image diff``: what is known of images and containers, as docker and podman show it."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from pycontainer import Engine, Error, ImageDetails
from pycontainer.cli import FAILED, Settings, tell
from pycontainer.cli.tables import age_words, format_rows, size_words
from pycontainer.cli.template import Template, to_json

_PASS = click.make_pass_decorator(Settings)
_HISTORY = "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
_HISTORY_EXACT = _HISTORY.replace("CreatedSince", "CreatedAt")
_TITLES = {"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY"}
_MISSING = "<missing>"
_SHORT = 45  # characters of a command


def document(details: ImageDetails) -> dict[str, object]:
    """Return what docker's ``inspect`` tells of an image, by the same names."""
    image = details.image
    config = image.config
    return {
        "Id": image.id,
        "RepoTags": list(image.references),
        "RepoDigests": list(image.repo_digests),
        "Parent": "",
        "Comment": details.comment,
        "Created": time_text(image.created) if image.created else None,
        "Author": details.author,
        "Config": {
            "User": config.user,
            "ExposedPorts": {port: {} for port in config.exposed_ports} or None,
            "Env": [f"{name}={value}" for name, value in config.env.items()],
            "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
            "Cmd": None if config.command is None else list(config.command),
            "Volumes": {path: {} for path in config.volumes} or None,
            "WorkingDir": config.workdir,
            "Labels": dict(config.labels) or None,
            "StopSignal": config.stop_signal,
        },
        "Architecture": image.architecture,
        "Variant": image.variant,
        "Os": image.os,
        "Size": image.size,
        "Digest": image.digest,
        "ManifestType": details.manifest_type,
        "RootFS": {"Type": "layers", "Layers": list(image.layers)},
        "Mounts": [
            {"Type": mount.type, "Source": mount.source, "Destination": mount.target, "RW": not mount.read_only}
            for mount in image.mounts
        ],
        "Metadata": {"LastTagTime": time_text(details.added)},
    }


def time_text(moment: dt.datetime) -> str:
    """Return a time as docker writes it in documents.

    >>> time_text(dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC))
    '2024-01-31T12:00:00Z'
    """
    return moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def _known(engine: Engine, name: str, kind: str | None) -> dict[str, Any]:
    """Return what is known of a container or an image; a container comes first, as in docker."""
    from pycontainer.cli import containers

    if kind == "container" or (kind is None and engine.containers.exists(name)):
        return containers.document(engine.containers.get(name))
    return document(engine.images.inspect(name))


def _inspect(settings: Settings, names: Sequence[str], layout: str | None, kind: str | None) -> int:
    template = None if layout in (None, "", "json") else Template(str(layout))
    found: list[dict[str, Any]] = []
    code = 0
    with Engine(settings.root) as engine:
        for name in names:
            try:
                found.append(_known(engine, name, kind))
            except Error as error:
                tell(error)
                code = FAILED
    if template is not None:
        sys.stdout.write("".join(f"{template.render(item)}\n" for item in found))
    elif layout == "json":
        sys.stdout.write(to_json(found) + "\n")
    else:
        sys.stdout.write(json.dumps(found, indent=4, ensure_ascii=False) + "\n")
    return code


@click.command("inspect", short_help="Show all that is known of images and containers.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-f", "--format", "layout", metavar="FORMAT", help="json or a Go template, for each of them.")
@click.option("--type", "kind", type=click.Choice(["image", "container"]), help="What is meant; a container first.")
@_PASS
def inspect_command(settings: Settings, names: Sequence[str], layout: str | None, kind: str | None) -> int:
    """Show images and containers as JSON."""
    return _inspect(settings, names, layout, kind)


@click.command("inspect", short_help="Show all that is known of images.")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-f", "--format", "layout", metavar="FORMAT", help="json or a Go template, for each of them.")
@_PASS
def image_inspect_command(settings: Settings, names: Sequence[str], layout: str | None) -> int:
    """Show images as JSON."""
    return _inspect(settings, names, layout, "image")


class _Exact(click.Command):
    """Takes ``--human=false`` too: click has no flags with values."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = {"--human=false": "--no-human", "--human=true": "--human", "-H=false": "--no-human", "-H=true": "-H"}
        return super().parse_args(ctx, [words.get(text, text) for text in args])


@click.command("history", cls=_Exact, short_help="Show how an image was made.")
@click.argument("name", metavar="IMAGE")
@click.option("--format", "layout", metavar="FORMAT", help="table, json, 'table TEMPLATE' or a Go template.")
@click.option("-H", "--human/--no-human", default=True, help="Ages and sizes in words, or exactly.")
@click.option("--no-trunc", is_flag=True, help="Show whole ids and commands.")
@click.option("-q", "--quiet", is_flag=True, help="Show ids only.")
@_PASS
def history_command(
    settings: Settings,
    name: str,
    layout: str | None,
    human: bool,  # noqa: FBT001 - click's
    no_trunc: bool,  # noqa: FBT001
    quiet: bool,  # noqa: FBT001
) -> None:
    """Show the steps that made IMAGE, the last one first."""
    now = dt.datetime.now(dt.UTC)
    with Engine(settings.root) as engine:
        image = engine.images.get(name)
        steps = engine.images.history(image)
    rows = []
    for number, step in enumerate(steps):
        command = " ".join(step.created_by.split("\t"))
        rows.append(
            {
                "ID": _MISSING if number else image.id if no_trunc else image.short_id,
                "CreatedSince": age_words(step.created, now),
                "CreatedAt": time_text(step.created) if step.created else "N/A",
                "CreatedBy": command if no_trunc or len(command) <= _SHORT else command[: _SHORT - 1] + "…",
                "Size": size_words(step.size) if human else str(step.size),
                "Comment": step.comment,
            }
        )
    if layout in (None, "table"):
        layout = "{{.ID}}" if quiet else _HISTORY if human else _HISTORY_EXACT
    click.echo(format_rows(rows, _TITLES, str(layout)), nl=False)


@click.command("diff", short_help="Show how the files of two images differ.")
@click.argument("old", metavar="IMAGE")
@click.argument("new", metavar="IMAGE")
@click.option("--format", "layout", type=click.Choice(["json"]), help="json instead of lines.")
@_PASS
def image_diff_command(settings: Settings, old: str, new: str, layout: str | None) -> None:
    """Show what the second IMAGE has added (A), changed (C) and deleted (D)."""
    with Engine(settings.root) as engine:
        changes = engine.images.diff(old, new)
    if layout == "json":
        kinds = ("changed", "added", "deleted")
        found = {kind: [_shown(change.path) for change in changes if change.kind == kind] for kind in kinds}
        click.echo(to_json({kind: paths for kind, paths in found.items() if paths}))
        return
    for change in changes:
        click.echo(os.fsencode(str(change)))


def _shown(path: str) -> str:
    """Return a path for JSON, which has no names that are not UTF-8: as podman, with marks in their places."""
    return os.fsencode(path).decode(errors="replace")
