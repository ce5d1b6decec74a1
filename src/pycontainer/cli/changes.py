"""``--change`` of ``import`` and ``commit``: instructions of a Dockerfile that set an image's configuration."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from typing import Any

import attrs

from pycontainer import ImageConfig

_SHELL = ("/bin/sh", "-c")
_PORT = re.compile(r"\d{1,5}(-\d{1,5})?(/(tcp|udp|sctp))?")


def parse_changes(lines: Iterable[str], base: ImageConfig | None = None) -> ImageConfig:
    """Return the configuration that instructions make.

    Args:
        lines: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR, one instruction each.
        base: what they change; nothing when not given.

    Raises:
        ValueError: one cannot be read.

    >>> parse_changes(['CMD ["sleep", "1"]', "ENV A=1 B='2 3'"]).env
    {'A': '1', 'B': '2 3'}
    """
    base = base or ImageConfig()
    found = {field.name: getattr(base, field.name) for field in attrs.fields(ImageConfig)}
    found |= {"env": dict(base.env), "labels": dict(base.labels)}
    for line in lines:
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if not rest:
            msg = f"an instruction has a name and a value, as in 'CMD [\"sh\"]': {line!r}"
            raise ValueError(msg)
        _change(found, name.upper(), rest, line)
    return ImageConfig(**found)


def _change(found: dict[str, Any], name: str, rest: str, line: str) -> None:
    if name == "CMD":
        found["command"] = _exec_form(rest, line) or (*_SHELL, rest)
    elif name == "ENTRYPOINT":
        found["entrypoint"] = _exec_form(rest, line) or (*_SHELL, rest)
    elif name == "ENV":
        found["env"].update(_pairs(rest, line))
    elif name == "LABEL":
        found["labels"].update(_pairs(rest, line))
    elif name == "EXPOSE":
        found["exposed_ports"] += tuple(_port(word, line) for word in rest.split())
    elif name == "VOLUME":
        found["volumes"] += _exec_form(rest, line) or tuple(_words(rest, line))
    elif name in ("USER", "WORKDIR", "STOPSIGNAL"):
        field = {"USER": "user", "WORKDIR": "workdir", "STOPSIGNAL": "stop_signal"}[name]
        found[field] = rest
    else:
        msg = (
            f"no instruction for an image without a build: {line!r}; there are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, "
            "STOPSIGNAL, USER, VOLUME and WORKDIR"
        )
        raise ValueError(msg)


def _exec_form(text: str, line: str) -> tuple[str, ...]:
    """Return the words of a JSON list, nothing when it is none: then it is for the shell."""
    if not text.startswith("["):
        return ()
    try:
        words = json.loads(text)
    except ValueError:
        return ()
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        msg = f"not a list of texts: {line!r}"
        raise ValueError(msg)
    return tuple(words)


def _words(text: str, line: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        msg = f"a quote is open: {line!r}"
        raise ValueError(msg) from error


def _pairs(text: str, line: str) -> dict[str, str]:
    if "=" not in text.split(maxsplit=1)[0]:  # the old form: ENV NAME any text
        name, _, value = text.partition(" ")
        if not value.strip():
            msg = f"not NAME=VALUE: {line!r}"
            raise ValueError(msg)
        return {name: value.strip()}
    found = {}
    for word in _words(text, line):
        name, equals, value = word.partition("=")
        if not name or not equals:
            msg = f"not NAME=VALUE: {word!r} in {line!r}"
            raise ValueError(msg)
        found[name] = value
    return found


def _port(word: str, line: str) -> str:
    if not _PORT.fullmatch(word.lower()):
        msg = f"not a port: {word!r} in {line!r}; as in 80 or 53/udp"
        raise ValueError(msg)
    return word.lower() if "/" in word else f"{word}/tcp"
