"""The documents of the Open Container Initiative, as typed values: images and container configurations."""

from __future__ import annotations

__all__: list[str] = []
