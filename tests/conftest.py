"""Fixtures of all tests, what runs where, and the leak check after every test that touches the kernel."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import rootfs
from tests.leaks import Snapshot, lasting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pycontainer import Engine, Image

HERE = Path(__file__).parent
# mount(8) since util-linux 2.39 hands each option to fsconfig(2), which takes 256 bytes: too short for lowerdir=.
os.environ["LIBMOUNT_FORCE_MOUNT2"] = "always"

# A shell without job control starts what goes to the background with these ignored, and so would be what tests start.
for _signal, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, _handler)

NEEDS_ROOT = ("kernel", "peers")
CHECKED_FOR_LEAKS = ("kernel", "peers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and skip what needs root when we are not."""
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in {"kernel", "peers", "vm"}:
            item.add_marker(getattr(pytest.mark, folder))
        if folder in NEEDS_ROOT and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: containers are started with root's privileges"))


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a kernel test that leaves anything behind on the host.

    Fixtures of wider scope are set up before and are not counted. A test whose subject is what stays carries the
    marker ``keeps``.
    """
    folder = request.path.relative_to(HERE).parts[0]
    if folder not in CHECKED_FOR_LEAKS or request.node.get_closest_marker("keeps"):
        yield
        return
    base = tmp_path_factory.getbasetemp()
    before = Snapshot.take(base)
    yield
    left = lasting(before, base)
    if left:
        lines = [f"  {kind}: {value}" for kind, values in left.items() for value in sorted(values)]
        pytest.fail("left behind:\n" + "\n".join(lines), pytrace=False)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Give an engine on an empty root of its own."""
    from pycontainer import Engine

    with Engine(tmp_path / "engine") as opened:
        yield opened


@pytest.fixture(scope="session")
def busybox_rootfs() -> Path:
    """Give a directory with static busybox, its applets and a user ``app`` (uid 1000) in more groups."""
    return _built(rootfs.busybox_tree)


@pytest.fixture(scope="session")
def debian_tar() -> Path:
    """Give a tar of a minimal Debian with Python."""
    return _built(rootfs.debian_tar)


@pytest.fixture
def busybox(engine: Engine, busybox_rootfs: Path) -> Image:
    """Give busybox as an image of ``engine``."""
    return engine.images.import_rootfs(busybox_rootfs, reference="busybox:test")


@pytest.fixture(scope="session")
def stocked_root(tmp_path_factory: pytest.TempPathFactory, busybox_rootfs: Path, debian_tar: Path) -> Path:
    """Give an engine root that holds the images ``busybox:test`` and ``debian:test``, imported once for all tests."""
    from pycontainer import Engine

    root = tmp_path_factory.mktemp("stocked") / "engine"
    with Engine(root) as opened:
        opened.images.import_rootfs(busybox_rootfs, reference="busybox:test")
        opened.images.import_rootfs(debian_tar, reference="debian:test")
    return root


@pytest.fixture
def stocked(stocked_root: Path) -> Iterator[Engine]:
    """Give a newly opened engine on the root that holds ``busybox:test`` and ``debian:test``; do not remove those."""
    from pycontainer import Engine

    with Engine(stocked_root) as opened:
        yield opened


def _built(build: Callable[[], Path]) -> Path:
    try:
        return build()
    except rootfs.CannotBuild as reason:
        pytest.skip(str(reason))
