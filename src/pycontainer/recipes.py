"""Remembered starts: a program runs the same command of the same image again and again, and only ids differ.

What is asked of a container is compiled to a program of steps once. The next start with the same wishes takes that
program and puts its own id, and the host name made of it, in the place of the first one's.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any

import attrs

from pycontainer.model import Limits
from pycontainer.runtime import plan

__all__ = ["Recipes", "recipe_key"]

_MOST = 256
_SHORT = 12  # digits of an id that make a host name

_FROZEN = (str, int, bool, tuple, Limits, type(None))
# With these a start depends on what the host is like at that moment, not on the wishes alone.
_CHANGING = ("privileged", "devices", "userns", "tty")


def recipe_key(wishes: Mapping[str, Any], *more: Hashable) -> Hashable | None:
    """Return what tells one set of wishes from another; None when they must be compiled anew each time."""
    if wishes["network"] == "host" or any(wishes[name] for name in _CHANGING):
        return None
    key = (*more, *map(_freeze, wishes.values()))
    try:
        hash(key)
    except TypeError:  # something of a type that the checks of the options will refuse, or of the caller's own
        return None
    return key


def _freeze(value: object) -> object:
    if value.__class__ in _FROZEN:
        return value
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Mapping):
        return tuple(value.items())
    return value


class Recipes:
    """Compiled starts by their wishes; safe to use from several threads."""

    def __init__(self) -> None:
        self._known: dict[Hashable, plan.Start] = {}

    def put(self, key: Hashable, start: plan.Start) -> None:
        """Compile a start and remember it."""
        start.packed = plan.build(start).pack()
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = start

    def get(self, key: Hashable) -> plan.Start | None:
        """Return a start of a new container by a remembered one, or None."""
        known = self._known.get(key)
        if known is None or known.packed is None:
            return None
        old, new = known.container_id, os.urandom(32).hex()
        packed = known.packed.replace(old, new).replace(old[:_SHORT], new[:_SHORT])
        return attrs.evolve(known, container_id=new, cgroup=new, packed=packed)
