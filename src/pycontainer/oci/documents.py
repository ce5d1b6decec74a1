"""Frozen attrs classes read from and written to JSON, driven by their annotations.

A class, derived from :class:`Document`, describes one object of a document. Its annotations say all there is to say:

- ``str``, ``bool``, ``int``, ``Literal["a", "b"]``, ``Annotated[int, Bounds(...)]``, ``Annotated[str, Matches(...)]``;
- ``tuple[X, ...]`` is an array, ``Mapping[str, X]`` an object with free names, another attrs class an object;
- a field without a default, or with the metadata ``REQUIRED``, is required; every other may be absent.

The JSON name is the attribute's in camelCase (``no_new_privileges`` -> ``noNewPrivileges``) unless its metadata is of
:func:`named`. An absent value is the field's default; makers written in Go do not tell ``null`` and ``""`` from absent,
so neither do optional fields here. When written, what is ``None``, false or empty is left out.

Nothing is coerced: ``1.0`` and ``true`` are not integers. Text that the kernel would cut or that has no UTF-8 form is
refused.
"""

from __future__ import annotations

import functools
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, TypeVar, cast

import attrs

from pycontainer.records import Record, fields_of

__all__ = [
    "REQUIRED",
    "Bounds",
    "Document",
    "Int32",
    "Int64",
    "Matches",
    "Misfit",
    "UInt16",
    "UInt32",
    "UInt64",
    "json_name",
    "load",
    "named",
    "read",
    "write",
]

T = TypeVar("T")

_Reader: TypeAlias = Callable[[Any, bool], Any]
_NAME = "json name"
_REQUIRED = "required in documents"

REQUIRED: Mapping[str, bool] = {_REQUIRED: True}
"""Metadata of a field that has a default for those who construct, and must be in a document all the same."""


class Misfit(Exception):
    """A document is not what its class describes.

    Attributes:
        reason: what is wrong, without the place.
        unknown: it is a property that the class does not have, rather than a wrong value.
    """

    def __init__(self, reason: str, *, unknown: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unknown = unknown
        self._steps: list[str] = []

    def under(self, step: str) -> None:
        """Note one step of the way to the place, innermost first."""
        self._steps.append(step)

    @property
    def path(self) -> str:
        """Where: ``linux.devices[2].type``; empty for the document itself."""
        return "".join(reversed(self._steps)).removeprefix(".")

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class Document(Record):
    """Base of the objects of documents: ``@attrs.frozen(kw_only=True, eq=False, repr=False)``."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return how to make it, with what differs from the defaults."""
        values = ((field, getattr(self, field.name)) for field in fields_of(self.__class__))
        shown = ", ".join(f"{field.name}={value!r}" for field, value in values if value != _default(field))
        return f"{self.__class__.__name__}({shown})"


def _default(field: attrs.Attribute[Any]) -> object:
    factory = getattr(field.default, "factory", None)
    return field.default if factory is None else factory()


@attrs.frozen(eq=False, repr=False)
class Bounds:
    """Inclusive limits of an integer, for ``Annotated``."""

    low: int
    high: int


@attrs.frozen(eq=False, repr=False)
class Matches:
    """A pattern that the whole text must match, for ``Annotated``.

    Attributes:
        pattern: a regular expression.
        meaning: what such a text is, for the message: ``"a list such as '0-3,5'"``.
    """

    pattern: str
    meaning: str


Int32: TypeAlias = Annotated[int, Bounds(-(2**31), 2**31 - 1)]
Int64: TypeAlias = Annotated[int, Bounds(-(2**63), 2**63 - 1)]
UInt16: TypeAlias = Annotated[int, Bounds(0, 2**16 - 1)]
UInt32: TypeAlias = Annotated[int, Bounds(0, 2**32 - 1)]
UInt64: TypeAlias = Annotated[int, Bounds(0, 2**64 - 1)]


def named(name: str) -> dict[str, str]:
    """Return field metadata that sets the JSON name, for those that camelCase does not give (``hostID``)."""
    return {_NAME: name}


def json_name(field: attrs.Attribute[Any]) -> str:
    """Return what a field is called in JSON."""
    name: str | None = field.metadata.get(_NAME)
    if name is None:
        first, *rest = field.name.split("_")
        name = first + "".join(word.capitalize() for word in rest)
    return name


# ── text to plain values ──────────────────────────────────────────────────────────────────────────────────────────────


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _value in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Misfit(f"the property {twice!r} is there twice in one object")
    return result


def _no_constant(text: str) -> NoReturn:
    raise Misfit(f"{text} is not JSON")


def load(document: bytes | str) -> object:
    """Return the plain values of a JSON text, refusing what readers of JSON disagree about.

    Args:
        document: the text; bytes are UTF-8.

    Raises:
        Misfit: it is not JSON (RFC 8259) or has the same name twice in one object.
    """
    try:
        text = document if isinstance(document, str) else bytes(document).decode()
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Misfit(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise Misfit("nested too deeply") from error
    except ValueError as error:
        raise Misfit(f"not JSON: {error}") from error


# ── plain values to objects ───────────────────────────────────────────────────────────────────────────────────────────


def _kind(value: object) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "a boolean"), (int, "an integer"), (float, "a number with a fraction"), (str, "text")):
        if isinstance(value, kind):
            return name
    if isinstance(value, Mapping):
        return "an object"
    return "an array" if isinstance(value, list | tuple) else type(value).__name__


