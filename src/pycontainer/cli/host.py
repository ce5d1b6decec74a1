"""``info`` and ``version``: what this host, this store and this program are."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib import metadata

import click

from pycontainer import Engine
from pycontainer.cli.commands import Settings
from pycontainer.cli.template import Template, to_json

_PASS = click.make_pass_decorator(Settings)
_JSON = click.option("--json", "as_json", is_flag=True, help="The same for programs.")
_FORMAT = click.option("-f", "--format", "layout", metavar="FORMAT", help="json or a Go template.")


def plain(value: object) -> object:
    """Return a value as JSON knows it; sets and sequences are lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def version() -> str:
    """Return the version of pycontainer, or that it runs without having been installed."""
    try:
        return metadata.version("pycontainer-engine")
    except metadata.PackageNotFoundError:
        return "unknown: not installed"


def versions() -> dict[str, object]:
    """Return the versions of all that matters for a report of a mistake."""
    return {
        "Version": version(),
        "Python": platform.python_version(),
        "Kernel": platform.release(),
        "Os": sys.platform,
        "Arch": platform.machine(),
    }


def _show(document: Mapping[str, object], layout: str | None, title: str) -> None:
    if layout == "json":
        click.echo(to_json(document))
    elif layout:
        click.echo(Template(layout).render(document))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for name, value in document.items():
            table.add_row(name.replace("_", " "), _words(value))
        Console(markup=False, highlight=False).print(table)


def _words(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)


@click.command("version", short_help="Show versions.")
@_FORMAT
def version_command(layout: str | None) -> None:
    """Show the versions of pycontainer, Python and the kernel."""
    document = versions()
    if layout is None:
        layout = "".join(f"{name}:\t{{{{.{name}}}}}\n" for name in document).strip().expandtabs(10)
    _show(document, layout, "")


@click.command("info", short_help="Show what this store and this host are.")
@_JSON
@_FORMAT
@_PASS
def info_command(settings: Settings, as_json: bool, layout: str | None) -> None:  # noqa: FBT001 - click's
    """Show what this store and this host are."""
    with Engine(settings.root) as engine:
        known = {**versions(), **engine.info()}
    document = {name: plain(value) for name, value in known.items()}
    _show(document, "json" if as_json else layout, "pycontainer")
