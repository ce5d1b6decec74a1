"""Rows for people and programs: docker's columns, ``--format``, sizes and ages in words."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence

from pycontainer.cli.template import Template, to_json

_GAP = 3
_NARROWEST = 10  # docker's columns are at least this wide with their gap


def format_rows(rows: Sequence[Mapping[str, object]], titles: Mapping[str, str], layout: str) -> str:
    """Return rows as text.

    Args:
        rows: values by field.
        titles: the head of each column that may be shown, by field.
        layout: ``table`` and a template of fields parted by tabs, ``json``, or a template.

    Raises:
        ValueError: the layout names what is not there.
    """
    if layout == "json":
        return "".join(f"{to_json(row)}\n" for row in rows)
    head, _, rest = layout.partition(" ")
    if head != "table":
        template = Template(layout)
        return "".join(f"{template.render(row)}\n" for row in rows)
    template = Template(rest.strip())
    lines = [template.head(titles), *(template.render(row) for row in rows)]
    return align([line.split("\t") for line in lines])


def align(lines: Sequence[Sequence[str]]) -> str:
    """Return cells below each other, without blanks at the end of a line.

    >>> print(align([["NAME", "SIZE"], ["debian", "1MB"]]), end="")
    NAME      SIZE
    debian    1MB
    """
    widths: list[int] = []
    for line in lines:
        widths += [_NARROWEST] * (len(line) - len(widths))
        for number, cell in enumerate(line[:-1]):
            widths[number] = max(widths[number], len(cell) + _GAP)
    return "".join(
        "".join(cell.ljust(widths[number]) for number, cell in enumerate(line)).rstrip() + "\n" for line in lines
    )


def size_words(size: int) -> str:
    """Return a size as docker shows it: three digits, powers of 1000.

    >>> size_words(187_654_321), size_words(0), size_words(999_999)
    ('188MB', '0B', '1MB')
    """
    value, units = float(size), ["B", "kB", "MB", "GB", "TB", "PB"]
    while float(f"{value:.3g}") >= 1000 and len(units) > 1:  # noqa: PLR2004
        value /= 1000
        units.pop(0)
    return f"{float(f'{value:.3g}'):g}{units[0]}"


def age_words(created: dt.datetime | None, now: dt.datetime) -> str:
    """Return how long ago something was, as docker says it.

    >>> moment = dt.datetime(2024, 1, 10, tzinfo=dt.timezone.utc)
    >>> age_words(moment, moment + dt.timedelta(days=3)), age_words(None, moment)
    ('3 days ago', 'N/A')
    """
    if created is None:
        return "N/A"
    return f"{duration_words(created, now)} ago"


def duration_words(since: dt.datetime, now: dt.datetime) -> str:
    """Return how much time lies between two moments, as docker says it."""
    return _duration((now - since).total_seconds())


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds / 60), round(seconds / 3600)
    days = hours // 24
    steps: Iterable[tuple[bool, str]] = (
        (seconds < 1, "Less than a second"),
        (seconds < 2, "1 second"),  # noqa: PLR2004 - each of these is docker's
        (seconds < 60, f"{int(seconds)} seconds"),  # noqa: PLR2004
        (minutes == 1, "About a minute"),
        (minutes < 60, f"{minutes} minutes"),  # noqa: PLR2004
        (hours == 1, "About an hour"),
        (hours < 48, f"{hours} hours"),  # noqa: PLR2004
        (days < 14, f"{days} days"),  # noqa: PLR2004
        (days < 60, f"{days // 7} weeks"),  # noqa: PLR2004
        (days < 730, f"{days // 30} months"),  # noqa: PLR2004
    )
    return next((words for fits, words in steps if fits), f"{days // 365} years")
