"""The kernel tests once more in a virtual machine: pure cgroup v2 with real controllers, and an older kernel.

``lane.sh`` makes and boots the machine. The host's own kernel and cgroup set-up is what every other test runs on.
``VM_SUITE=trixie`` picks Linux 6.12 in place of 6.1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import attrs
import pytest

from tests import rootfs

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
LANE = HERE / "lane.sh"
CANNOT_BUILD = 69  # EX_UNAVAILABLE of sysexits.h, as lane.sh has it
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "csrc", "src")
# What depends on control groups and on the age of the kernel: an emulated processor is ten times slower, so the rest of
# tests/kernel is left to the host. VM_TESTS names others, "tests/kernel" is all of them (half an hour).
TESTS = (
    "tests/kernel/test_run_limits.py tests/kernel/test_run_process.py tests/kernel/test_run_mounts.py "
    "tests/kernel/test_devices.py tests/kernel/test_isolation_limits.py tests/kernel/test_bundle.py "
    "tests/kernel/test_containers.py::test_one_that_runs_stands_still_while_it_is_committed "
    "tests/kernel/test_containers.py::test_a_commit_that_is_killed_leaves_nothing_and_the_container_going_on"
)
PYTEST = (
    "python3 -m pytest -q --tb=short -p no:cacheprovider -m 'not slow' -o timeout=400 --junitxml=/out/junit.xml "
    + os.environ.get("VM_TESTS", TESTS)
)
LIMIT = int(os.environ.get("VM_LIMIT", "1200"))  # seconds, for the whole machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@attrs.frozen
class Guest:
    """What a run of the machine gave.

    Attributes:
        status: exit status of the command, or one of ``lane.sh``.
        output: what the command wrote.
        results: the directory of what came back.
    """

    status: int
    output: str
    results: Path


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Give the environment of ``lane.sh``, with the image made; skip where it cannot be."""
    if os.geteuid() != 0:
        pytest.skip("needs root, as the kernel tests in the guest are what root can do")
    for tool, package in (("qemu-system-x86_64", "qemu-system-x86"), ("mmdebstrap", "mmdebstrap")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; as root: apt-get install {package}")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wheels = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    env = {**os.environ, "PYTHON": sys.executable, "VM_WHEELS": " ".join(wheels)}
    built = subprocess.run([LANE, "build"], env=env, capture_output=True, text=True, check=False)
    if built.returncode == CANNOT_BUILD:
        pytest.skip("the image cannot be made: " + " | ".join(built.stderr.strip().splitlines()[-4:]))
    assert built.returncode == 0, built.stderr
    return env


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a directory to ship: the tests, and in ``site`` the package installed from its wheel."""
    work = tmp_path_factory.mktemp("wheel")
    sources, ship = work / "sources", work / "ship"
    sources.mkdir()
    ship.mkdir()
    built_in_place = shutil.ignore_patterns("*.so", "*.o", "_core.c", "__pycache__", "bin", "*.egg-info")
    for name in SOURCES:
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, sources / name, ignore=built_in_place)
        else:
            shutil.copy2(PROJECT / name, sources / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    checked([*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(work), str(sources)])
    [wheel] = work.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name, "one wheel has to serve every Python from 3.11 on, the guest's too"
    checked([*pip, "install", "--no-deps", "--no-compile", "--target", str(ship / "site"), str(wheel)])
    shutil.copytree(PROJECT / "tests", ship / "tests", ignore=shutil.ignore_patterns("__pycache__", "vm", "peers"))
    shutil.copytree(PROJECT / "examples", ship / "examples")
    shutil.copy2(PROJECT / "pyproject.toml", ship)
    # Without it, the tests in the guest that use the image would skip: it cannot be made there.
    cache = ship / "cache/pycontainer-tests"
    cache.mkdir(parents=True)
    try:
        shutil.copy2(rootfs.debian_tar(suite=os.environ.get("VM_SUITE", "bookworm")), cache)
    except rootfs.CannotBuild as reason:
        pytest.skip(str(reason))
    return ship


def checked(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def guest(environment: dict[str, str], installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """Give what one boot of the machine gave: facts of it, then the kernel tests."""
    results = tmp_path_factory.mktemp("guest")
    command = (
        "stat -f -c %T /sys/fs/cgroup >/out/kind; cp /sys/fs/cgroup/cgroup.subtree_control /out/controllers; "
        "uname -r >/out/release; "
        f"export PYTHONPATH=/src/site PATH=/src/site/bin:$PATH XDG_CACHE_HOME=/src/cache; {PYTEST}"
    )
    lane = [str(LANE), "run", "-i", str(installed), "-o", str(results), "-t", str(LIMIT), "--", command]
    done = subprocess.run(lane, env=environment, capture_output=True, text=True, errors="replace", check=False)
    return Guest(done.returncode, done.stdout + done.stderr, results)


def failures(report: Path) -> list[str]:
    """Return one text for each test of a JUnit report that failed: its name and what it said."""
    found = []
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - our own pytest wrote it
        for kind in ("failure", "error"):
            found += [
                f"── {case.get('classname')}.{case.get('name')} ({kind} in the guest)\n{problem.text}"
                for problem in case.findall(kind)
            ]
    return found


def test_the_guest_has_pure_cgroup_v2(guest: Guest) -> None:
    """What the other test relies on; it also tells a broken machine from a broken container."""
    found = {name: guest.results / name for name in ("kind", "controllers", "release")}
    assert all(path.exists() for path in found.values()), f"status {guest.status}:\n{guest.output[-6000:]}"
    assert found["kind"].read_text().strip() == "cgroup2fs"
    assert {"cpuset", "cpu", "io", "memory", "pids"} <= set(found["controllers"].read_text().split())
    assert found["release"].read_text().strip() != os.uname().release


def test_kernel_tests_pass_on_cgroup_v2(guest: Guest) -> None:
    report = guest.results / "junit.xml"
    if not report.exists():
        pytest.fail(
            f"pytest in the guest left no report (status {guest.status}):\n{guest.output[-6000:]}", pytrace=False
        )
    failed = failures(report)
    if failed:
        pytest.fail(f"{len(failed)} failed on cgroup v2:\n" + "\n".join(failed), pytrace=False)
    assert guest.status == 0, guest.output[-6000:]
    suites = list(ET.parse(report).iter("testsuite"))  # noqa: S314 - our own pytest wrote it
    tests, skipped = (sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "skipped"))
    assert skipped * 4 < tests, f"{skipped} of {tests} skipped in the guest:\n{guest.output[-6000:]}"
