"""``create``, ``start``, ``ps``, ``rm``, ``diff``, ``commit``, ``export``, ``rename`` and the group ``container``."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pycontainer import Container, Engine, Error, NotFound, Unsupported
from pycontainer.cli import FAILED, Settings, foreground, options, tell
from pycontainer.cli.changes import parse_changes
from pycontainer.cli.run import for_click
from pycontainer.cli.tables import age_words, duration_words, format_rows, size_words
from pycontainer.cli.template import Template, to_json

_TABLE = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
_TITLES = {"ID": "CONTAINER ID", "RunningFor": "CREATED", "CreatedAt": "CREATED AT", "LocalVolumes": "LOCAL VOLUMES"}
_COMMAND_WIDTH = 20
_FILTERS = ("ancestor", "before", "exited", "id", "label", "name", "since", "status")
_TELL_OF_ALL = {"before", "exited", "since", "status"}  # with these, those that do not run are listed too
_STATES = ("created", "running", "exited")
_UNITS = {"s": 1, "m": 60, "h": 3600}
_PASS = click.make_pass_decorator(Settings)


# ── create, start ──


@_PASS
def _create(settings: Settings, /, image: str, command: tuple[str, ...], **given: Any) -> None:  # noqa: ANN401
    arguments = foreground.run_arguments(given)
    with Engine(settings.root) as engine:
        found = foreground.find_image(engine, image, given["pull"])
        click.echo(foreground.create(engine, found, command, arguments, given).id)


create_command = click.Command(
    "create",
    callback=_create,
    context_settings={"allow_interspersed_args": False, "max_content_width": 120},
    help="""Make a container that is kept, and print its id; 'start -a' runs it.

    Without a command, the image's own runs. IMAGE is a reference, an id, or 'host': the programs of this host.""",
    short_help="Make a container to be run later.",
    params=[
        click.Argument(["image"]),
        click.Argument(["command"], nargs=-1, type=click.UNPROCESSED),
        *map(for_click, options.CREATE),
    ],
)


@_PASS
def _start(settings: Settings, /, names: tuple[str, ...], **given: Any) -> int:  # noqa: ANN401
    settings.runs = True
    if not given["attach"] and not given["interactive"]:
        msg = "this version runs containers in the foreground only: use start -a, or -ai to type into it"
        raise Unsupported(msg)
    if len(names) != 1:
        msg = "one container at a time can have the terminal: start them one by one"
        raise ValueError(msg)
    with Engine(settings.root) as engine:
        return foreground.attach(engine.containers.get(names[0]), given)


start_command = click.Command(
    "start",
    callback=_start,
    help="""Run a container that is kept, in the foreground; what it wrote in earlier runs is there.

    Exit statuses are those of 'run'.""",
    short_help="Run a container that is kept.",
    params=[
        click.Argument(["names"], nargs=-1, required=True, metavar="CONTAINER"),
        click.Option(["-a", "--attach"], is_flag=True, help="Show its output."),
        click.Option(["-i", "--interactive"], is_flag=True, help="Give it the standard input."),
        *map(for_click, options.FOREGROUND),
    ],
)


# ── ps ──


def status_words(container: Container, now: dt.datetime) -> str:
    """Return the state of a container as docker says it."""
    state, code, started, finished = container.state, container.exit_code, container.started, container.finished
    if state == "running" and started is not None:
        return f"Up {duration_words(started, now)}"
    if state == "exited":
        ago = f" {age_words(finished, now)}" if finished else ""
        return f"Exited ({'unknown' if code is None else code}){ago}"
    return "Created"


