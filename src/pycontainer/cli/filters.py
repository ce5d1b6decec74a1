"""``--filter NAME=VALUE`` of docker, as the arguments that the library takes; times as docker takes them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any

# What a filter is in the library, and whether it may come more than once.
_LIST = {
    "before": ("before", False),
    "dangling": ("dangling", False),
    "label": ("label", True),
    "reference": ("reference", True),
    "since": ("since", False),
    "until": ("until", False),
}
_PRUNE = {
    "dangling": ("all", False),
    "label": ("label", True),
    "label!": ("without_label", True),
    "until": ("until", False),
}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(h|m|s|ms|us|µs|ns))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|us|µs|ns|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")


def list_filters(texts: Sequence[str], now: dt.datetime) -> dict[str, Any]:
    """Return arguments for :meth:`Images.list`.

    Args:
        texts: the filters.
        now: what durations count back from.

    Raises:
        ValueError: there is no such filter, or it cannot have this value.

    >>> list_filters(["label=a", "label=b=c", "dangling=true"], dt.datetime.now())
    {'label': ['a', 'b=c'], 'dangling': True}
    """
    return _arguments(texts, _LIST, now)


def prune_filters(texts: Sequence[str], now: dt.datetime) -> dict[str, Any]:
    """Return arguments for :meth:`Images.prune`; see :func:`list_filters`."""
    found = _arguments(texts, _PRUNE, now)
    if "all" in found:
        found["all"] = not found["all"]
    return found


def _arguments(texts: Sequence[str], known: Mapping[str, tuple[str, bool]], now: dt.datetime) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            msg = f"a filter is NAME=VALUE, not {text!r}"
            raise ValueError(msg)
        if name not in known:
            msg = f"there is no filter {name!r}; there are {', '.join(known)}"
            raise ValueError(msg)
        argument, several = known[name]
        if several:
            found.setdefault(argument, []).append(value)
        elif argument in found:
            msg = f"the filter {name} is given twice"
            raise ValueError(msg)
        else:
            found[argument] = _value(name, value, now)
    return found


def _value(name: str, value: str, now: dt.datetime) -> object:
    if name == "until":
        return parse_time(value, now)
    if name != "dangling":
        return value
    if value.lower() not in (*_TRUE, *_FALSE):
        msg = f"the filter dangling is true or false, not {value!r}"
        raise ValueError(msg)
    return value.lower() in _TRUE


def parse_time(text: str, now: dt.datetime) -> dt.datetime:
    """Return the moment that a text means to docker: a duration before now, seconds since 1970, or a date.

    Args:
        text: ``"24h"``, ``"1h30m"``, ``"1700000000"``, ``"2024-01-31"``, ``"2024-01-31T12:00:00Z"``; without a zone it
            is local time.
        now: the present.

    Raises:
        ValueError: it is none of these.

    >>> parse_time("1h30m", dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)).isoformat()
    '2024-01-01T10:30:00+00:00'
    """
    try:
        if _DURATION.fullmatch(text):
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
            return now - dt.timedelta(seconds=seconds)
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return dt.datetime.fromtimestamp(float(text), dt.UTC)
        return dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    except (ValueError, OverflowError, OSError):
        msg = f"not a time: {text!r}; write a duration such as 24h, or a date such as 2024-01-31T12:00:00Z"
        raise ValueError(msg) from None
