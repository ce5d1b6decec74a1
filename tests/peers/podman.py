"""Podman with stores, control groups and a mount namespace of its own: it runs on any host and leaves nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

__all__ = ["Podman"]

CGROUPS = Path("/sys/fs/cgroup")
CONFIG = """\
[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
"""
# crun refuses hybrid cgroups: it gets the hierarchies of version 1 alone, in a mount namespace that goes with it.
WITHOUT_UNIFIED = """
if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
exec "$@"
"""


class Podman:
    """A podman for tests.

    Args:
        base: directory for everything; short, for podman refuses paths of over 50 characters.
        runtime: ``crun`` or ``runc``.
        driver: of its store.
    """

    def __init__(self, base: Path, runtime: str, driver: str = "overlay") -> None:
        for program in ("podman", "conmon", runtime):
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed")
        self.base = base
        self._group = f"pyc-podman-{os.getpid()}"
        self._config = base / "containers.conf"
        self._config.write_text(CONFIG)
        options = [
            f"--root={base}/store",
            f"--runroot={base}/run",
            f"--runtime={runtime}",
            f"--storage-driver={driver}",
        ]
        view = ["unshare", "--mount", "--propagation=private", "sh", "-c", WITHOUT_UNIFIED, "sh"]
        self._start = [*view, "podman", *options]

    def __call__(self, command: str, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
        """Run a command of it; what makes containers gets what fits any host."""
        if command in ("run", "create"):
            words = ("--network=none", "--ulimit=host", f"--cgroup-parent=/{self._group}", *words)
        return subprocess.run(
            [*self._start, command, *map(str, words)],
            env={**os.environ, "CONTAINERS_CONF": str(self._config)},
            capture_output=True,
            check=False,
            timeout=100,
        )

    def close(self) -> None:
        """Remove its control groups, where the monitors of its containers may take a moment to end."""
        deadline = time.monotonic() + 5
        for top in (*CGROUPS.glob(f"*/{self._group}"), *CGROUPS.glob(self._group)):
            for path in (*sorted(top.rglob("*/"), reverse=True), top):
                while path.exists():
                    try:
                        path.rmdir()
                    except OSError:
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(0.05)
