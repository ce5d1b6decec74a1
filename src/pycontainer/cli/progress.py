"""How a transfer goes, for people: live bars on a terminal, a line for each change of state elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from pycontainer import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_ID_DIGITS = 12
_NAME_WIDTH = 24
_MOST_BARS = 8
_WORDS = {
    "waiting": "Waiting",
    "downloading": "Downloading",
    "uploading": "Pushing",
    "verifying": "Verifying",
    "applying": "Extracting",
    "saving": "Saving",
    "exists": "Already exists",
    "done": "Complete",
}
_ENDED = ("exists", "done")

Report = Callable[[Progress], object]


@contextmanager
def shown(*, quiet: bool, lines: TextIO | None = None) -> Iterator[Report | None]:
    """Give what a transfer is to call, for as long as it takes.

    Args:
        quiet: show nothing.
        lines: where the lines go when the standard error is no terminal; nowhere when not given.
    """
    if quiet or (lines is None and not os.isatty(2)):
        yield None
    elif not os.isatty(2):
        yield Lines(lines or sys.stderr)
    else:
        with live_bars(sys.stderr) as report:
            yield report


def short_name(name: str) -> str:
    """Return what a layer is called in a line.

    >>> short_name("sha256:0123456789abcdef"), short_name("/a/very/long/path/to/a/root.tar")
    ('0123456789ab', '…ng/path/to/a/root.tar')
    """
    algorithm, colon, digits = name.partition(":")
    if colon and algorithm.isalnum():
        return digits[:_ID_DIGITS]
    return name if len(name) < _NAME_WIDTH else "…" + name[2 - _NAME_WIDTH :]


class Lines:
    """Writes a line for each change of a layer's state.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told: dict[str, str] = {}

    def __call__(self, event: Progress) -> None:
        """Take an event."""
        if event.state == "image" or self._told.get(event.name) == event.state:
            return
        self._told[event.name] = event.state
        self._stream.write(f"{short_name(event.name)}: {_WORDS[event.state]}\n")
        self._stream.flush()


@contextmanager
def live_bars(stream: TextIO) -> Iterator[Report]:
    """Give what a transfer is to call; show one line for all and one for each layer that is under way.

    Args:
        stream: a terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    bars = RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(file=stream),
        transient=True,
    )
    with bars:
        yield _Bars(bars)


class _Bars:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._all = bars.add_task("", total=None)
        self._tasks: dict[str, TaskID] = {}
        self._states: dict[str, str] = {}

    def __call__(self, event: Progress) -> None:
        if event.state == "image":
            return
        self._states[event.name] = event.state
        ended = sum(state in _ENDED for state in self._states.values())
        self._bars.update(
            self._all,
            description=f"{ended} of {len(self._states)} layers",
            completed=event.total_done,
            total=event.total or None,
        )
        self._show(event)

    def _show(self, event: Progress) -> None:
        task = self._tasks.get(event.name)
        if event.state in ("waiting", *_ENDED):
            if task is not None:  # what is done is counted above: hundreds of layers do not fit on a terminal
                self._bars.remove_task(self._tasks.pop(event.name))
            return
        if task is None:
            if len(self._tasks) >= _MOST_BARS:
                return
            task = self._tasks[event.name] = self._bars.add_task("", total=None)
        self._bars.update(
            task,
            description=f"{short_name(event.name):{_ID_DIGITS}} {_WORDS[event.state]}",
            completed=event.done,
            total=event.size or None,
        )
