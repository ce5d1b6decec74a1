"""Count the bytes of a transfer and tell a callback, not too often."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from pycontainer.progress import Progress

if TYPE_CHECKING:
    from pycontainer.progress import ProgressState

__all__ = ["Meter", "Report"]

Report = Callable[[Progress], object]
_PERIOD = 0.05  # seconds between two events of a layer whose state stays


@attrs.define
class _Item:
    state: ProgressState = "waiting"
    done: int = 0
    size: int = 0
    told: float = 0.0


class Meter:
    """The progress of one transfer; thread-safe.

    Args:
        report: is called with each event, one at a time; what it raises ends the transfer.
    """

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._items: dict[str, _Item] = {}
        self._lock = threading.RLock()
        self._began = time.monotonic()

    def expect(self, name: str, size: int | None) -> None:
        """Announce a layer, and its size if that is known."""
        with self._lock:
            self._items[name] = _Item(size=size or 0)
            self._tell(name)

    def change(self, name: str, state: ProgressState, size: int | None = None) -> None:
        """Set the state of a layer; ``exists`` and ``done`` are its last.

        Args:
            name: as it was announced.
            state: the new one.
            size: of its blob, when it is known only now.
        """
        with self._lock:
            item = self._items.setdefault(name, _Item())
            item.state = state
            item.size = item.size if size is None else size
            if state in ("exists", "done"):
                item.done = item.size = max(item.size, item.done)
            self._tell(name)

    def advance(self, name: str, count: int) -> None:
        """Count bytes that have passed."""
        with self._lock:
            item = self._items[name]
            item.done += count
            if time.monotonic() - item.told >= _PERIOD:
                self._tell(name)

    def end(self, identity: str, size: int) -> None:
        """Tell that the image is there.

        Args:
            identity: its id.
            size: bytes of its layers, unpacked.
        """
        with self._lock:
            self._items[""] = _Item("image", size, size)
            self._tell("", identity)

    def _tell(self, name: str, shown: str | None = None) -> None:
        if self._report is None:
            return
        item = self._items[name]
        item.told = time.monotonic()
        layers = [other for key, other in self._items.items() if key]
        self._report(
            Progress(
                state=item.state,
                name=name if shown is None else shown,
                done=item.done,
                size=item.size,
                total_done=sum(other.done for other in layers),
                total=sum(max(other.size, other.done) for other in layers),
                seconds=item.told - self._began,
                moved=sum(other.done for other in layers if other.state != "exists"),
            )
        )
