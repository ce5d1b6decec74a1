"""``images``, ``tag``, ``rmi`` and ``inspect``: images, as docker's commands of these names."""

from __future__ import annotations

import datetime as dt
import fnmatch
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from pycontainer import Engine, Error, Image, NotFound
from pycontainer.cli import FAILED, Settings, tell
from pycontainer.cli.tables import age_words, format_rows, size_words
from pycontainer.cli.template import Template, to_json

_NONE = "<none>"
_TABLE = "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
_TABLE_DIGESTS = "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
_TITLES = {"ID": "IMAGE ID", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT"}
_PASS = click.make_pass_decorator(Settings)


def split_reference(reference: str) -> tuple[str, str]:
    """Return repository and tag of a reference that has a tag.

    >>> split_reference("registry:5000/app:1")
    ('registry:5000/app', '1')
    """
    repository, _, tag = reference.rpartition(":")
    return repository, tag


# ── images ──


def rows_of(image: Image, *, whole: bool, now: dt.datetime) -> Iterator[dict[str, object]]:
    """Give a row for each name of an image, or one for an image without."""
    for reference in image.references or (f"{_NONE}:{_NONE}",):
        repository, tag = split_reference(reference)
        yield {
            "Repository": repository,
            "Tag": tag,
            "ID": image.id if whole else image.short_id,
            "Digest": image.digest,
            "CreatedSince": age_words(image.created, now),
            "CreatedAt": str(image.created.replace(microsecond=0)) if image.created else "N/A",
            "Size": size_words(image.size),
        }


def _matches(row: Mapping[str, object], image: Image, filters: Sequence[tuple[str, str]]) -> bool:
    by_key: dict[str, list[str]] = {}
    for key, value in filters:
        by_key.setdefault(key, []).append(value)
    return all(
        (all if key == "label" else any)(_match(row, image, key, value) for value in values)
        for key, values in by_key.items()
    )


def _match(row: Mapping[str, object], image: Image, key: str, value: str) -> bool:
    if key == "dangling":
        if value.lower() not in ("true", "false", "1", "0"):
            msg = f"the filter dangling is true or false, not {value!r}"
            raise ValueError(msg)
        return (not image.references) == (value.lower() in ("true", "1"))
    if key == "reference":
        repository, name = str(row["Repository"]), f"{row['Repository']}:{row['Tag']}"
        return bool(image.references) and any(fnmatch.fnmatchcase(text, value) for text in (repository, name))
    if key == "label":
        name, equals, wanted = value.partition("=")
        return name in image.config.labels and (not equals or image.config.labels[name] == wanted)
    msg = f"there is no filter {key!r}; there are dangling, label and reference"
    raise ValueError(msg)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        msg = f"a filter is NAME=VALUE, not {text!r}"
        raise ValueError(msg)
    return key, value


@click.command("images", short_help="List images.")
@click.argument("reference", required=False)
@click.option("-a", "--all", "_all", is_flag=True, help="Accepted: there are no hidden images.")
@click.option("--digests", is_flag=True, help="Show digests of manifests.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="NAME=VALUE", help="dangling, label or reference.")
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
    """List images, the newest first."""
    now = dt.datetime.now(dt.UTC)
    pairs = [_pair(text) for text in filters]
    if reference is not None:
        pairs.append(("reference", reference))
    with Engine(settings.root) as engine:
        rows = [
            row
            for image in engine.images.list()
            for row in rows_of(image, whole=no_trunc, now=now)
            if _matches(row, image, pairs)
        ]
    if layout in (None, "table"):
        layout = "{{.ID}}" if quiet else _TABLE_DIGESTS if digests else _TABLE
    click.echo(format_rows(rows, _TITLES, str(layout)), nl=False)


# ── tag, rmi ──


@click.command("tag", short_help="Give an image one more name.")
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="REFERENCE")
@_PASS
def tag_command(settings: Settings, source: str, target: str) -> None:
    """Give IMAGE the name REFERENCE too."""
    with Engine(settings.root) as engine:
        engine.images.tag(source, target)


@click.command("rmi", short_help="Remove images.")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-f", "--force", is_flag=True, help="By id, also with several names; no complaint when there is none.")
@_PASS
def rmi_command(settings: Settings, names: Sequence[str], force: bool) -> int:  # noqa: FBT001 - click's
    """Take names from images; an image without a name left is deleted. By an id, the image is deleted."""
    code = 0
    with Engine(settings.root) as engine:
        for name in names:
            try:
                for line in _remove(engine, name, force=force):
                    click.echo(line)
            except NotFound as error:
                if not force:
                    tell(error)
                    code = FAILED
            except Error as error:
                tell(error)
                code = FAILED
    return code


def _remove(engine: Engine, name: str, *, force: bool) -> list[str]:
    before = engine.images.get(name)
    engine.images.remove(name, force=force)
    try:
        left = engine.images.get(before.id).references
    except NotFound:
        return [*(f"Untagged: {reference}" for reference in before.references), f"Deleted: {before.id}"]
    return [f"Untagged: {reference}" for reference in before.references if reference not in left]


# ── inspect ──


def document(image: Image) -> dict[str, object]:
    """Return what docker's ``inspect`` tells of an image, by the same names."""
    config = image.config
    return {
        "Id": image.id,
        "RepoTags": list(image.references),
        "RepoDigests": [f"{split_reference(reference)[0]}@{image.digest}" for reference in image.references],
        "Created": image.created.isoformat().replace("+00:00", "Z") if image.created else None,
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
        "RootFS": {"Type": "layers", "Layers": list(image.layers)},
        "Mounts": [
            {"Type": mount.type, "Source": mount.source, "Destination": mount.target, "RW": not mount.read_only}
            for mount in image.mounts
        ],
    }


def _known(engine: Engine, name: str, kind: str | None) -> dict[str, Any]:
    """Return what is known of a container or an image; a container comes first, as in docker."""
    from pycontainer.cli import containers

    if kind == "container" or (kind is None and engine.containers.exists(name)):
        return containers.document(engine.containers.get(name))
    return document(engine.images.get(name))


@click.command("inspect", short_help="Show all that is known of images and containers.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-f", "--format", "layout", metavar="FORMAT", help="json or a Go template, for each of them.")
@click.option("--type", "kind", type=click.Choice(["image", "container"]), help="What is meant; a container first.")
@_PASS
def inspect_command(settings: Settings, names: Sequence[str], layout: str | None, kind: str | None) -> int:
    """Show images and containers as JSON."""
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
