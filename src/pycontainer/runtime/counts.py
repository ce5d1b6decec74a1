"""What the control group of a container has counted: its files, read in one call, and the numbers in them.

See cgroups(7) and the kernel's admin-guide/cgroup-v{1,2}.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from pycontainer._ffi import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Counters", "Counts"]

_ROOM = 16384
_V1 = (
    ("cpuacct", "cpuacct.usage_user"),
    ("cpuacct", "cpuacct.usage_sys"),
    ("memory", "memory.max_usage_in_bytes"),
    ("memory", "memory.oom_control"),
    ("pids", "pids.peak"),
)
_V1_BLOCKS = ("blkio", "blkio.throttle.io_service_bytes_recursive")
_V2 = (
    ("cpu", "cpu.stat"),
    ("memory", "memory.peak"),
    ("memory", "memory.events"),
    ("io", "io.stat"),
    ("pids", "pids.peak"),
)
# An older kernel, no group was needed there; or it was removed while we read.
_NOT_THERE = (errno.ENOENT, errno.ENODEV)


class Counters(NamedTuple):
    """What a group counted; ``None`` where the host has no such count.

    Attributes:
        cpu_user_us: microseconds in programs.
        cpu_system_us: microseconds in the kernel.
        peak_memory: bytes.
        block_read: bytes.
        block_written: bytes.
        peak_pids: processes and threads.
        oom_kills: processes killed at the memory limit.
    """

    cpu_user_us: int | None = None
    cpu_system_us: int | None = None
    peak_memory: int | None = None
    block_read: int | None = None
    block_written: int | None = None
    peak_pids: int | None = None
    oom_kills: int = 0


class Counts:
    """Reads the counters of groups.

    Args:
        version: ``"v1"``, ``"v2"``, or ``"none"``, where nothing is counted.
        parents: descriptors of the groups' parents, by controller.
        blocks: whether version 1 counts what is read from and written to disks.
    """

    def __init__(self, version: str, parents: Mapping[str, int], *, blocks: bool) -> None:
        files = _V2 if version == "v2" else (*_V1, _V1_BLOCKS) if blocks else _V1
        found = [(parents[controller], file) for controller, file in files if controller in parents]
        self._files = tuple(file for _, file in found)
        self._parents = ffi.new("int32_t[]", [fd for fd, _ in found])

    def read(self, group: str) -> Counters:
        """Return what a group counted so far.

        Raises:
            OSError: a file cannot be read.
        """
        texts = self._texts(group)
        user, system = _number(texts, "cpuacct.usage_user"), _number(texts, "cpuacct.usage_sys")
        if "cpu.stat" in texts:
            cpu = texts["cpu.stat"]
            user, system = _sum_lines(cpu, "user_usec") * 1000, _sum_lines(cpu, "system_usec") * 1000
        read = written = None
        if "io.stat" in texts:
            read, written = _sum_pairs(texts["io.stat"], "rbytes"), _sum_pairs(texts["io.stat"], "wbytes")
        elif _V1_BLOCKS[1] in texts:
            read, written = _sum_lines(texts[_V1_BLOCKS[1]], "Read"), _sum_lines(texts[_V1_BLOCKS[1]], "Write")
        peak = _number(texts, "memory.max_usage_in_bytes")
        return Counters(
            cpu_user_us=None if user is None else user // 1000,
            cpu_system_us=None if user is None else (system or 0) // 1000,
            peak_memory=_number(texts, "memory.peak") if peak is None else peak,
            block_read=read,
            block_written=written,
            peak_pids=_number(texts, "pids.peak"),
            oom_kills=_sum_lines(texts.get("memory.oom_control", texts.get("memory.events", "")), "oom_kill"),
        )

    def _texts(self, group: str) -> dict[str, str]:
        """Return the text of each file that is there."""
        names = b"".join(f"{group}/{file}\0".encode() for file in self._files)
        count, room = len(self._files), _ROOM
        sizes = ffi.new("int32_t[]", count)
        while True:
            data = ffi.new("char[]", room)
            lib.pyc_read_files(self._parents, names, count, data, room, sizes)
            if sum(size for size in sizes if size > 0) < room:
                break
            room *= 4  # a host with very many disks
        texts, at = {}, 0
        for file, size in zip(self._files, sizes, strict=True):
            if size >= 0:
                texts[file] = ffi.buffer(data + at, size)[:].decode()
                at += size
            elif -size not in _NOT_THERE:
                raise OSError(-size, os.strerror(-size), f"{group}/{file}")
        return texts


def _number(texts: Mapping[str, str], file: str) -> int | None:
    text = texts.get(file)
    return int(text) if text else None


def _sum_lines(text: str, key: str) -> int:
    """Add up the last words of the lines in which ``key`` is a word."""
    return sum(int(words[-1]) for words in map(str.split, text.splitlines()) if key in words[:-1])


def _sum_pairs(text: str, key: str) -> int:
    """Add up the values of ``key=value`` words."""
    return sum(int(word.partition("=")[2]) for word in text.split() if word.startswith(f"{key}="))