def _text(value: object, _ignore_unknown: bool) -> str:  # noqa: FBT001 - the one signature of readers
    if not isinstance(value, str):
        raise Misfit(f"should be text, is {_kind(value)}")
    if "\0" in value:
        raise Misfit(f"has a zero byte, where the kernel would cut it: {value!r}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Misfit(f"has half a surrogate pair, which is no character: {value!r}") from None
    return value


def _integer(value: object, _ignore_unknown: bool) -> int:  # noqa: FBT001
    if not isinstance(value, int) or isinstance(value, bool):
        raise Misfit(f"should be an integer, is {_kind(value)}")
    return value


def _boolean(value: object, _ignore_unknown: bool) -> bool:  # noqa: FBT001
    if not isinstance(value, bool):
        raise Misfit(f"should be a boolean, is {_kind(value)}")
    return value


def _one_of(choices: tuple[str, ...]) -> _Reader:
    known = frozenset(choices)

    def read_choice(value: object, _ignore_unknown: bool) -> object:  # noqa: FBT001
        if not isinstance(value, str):
            raise Misfit(f"should be text, is {_kind(value)}")
        if value not in known:
            raise Misfit(f"is {value!r}, which is none of {', '.join(choices)}")
        return value

    return read_choice


def _array(item: _Reader) -> _Reader:
    def read_array(value: object, ignore_unknown: bool) -> object:  # noqa: FBT001
        if not isinstance(value, list | tuple):
            raise Misfit(f"should be an array, is {_kind(value)}")
        result: list[Any] = []
        try:
            for entry in value:
                result.append(item(entry, ignore_unknown))  # noqa: PERF401 - its length is the index of what failed
        except Misfit as misfit:
            misfit.under(f"[{len(result)}]")
            raise
        return tuple(result)

    return read_array


def _mapping(key: _Reader, item: _Reader) -> _Reader:
    def read_mapping(value: object, ignore_unknown: bool) -> object:  # noqa: FBT001
        if not isinstance(value, Mapping):
            raise Misfit(f"should be an object, is {_kind(value)}")
        result: dict[str, Any] = {}
        for name, entry in value.items():
            try:
                result[key(name, ignore_unknown)] = item(entry, ignore_unknown)
            except Misfit as misfit:
                misfit.under(f'["{name}"]')
                raise
        return result

    return read_mapping


def _optional(reader: _Reader) -> _Reader:
    def read_optional(value: object, ignore_unknown: bool) -> object:  # noqa: FBT001
        return None if value == "" else reader(value, ignore_unknown)

    return read_optional


def _constrained(reader: _Reader, constraint: object) -> _Reader:
    if isinstance(constraint, Bounds):
        low, high = constraint.low, constraint.high

        def read_bounded(value: object, ignore_unknown: bool) -> object:  # noqa: FBT001
            if not low <= reader(value, ignore_unknown) <= high:
                raise Misfit(f"is {value}, outside {low} to {high}")
            return value

        return read_bounded
    if isinstance(constraint, Matches):
        pattern, meaning = re.compile(constraint.pattern), constraint.meaning

        def read_matching(value: object, ignore_unknown: bool) -> object:  # noqa: FBT001
            if pattern.fullmatch(reader(value, ignore_unknown)) is None:
                raise Misfit(f"is {value!r}, not {meaning}")
            return value

        return read_matching
    raise TypeError(f"documents do not know the constraint {constraint!r}")


_SIMPLE: dict[object, _Reader] = {str: _text, int: _integer, bool: _boolean}


def _reader(hint: object) -> _Reader:
    """Return the function that reads values of an annotation."""
    if isinstance(hint, type) and attrs.has(hint):
        return functools.partial(_object, hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        reader = functools.reduce(_constrained, arguments[1:], _reader(arguments[0]))
    elif origin in (types.UnionType, typing.Union):
        (kind,) = (argument for argument in arguments if argument is not type(None))
        reader = _optional(_reader(kind))
    elif origin is Literal:
        reader = _one_of(arguments)
    elif origin is tuple:
        reader = _array(_reader(arguments[0]))
    elif origin is Mapping:
        reader = _mapping(_reader(arguments[0]), _reader(arguments[1]))
    elif hint in _SIMPLE:
        reader = _SIMPLE[hint]
    else:
        raise TypeError(f"documents do not know the annotation {hint!r}")
    return reader


@attrs.frozen(eq=False, repr=False)
class _Field:
    attribute: str
    name: str
    required: bool
    default: object
    read: _Reader


@functools.cache
def _fields(cls: type[Any]) -> dict[str, _Field]:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = (
        _Field(
            attribute=field.name,
            name=json_name(field),
            required=field.default is attrs.NOTHING or _REQUIRED in field.metadata,
            default=field.default,
            read=_reader(hints[field.name]),
        )
        for field in attrs.fields(cls)
    )
    return {field.name: field for field in fields}


def _unknown(_value: object, ignore_unknown: bool) -> None:  # noqa: FBT001
    if not ignore_unknown:
        raise Misfit("is not a property that is known here", unknown=True)


def _object(cls: Callable[..., T], value: object, ignore_unknown: bool) -> T:  # noqa: FBT001
    if not isinstance(value, Mapping):
        raise Misfit(f"should be an object, is {_kind(value)}")
    fields = _fields(cast("type[Any]", cls))  # type: ignore[arg-type] # mypy: classes of Any are not hashable
    arguments: dict[str, Any] = {}
    for name, entry in value.items():
        field = fields.get(name)
        try:
            if field is None:
                _unknown(entry, ignore_unknown)
            elif entry is not None or field.required:
                arguments[field.attribute] = field.read(entry, ignore_unknown)
        except Misfit as misfit:
            misfit.under(f".{name}")
            raise
    for field in fields.values():
        if field.required and field.attribute not in arguments:
            missing = Misfit("is missing")
            missing.under(f".{field.name}")
            raise missing
    return cls(**arguments)


def read(cls: type[T], document: object, *, ignore_unknown: bool = False) -> T:
    """Return an object made of plain values.

    Args:
        cls: the attrs class of the document.
        document: what :func:`load` returned.
        ignore_unknown: drop properties that the classes do not have, instead of refusing them.

    Raises:
        Misfit: a value has the wrong type or range, a required one is missing, a property is not known.
    """
    return _object(cls, document, ignore_unknown)


# ── objects to plain values ───────────────────────────────────────────────────────────────────────────────────────────


def _plain(value: object) -> object:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return write(cast("attrs.AttrsInstance", value))


def write(value: attrs.AttrsInstance) -> dict[str, Any]:
    """Return an object's plain values, ready for ``json.dumps``; what is ``None``, false or empty is left out.

    Numbers and text are written also where they are the default: other readers may have other defaults.
    """
    result: dict[str, Any] = {}
    for field in _fields(type(value)).values():
        entry = getattr(value, field.attribute)
        if field.required or entry or type(entry) is int:
            plain = _plain(entry)
            if field.required or plain != {} or entry != field.default:
                result[field.name] = plain
    return result
