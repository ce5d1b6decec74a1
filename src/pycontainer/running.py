"""A container while it runs, in the hands of the caller of ``run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycontainer.runtime.process import Process

__all__ = ["Running"]

_SIGKILL = 9


class Running:
    """A container that runs right now, as :meth:`pycontainer.Engine.run` hands it to ``on_start``."""

    def __init__(self, container_id: str, process: Process) -> None:
        self.container_id = container_id
        self._process = process

    @property
    def pid(self) -> int:
        """The number of its first process in the caller's pid namespace."""
        return self._process.pid

    def kill(self, signal: int = _SIGKILL) -> None:
        """Send a signal to its first process; nothing happens when that has ended."""
        self._process.kill(signal)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal how large the window is; nothing happens without one."""
        self._process.resize(rows, columns)
