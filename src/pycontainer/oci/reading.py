"""Read JSON documents from strangers: size, nesting and the type of every field are checked before they are used."""

from __future__ import annotations

import json
import re
from typing import Any

from pycontainer.errors import ImageError

__all__ = ["MAX_DOCUMENT", "Reader", "parse_json"]

MAX_DOCUMENT = 4 * 1024 * 1024  # what registries allow for a manifest
_MAX_DEPTH = 64


def parse_json(data: bytes, what: str, *, limit: int = MAX_DOCUMENT) -> Any:  # noqa: ANN401 - JSON has no static type
    """Return the value of a JSON text from a stranger.

    Args:
        data: the text.
        what: what it is, for the message.
        limit: bytes allowed.

    Raises:
        ImageError: it is too large, nested too deep, or not JSON in UTF-8.
    """
    if len(data) > limit:
        msg = f"{what} has {len(data)} bytes, at most {limit} are accepted"
        raise ImageError(msg)
    _check_depth(data, what)
    try:
        return json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        msg = f"{what} is not valid JSON: {error}"
        raise ImageError(msg) from None


# Possessive, and a string without its end matches too: linear in time for whatever is sent.
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def _check_depth(data: bytes, what: str) -> None:
    # Before the parser sees it: json recurses in C, and where it stops depends on the thread's stack.
    depth = 0
    for match in _BRACKETS.finditer(data):
        kind = match[0][:1]
        if kind in b"[{":
            depth += 1
            if depth > _MAX_DEPTH:
                msg = f"{what} is nested deeper than {_MAX_DEPTH} levels"
                raise ImageError(msg)
        elif kind != b'"':
            depth -= 1


def _no_constant(text: str) -> float:
    msg = f"{text} is not JSON"
    raise ValueError(msg)


class Reader:
    """An object of a document, read field by field with every type checked; what is wrong is an :class:`ImageError`.

    Args:
        value: the object.
        what: what it is, for messages.
    """

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            msg = f"{what} should be an object, it is {_kind(value)}"
            raise ImageError(msg)
        self.value: dict[str, Any] = value
        self.what = what

    def _get(self, key: str, kind: type | tuple[type, ...], name: str) -> Any:  # noqa: ANN401 - JSON has no static type
        value = self.value.get(key)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            msg = f"{self.what}: {key!r} should be {name}, it is {_kind(value)}"
            raise ImageError(msg)
        return value

    def text(self, key: str) -> str:
        """Return a string, empty when the field is absent or null."""
        value: str = self._get(key, str, "a string") or ""
        _check_text(value, f"{self.what}: {key!r}")
        return value

    def whole(self, key: str) -> int | None:
        """Return a whole number, None when the field is absent or null."""
        value: int | None = self._get(key, int, "a whole number")
        return value

    def flag(self, key: str) -> bool:
        """Return a truth value, False when the field is absent or null."""
        return bool(self._get(key, bool, "true or false"))

    def array(self, key: str, limit: int) -> list[Any] | None:
        """Return an array of at most so many items, None when the field is absent or null."""
        value: list[Any] | None = self._get(key, list, "an array")
        if value is not None and len(value) > limit:
            msg = f"{self.what}: {key!r} has {len(value)} items, at most {limit} are accepted"
            raise ImageError(msg)
        return value

    def strings(self, key: str) -> tuple[str, ...] | None:
        """Return an array of strings, None when the field is absent or null."""
        value = self.array(key, 65536)
        if value is None:
            return None
        for item in value:
            if not isinstance(item, str):
                msg = f"{self.what}: {key!r} should hold strings, it holds {_kind(item)}"
                raise ImageError(msg)
            _check_text(item, f"{self.what}: {key!r}")
        return tuple(value)

    def child(self, key: str) -> Reader | None:
        """Return an object, None when the field is absent or null."""
        value = self._get(key, dict, "an object")
        return None if value is None else Reader(value, f"{self.what}: {key!r}")

    def keys(self, key: str) -> tuple[str, ...]:
        """Return the names of an object's fields, none when it is absent or null."""
        value: dict[str, object] = self._get(key, dict, "an object") or {}
        for name in value:
            _check_text(name, f"{self.what}: {key!r}")
        return tuple(value)

    def string_map(self, key: str) -> dict[str, str]:
        """Return an object whose values are strings, empty when it is absent or null."""
        value: dict[str, Any] = self._get(key, dict, "an object") or {}
        for name, item in value.items():
            if not isinstance(item, str):
                msg = f"{self.what}: {key!r}: {name!r} should be a string, it is {_kind(item)}"
                raise ImageError(msg)
            _check_text(item, f"{self.what}: {key!r}: {name!r}")
        return dict(value)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _check_text(value: str, what: str) -> None:
    """Refuse what execve(2), paths and SQLite cannot carry: null characters and lone surrogates."""
    if "\0" in value:
        msg = f"{what} holds a null character"
        raise ImageError(msg)
    try:
        value.encode()
    except UnicodeEncodeError:
        msg = f"{what} holds a lone surrogate, which no UTF-8 text has"
        raise ImageError(msg) from None
