"""Equality, hash and text of attrs classes, written once: attrs compiles them anew for each class that asks for them.

For the classes of this library that was half the time of importing it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import attrs

__all__ = ["Record", "fields_of"]


class Record:
    """Base of frozen classes that are equal when their fields are: ``@attrs.frozen(eq=False, repr=False)``.

    Records have the equality, hash and text that attrs would give them.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return bool(_values(self) == _values(other))

    def __hash__(self) -> int:
        return hash((self.__class__, _values(self)))

    def __repr__(self) -> str:
        shown = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields_of(self.__class__))
        return f"{self.__class__.__qualname__}({shown})"


def fields_of(cls: type[Any]) -> tuple[attrs.Attribute[Any], ...]:
    """Return the fields of an attrs class."""
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(cls)
    return fields


_getters: dict[type[Any], Callable[[object], object]] = {}


def _values(record: Record) -> object:
    """Return the values of the fields, a tuple unless there is only one."""
    cls = record.__class__
    getter = _getters.get(cls)
    if getter is None:
        getter = _getters[cls] = attrgetter(*(field.name for field in fields_of(cls)))
    return getter(record)