def row_of(container: Container, *, whole: bool, size: bool, now: dt.datetime) -> dict[str, object]:
    """Return the fields of ``ps`` for a container."""
    command = " ".join(f"'{word}'" if " " in word else word for word in container.command)
    if not whole and len(command) > _COMMAND_WIDTH:
        command = command[: _COMMAND_WIDTH - 1] + "…"
    image = container.image_name
    if not whole and image.startswith("sha256:"):
        image = image.removeprefix("sha256:")[:12]
    return {
        "ID": container.id if whole else container.short_id,
        "Image": image,
        "Command": json.dumps(command, ensure_ascii=False),
        "CreatedAt": str(container.created.replace(microsecond=0)),
        "RunningFor": age_words(container.created, now),
        "Status": status_words(container, now),
        "State": container.state,
        "Ports": "",
        "Names": container.name,
        "Labels": ",".join(f"{key}={value}" for key, value in container.labels.items()),
        "Mounts": ",".join(mount.source or mount.type for mount in container.mounts),
        "Networks": container.network,
        "Size": f"{size_words(container.size())} (virtual {size_words(container.size() + container.image.size)})"
        if size
        else "0B",
    }


def _pairs(texts: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in _FILTERS:
            msg = f"a filter is NAME=VALUE with one of {', '.join(_FILTERS)}, not {text!r}"
            raise ValueError(msg)
        found.setdefault(key, []).append(value)
    return found


def _labels(texts: Sequence[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        found[key] = value if equals else None
    return found


def _select(engine: Engine, filters: Mapping[str, list[str]]) -> list[Container]:
    """Return the containers that fit: of the values of one filter any, of the filters all, of the labels all."""
    found = engine.containers.list(labels=_labels(filters.get("label", ())))
    tests: dict[str, Callable[[str], Callable[[Container], bool]]] = {
        "id": lambda value: lambda item: item.id.startswith(value),
        "name": lambda value: lambda item: re.search(value.removeprefix("/"), item.name) is not None,
        "status": lambda value: lambda item: item.state == _state(value),
        "exited": lambda value: lambda item: item.state == "exited" and item.exit_code == int(value),
        "ancestor": lambda value: set(engine.containers.list(image=value)).__contains__,
        "before": lambda value: set(engine.containers.list(before=value)).__contains__,
        "since": lambda value: set(engine.containers.list(since=value)).__contains__,
    }
    for key, test in tests.items():
        if key in filters:
            fits = [test(value) for value in filters[key]]
            found = [item for item in found if any(fit(item) for fit in fits)]
    return found


def _state(text: str) -> str:
    if text not in _STATES:
        msg = f"a state is one of {', '.join(_STATES)}, not {text!r}"
        raise ValueError(msg)
    return text


@click.command("ps", short_help="List containers.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that do not run.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="NAME=VALUE", help=", ".join(_FILTERS) + ".")
@click.option("--format", "layout", metavar="FORMAT", help="table, json, 'table TEMPLATE' or a Go template.")
@click.option("-n", "--last", type=click.IntRange(min=1), metavar="N", help="The N newest, whether they run or not.")
@click.option("-l", "--latest", is_flag=True, help="The newest.")
@click.option("--no-trunc", is_flag=True, help="Show whole ids and commands.")
@click.option("-q", "--quiet", is_flag=True, help="Show ids only.")
@click.option("-s", "--size", is_flag=True, help="Show what they take on disk.")
@_PASS
def ps_command(settings: Settings, /, **given: Any) -> None:  # noqa: ANN401 - click's
    """List containers, the newest first."""
    now = dt.datetime.now(dt.UTC)
    filters = _pairs(given["filters"])
    last = 1 if given["latest"] else given["last"]
    with Engine(settings.root) as engine:
        found = _select(engine, filters)
        if last is not None:
            found = found[:last]
        elif not given["everything"] and not _TELL_OF_ALL & filters.keys():
            found = [item for item in found if item.state == "running"]
        if given["quiet"] and not given["layout"]:
            rows: list[dict[str, object]] = [{"ID": item.id if given["no_trunc"] else item.short_id} for item in found]
            layout = "{{.ID}}"
        else:
            rows = [row_of(item, whole=given["no_trunc"], size=given["size"], now=now) for item in found]
            layout = given["layout"]
    if layout in (None, "table"):
        layout = _TABLE + ("\t{{.Size}}" if given["size"] else "")
    click.echo(format_rows(rows, _TITLES, layout), nl=False)


# ── rm, prune ──


@click.command("rm", short_help="Remove containers.")
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("-f", "--force", is_flag=True, help="Kill it when it runs; no complaint when there is none.")
@click.option("-v", "--volumes", is_flag=True, help="Accepted: volumes that the image declares go with it.")
@_PASS
def rm_command(settings: Settings, names: Sequence[str], force: bool, volumes: bool) -> int:  # noqa: ARG001, FBT001
    """Remove containers with all that they wrote."""
    code = 0
    with Engine(settings.root) as engine:
        for name in names:
            try:
                engine.containers.remove(name, force=force)
            except NotFound as error:
                if not force:
                    tell(error)
                    code = FAILED
            except Error as error:
                tell(error)
                code = FAILED
            else:
                click.echo(name)
    return code


def _until(text: str) -> float:
    """Return the time that ``until=`` means: a duration back from now, or a date."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return dt.datetime.now(dt.UTC).timestamp() - sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        msg = f"until= takes a duration such as 24h or a date such as 2024-01-31T12:00:00Z, not {text!r}"
        raise ValueError(msg) from None
    return (moment if moment.tzinfo else moment.astimezone()).timestamp()


@click.command("prune", short_help="Remove containers that do not run.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--filter", "filters", multiple=True, metavar="NAME=VALUE", help="label or until.")
@_PASS
def container_prune_command(settings: Settings, force: bool, filters: Sequence[str]) -> None:  # noqa: FBT001
    """Remove all containers that do not run, with all that they wrote."""
    labels: dict[str, str | None] = {}
    before = None
    for text in filters:
        key, _, value = text.partition("=")
        if key == "label" and value:
            labels |= _labels([value])
        elif key == "until" and value:
            before = _until(value)
        else:
            msg = f"a filter is label=NAME[=VALUE] or until=TIME, not {text!r}"
            raise ValueError(msg)
    if not force:
        click.echo("WARNING! This will remove all stopped containers.")
        click.confirm("Are you sure you want to continue?", abort=True)
    with Engine(settings.root) as engine:
        pruned = engine.containers.prune(labels=labels, before=before)
    if pruned.containers:
        click.echo("Deleted Containers:\n" + "\n".join(pruned.containers) + "\n")
    click.echo(f"Total reclaimed space: {size_words(pruned.size)}")


# ── diff, commit, export, rename ──


@click.command("diff", short_help="Show what a container changed.")
@click.argument("name", metavar="CONTAINER")
@_PASS
def diff_command(settings: Settings, name: str) -> None:
    """Show which paths a container added (A), changed (C) and deleted (D)."""
    with Engine(settings.root) as engine:
        lines = [f"{change}\n" for change in engine.containers.get(name).diff()]
    sys.stdout.buffer.write("".join(lines).encode(errors="surrogateescape"))


@click.command("commit", short_help="Make an image of a container.")
@click.argument("name", metavar="CONTAINER")
@click.argument("reference", required=False, metavar="[REPOSITORY[:TAG]]")
@click.option("-a", "--author", default="", help="Who made it.")
@click.option(
    "-c", "--change", "changes", multiple=True, metavar="INSTRUCTION", help="As in a Dockerfile: CMD, ENV, USER…"
)
@click.option("-m", "--message", default="", help="A comment.")
@click.option("-p", "--pause/--no-pause", default=True, help="Stop its processes meanwhile (default).")
@click.option("--squash", is_flag=True, help="Make one layer of everything.")
@click.option("--compression", type=click.Choice(["none", "gzip", "zstd"]), default="none", help="Of the new layer.")
@_PASS
def commit_command(settings: Settings, /, name: str, reference: str | None, **given: Any) -> None:  # noqa: ANN401
    """Make an image of a container's image and what the container changed; print its id."""
    with Engine(settings.root) as engine:
        container = engine.containers.get(name)
        config = parse_changes(given["changes"], container.config)
        image = container.commit(
            reference,
            author=given["author"],
            message=given["message"],
            config=config,
            pause=given["pause"],
            squash=given["squash"],
            compression=given["compression"],
        )
    click.echo(image.id)


@click.command("export", short_help="Write a container's files to a tar.")
@click.argument("name", metavar="CONTAINER")
@click.option(
    "-o", "--output", "path", type=click.Path(path_type=Path), metavar="FILE", help="Instead of the standard output."
)
@_PASS
def export_command(settings: Settings, name: str, path: Path | None) -> None:
    """Write the whole file system of a container to a tar, without volumes."""
    if path is None and os.isatty(1):
        msg = "a tar is not for a terminal; name a file with -o, or redirect the output"
        raise ValueError(msg)
    with Engine(settings.root) as engine:
        container = engine.containers.get(name)
        if path is not None:
            container.export(path)
        else:
            container.export(sys.stdout.buffer)
            sys.stdout.buffer.flush()


@click.command("rename", short_help="Give a container another name.")
@click.argument("name", metavar="CONTAINER")
@click.argument("new", metavar="NEW_NAME")
@_PASS
def rename_command(settings: Settings, name: str, new: str) -> None:
    """Give CONTAINER the name NEW_NAME."""
    with Engine(settings.root) as engine:
        engine.containers.get(name).rename(new)


# ── inspect ──


def document(container: Container) -> dict[str, object]:
    """Return what docker's ``inspect`` tells of a container, by the same names."""
    config, state = container.config, container.state
    program, *arguments = container.command
    return {
        "Id": container.id,
        "Created": _time(container.created),
        "Path": program,
        "Args": arguments,
        "State": {
            "Status": state,
            "Running": state == "running",
            "Paused": False,
            "ExitCode": container.exit_code,
            "StartedAt": _time(container.started),
            "FinishedAt": _time(container.finished),
        },
        "Image": container.image.id,
        "Name": f"/{container.name}",
        "HostConfig": {"NetworkMode": container.network},
        "Mounts": [
            {
                "Type": mount.type,
                "Source": mount.source or "",
                "Destination": mount.target,
                "RW": not mount.read_only,
                "Propagation": mount.propagation if mount.type == "bind" else "",
            }
            for mount in container.mounts
        ],
        "Config": {
            "User": config.user,
            "Tty": container.tty,
            "Env": [f"{name}={value}" for name, value in config.env.items()],
            "Cmd": None if config.command is None else list(config.command),
            "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
            "Image": container.image_name,
            "WorkingDir": config.workdir,
            "Labels": dict(config.labels),
        },
    }


def _time(moment: dt.datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def _documents(engine: Engine, names: Sequence[str]) -> Iterator[dict[str, object] | Error]:
    for name in names:
        try:
            yield document(engine.containers.get(name))
        except Error as error:
            yield error


@click.command("inspect", short_help="Show all that is known of containers.")
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("-f", "--format", "layout", metavar="FORMAT", help="json or a Go template, for each container.")
@_PASS
def container_inspect_command(settings: Settings, names: Sequence[str], layout: str | None) -> int:
    """Show containers as JSON."""
    template = None if layout in (None, "", "json") else Template(str(layout))
    with Engine(settings.root) as engine:
        found = list(_documents(engine, names))
    known = [item for item in found if not isinstance(item, Error)]
    for item in found:
        if isinstance(item, Error):
            tell(item)
    if template is not None:
        click.echo("".join(f"{template.render(item)}\n" for item in known), nl=False)
    else:
        click.echo(to_json(known) if layout == "json" else json.dumps(known, indent=4, ensure_ascii=False))
    return 0 if len(known) == len(found) else FAILED
