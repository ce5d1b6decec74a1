"""Id maps of user namespaces on mounts: layers owned by the host's ids, shown with those of the container.

See user_namespaces(7) and "Idmappings" in the kernel's filesystems documentation.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from pycontainer._ffi import lib
from pycontainer.errors import Unsupported
from pycontainer.runtime.process import Process
from pycontainer.runtime.program import Program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pycontainer.oci.runtime import IdMapping

__all__ = ["UserNamespaces", "map_text", "outside_id"]

_CLONE_NEWUSER = 0x10000000


def map_text(mappings: Sequence[IdMapping]) -> str:
    """Return mappings as /proc/PID/uid_map takes them.

    Raises:
        Unsupported: there are none.
    """
    if not mappings:
        msg = "a user namespace needs id mappings for users and groups"
        raise Unsupported(msg)
    return "".join(f"{m.container_id} {m.host_id} {m.size}\n" for m in mappings)


def outside_id(mappings: Sequence[IdMapping], inside: int) -> int:
    """Return the host's id for one of the container.

    Raises:
        Unsupported: it is not mapped.
    """
    for m in mappings:
        if m.container_id <= inside < m.container_id + m.size:
            return m.host_id + inside - m.container_id
    msg = f"the id mappings of the user namespace lack id {inside} of the container"
    raise Unsupported(msg)


class UserNamespaces:
    """User namespaces that exist only to carry their maps, one for each pair of maps; kept until closed."""

    def __init__(self) -> None:
        self._fds: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def get(self, uid_map: str, gid_map: str, keeper_socket: int) -> int:
        """Return the descriptor of a namespace with these maps; the keeper bears a process to make it.

        Raises:
            StartError: the kernel refuses the maps.
        """
        key = (uid_map, gid_map)
        with self._lock:
            if key not in self._fds:
                self._fds[key] = _make(uid_map, gid_map, keeper_socket)
            return self._fds[key]

    def close(self) -> None:
        """Close all; safe to call again."""
        with self._lock:
            while self._fds:
                os.close(self._fds.popitem()[1])


def _make(uid_map: str, gid_map: str, keeper_socket: int) -> int:
    program = Program()
    program.clone_flags = _CLONE_NEWUSER
    program.uid_map, program.gid_map = uid_map, gid_map
    program.step(lib.PYC_OP_SYNC, "wait", a=1)  # 0 is no place to wait at
    process = Process(program.pack(), keeper_socket)
    try:
        return os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        process.close()
