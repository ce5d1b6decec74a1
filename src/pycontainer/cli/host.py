"""``info``, ``doctor`` and ``version``: what this host, this store and this program are, and what the host lacks."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from pycontainer import Engine, Error
from pycontainer.cli import FAILED, Settings, tell
from pycontainer.cli.tables import size_words
from pycontainer.cli.template import Template, to_json

if TYPE_CHECKING:
    from rich.console import Console

    from pycontainer.doctor import Check, Report

_PASS = click.make_pass_decorator(Settings)
_JSON = click.option("--json", "as_json", is_flag=True, help="The same for programs.")
_FORMAT = click.option("-f", "--format", "layout", metavar="FORMAT", help="json or a Go template.")
_REASONS = ("namespaces", "overlay", "features")  # in these, a text says why it does not work
_VERBATIM = (*_REASONS, "controllers", "limits", "tools")  # and in these the keys are names, not words of ours
_SIZES = ("memory", "swap", "size", "free")
_WIDE = 160  # characters of a line where no terminal sets a limit
_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "missing": "[red]missing[/]"}


def version() -> str:
    """Return the version of pycontainer, or that it runs without having been installed."""
    try:
        return metadata.version("pycontainer-engine")
    except metadata.PackageNotFoundError:
        return "unknown: not installed"


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=_WIDE)


# ── version ──


@click.command("version", short_help="Show versions.")
@_FORMAT
def version_command(layout: str | None) -> None:
    """Show the versions of pycontainer, Python and the kernel, for a report of a mistake."""
    known = {
        "Version": version(),
        "Python": platform.python_version(),
        "Kernel": platform.release(),
        "Arch": platform.machine(),
    }
    if layout is None:
        layout = "\n".join(f"{name + ':':<10}{{{{.{name}}}}}" for name in known)
    click.echo(to_json(known) if layout == "json" else Template(layout).render(known))


# ── info ──


@click.command("info", short_help="Show what this store and this host are.")
@_JSON
@_FORMAT
@_PASS
def info_command(settings: Settings, as_json: bool, layout: str | None) -> int:  # noqa: FBT001 - click's
    """Show what this store and this host are."""
    from pycontainer import doctor

    known: dict[str, Any] = {"version": version(), "images": None, **doctor.info(settings.root).to_dict()}
    code = 0
    try:
        with Engine(settings.root) as engine:
            known["images"] = len(engine.images.list())
    except Error as error:
        tell(error)
        code = FAILED
    if as_json or layout == "json":
        click.echo(to_json(known))
    elif layout:
        click.echo(Template(layout).render(known))
    else:
        _print_info(known)
    return code


def _print_info(known: Mapping[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _lines(known):
        table.add_row(escape(name), escape(value))
    _console().print(table)


def _lines(known: Mapping[str, Any], group: str = "", indent: str = "") -> Iterator[tuple[str, str]]:
    for name, value in known.items():
        label = indent + (name if group in _VERBATIM else name.replace("_", " "))
        if isinstance(value, Mapping):
            yield label, ""
            yield from _lines(value, name, indent + "  ")
        elif isinstance(value, list):
            yield label, ", ".join(map(_words, value))
        elif name in _SIZES and isinstance(value, int):
            yield label, size_words(value)
        else:
            yield label, "yes" if group in _REASONS and value == "" else _words(value)


def _words(value: object) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value) or "none"


# ── doctor ──


@click.command("doctor", short_help="Show what this host lacks, what that costs, and what to do.")
@_JSON
@_PASS
def doctor_command(settings: Settings, as_json: bool) -> int:  # noqa: FBT001 - click's
    """Try out what containers need of this host; the status is 1 when they cannot be run."""
    from pycontainer import doctor

    report = doctor.check(settings.root)
    if as_json:
        click.echo(to_json(report.to_dict()))
    else:
        _print_report(report)
    return 0 if report.ok else FAILED


def _print_report(report: Report) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for check in report.checks:
        table.add_row(_MARKS[check.status], escape(check.name), escape("\n".join(_said(check))))
    console = _console()
    console.print(table)
    warnings = sum(check.status == "warning" for check in report.checks)
    missing = sum(check.status == "missing" for check in report.checks)
    console.print(
        ("\nContainers can be run" if report.ok else f"\nContainers cannot be run: {missing} missing")
        + (f"; {warnings} warnings." if warnings else ".")
    )


def _said(check: Check) -> Iterator[str]:
    yield check.found
    if check.costs:
        yield f"costs: {check.costs}"
    if check.remedy:
        yield f"to do: {check.remedy}"
