"""The part of Go's text/template that people write after ``--format``.

``{{.Field}}``, ``{{.A.B}}``, ``{{json .}}``, the functions ``json join lower upper title len index println``, pipes
(``{{.Names | json}}``), the trim markers ``{{-`` and ``-}}``, and docker's ``table`` in front.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

_ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
_WORD = re.compile(
    r"""\s*(?:(?P<pipe>\|)|(?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)(?![\w.])|(?P<field>\.[\w.-]*)"""
    r"""|(?P<name>[A-Za-z]\w*))(?=[\s|]|$)"""
)
_FIELD = re.compile(r"\.|(\.[\w-]+)+")


class TemplateError(ValueError):
    """The text is not a template of this kind, or asks for what is not there."""


def _go(value: object) -> str:
    """Return a value as Go's fmt prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{_go(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + " ".join(map(_go, value)) + "]"
    return str(value)


def to_json(value: object) -> str:
    """Return a value as docker prints JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _index(value: Any, *keys: Any) -> Any:  # noqa: ANN401
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            msg = f"index: there is no {key!r} in {_go(value)}"
            raise TemplateError(msg) from error
    return value


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "index": _index,
    "join": lambda values, separator: separator.join(map(_go, values)),
    "json": to_json,
    "len": len,
    "lower": lambda value: _go(value).lower(),
    "println": lambda *values: " ".join(map(_go, values)) + "\n",
    "title": lambda value: _go(value).title(),
    "upper": lambda value: _go(value).upper(),
}


def _field(path: str, data: object) -> object:
    for name in filter(None, path.split(".")):
        if not isinstance(data, Mapping):
            msg = f"there is no {path}: {name!r} is asked of {_go(data)}"
            raise TemplateError(msg)
        if name not in data:
            msg = f"there is no {path}; the fields there are {', '.join(map(str, data)) or 'none'}"
            raise TemplateError(msg)
        data = data[name]
    return data


@attrs.frozen
class _Call:
    """One part of a pipeline: a function or a value, and what follows it."""

    words: tuple[tuple[str, Any], ...]

    def value(self, data: object, *piped: object) -> object:
        def resolve(word: tuple[str, Any]) -> object:
            kind, content = word
            return _field(content, data) if kind == "field" else content

        kind, first = self.words[0]
        arguments = [*map(resolve, self.words[1:]), *piped]
        if kind != "name":
            return resolve(self.words[0])
        try:
            return _FUNCTIONS[first](*arguments)
        except TypeError as error:
            msg = f"{first} cannot be used like this: {' '.join([first, *map(_go, arguments)])}"
            raise TemplateError(msg) from error


class Template:
    r"""A text with actions in double braces.

    Args:
        text: the template; ``\t`` and ``\n`` mean what they mean in Go.

    >>> Template("{{.A}}: {{json .B}}").render({"A": 1, "B": ["x"]})
    '1: ["x"]'
    """

    def __init__(self, text: str) -> None:
        text = text.replace("\\t", "\t").replace("\\n", "\n")
        self._parts: list[str | tuple[_Call, ...]] = []
        end, trim = 0, False
        for match in _ACTION.finditer(text):
            self._literal(text[end : match.start()], left=trim, right=match[1] is not None)
            self._parts.append(_pipeline(match[2]))
            end, trim = match.end(), match[3] is not None
        self._literal(text[end:], left=trim, right=False)

    def _literal(self, text: str, *, left: bool, right: bool) -> None:
        if "{{" in text:
            msg = f"a brace is open: {text!r}"
            raise TemplateError(msg)
        text = text.lstrip() if left else text
        self._parts.append(text.rstrip() if right else text)

    @property
    def fields(self) -> list[str]:
        """The paths of the fields, one for each action that has one, for the head of a table."""
        found = []
        for part in self._parts:
            if not isinstance(part, str):
                paths = [content for call in part for kind, content in call.words if kind == "field"]
                found.append(paths[0] if paths else "")
        return found

    def render(self, data: object) -> str:
        """Return the text for some data.

        Raises:
            TemplateError: a field is not there.
        """
        return "".join(part if isinstance(part, str) else _go(_evaluate(part, data)) for part in self._parts)

    def head(self, titles: Mapping[str, str]) -> str:
        """Return the text with a title in the place of each field."""
        fields = iter(self.fields)
        text = []
        for part in self._parts:
            if isinstance(part, str):
                text.append(part)
            else:
                name = next(fields).strip(".")
                text.append(titles.get(name, name.upper()))
        return "".join(text)


def _evaluate(calls: tuple[_Call, ...], data: object) -> object:
    value = calls[0].value(data)
    for call in calls[1:]:
        value = call.value(data, value)
    return value


def _pipeline(text: str) -> tuple[_Call, ...]:
    calls: list[list[tuple[str, Any]]] = [[]]
    place = 0
    stripped = text.rstrip()
    while place < len(stripped):
        match = _WORD.match(stripped, place)
        if match is None:
            msg = f"cannot read {text.strip()!r} in the format; there are {{{{.Field}}}} and {', '.join(_FUNCTIONS)}"
            raise TemplateError(msg)
        place = match.end()
        kind = str(match.lastgroup)
        if kind == "pipe":
            calls.append([])
        else:
            calls[-1].append((kind, _word(kind, match[kind])))
    for number, call in enumerate(calls):
        if not call or (number > 0 and call[0][0] != "name") or (call[0][0] != "name" and len(call) > 1):
            msg = f"cannot read {text.strip()!r} in the format: a function is missing"
            raise TemplateError(msg)
    return tuple(_Call(tuple(call)) for call in calls)


def _word(kind: str, text: str) -> object:
    if kind == "number":
        return int(text)
    if kind == "text":
        try:
            return text[1:-1] if text.startswith("`") else json.loads(text)
        except ValueError as error:
            msg = f"not a string: {text}"
            raise TemplateError(msg) from error
    if kind == "field" and not _FIELD.fullmatch(text):
        msg = f"not a field: {text!r}"
        raise TemplateError(msg)
    if kind == "name" and text not in _FUNCTIONS:
        msg = f"there is no function {text!r}; there are {', '.join(_FUNCTIONS)}"
        raise TemplateError(msg)
    return text
