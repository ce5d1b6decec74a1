"""The programs in ``examples/`` do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pycontainer import Engine, ExitError, TimeoutExpired
from tests import rootfs

PROJECT = Path(__file__).parent.parent.parent
EXAMPLES = PROJECT / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="only the tests are on this machine, not the examples")


def test_untrusted_code_gives_its_result(stocked: Engine) -> None:
    from examples.untrusted_python import MEAN, run_untrusted

    assert run_untrusted(stocked, "debian:test", MEAN, [1, 2, 3]) == {"mean": 2, "spread": 1.0}


def test_untrusted_code_gets_nowhere(stocked: Engine) -> None:
    from examples.untrusted_python import MISCHIEF, run_untrusted

    for code in MISCHIEF.values():
        with pytest.raises((ExitError, TimeoutExpired)):
            run_untrusted(stocked, "debian:test", code, timeout=1)


def test_the_demo_shows_the_isolation(tmp_path: Path) -> None:
    try:
        rootfs.debian_tar()
    except rootfs.CannotBuild as reason:
        pytest.skip(str(reason))
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", tmp_path / "store"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "Namespaces of its own: mnt pid net ipc uts cgroup" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
