"""Run a command, write its words to a file, print its status, seconds and peak resident set in bytes as JSON.

Usage: ``python -I -S images_timer.py FILE COMMAND…``. It is small on purpose: until it executes another program, a
process counts what its parent had resident as its own.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Time the command."""
    out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    actions = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)]
    start = time.perf_counter()
    pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - start
    result = {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "processor": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss * 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
