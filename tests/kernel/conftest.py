"""What the tests of isolation share."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.erofs import mounted
from tests.kernel.attacks import jail as jails

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.attacks.jail import Jail


@pytest.fixture(scope="session")
def attack_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the attack program, compiled."""
    return jails.compile_attacks(tmp_path_factory.mktemp("attacks"))


@pytest.fixture(scope="module")
def built_jail(tmp_path_factory: pytest.TempPathFactory, busybox_rootfs: Path, attack_program: Path) -> Iterator[Jail]:
    """Give a container under attack, on an engine that has started its keeper."""
    from pycontainer import Engine

    scratch = tmp_path_factory.mktemp("jail")
    with Engine(scratch / "engine") as engine:
        made = jails.build(engine, busybox_rootfs, attack_program, scratch)
        made.run("/bin/true")
        yield made


@pytest.fixture
def jail(built_jail: Jail) -> Iterator[Jail]:
    """Give the container under attack; images that a test makes of it go with the test, and their mounts with them."""
    images = built_jail.engine.images
    before = {image.id for image in images.list()}
    yield built_jail
    for image in images.list():
        if image.id not in before:
            images.remove(image.id, force=True)


@pytest.fixture(scope="session")
def erofs_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a directory for indexes and tars: not every file system has files that erofs can be mounted from."""
    from pycontainer.distribution import erofs

    path = tmp_path_factory.mktemp("disk")
    with tarfile.open(path / "empty.tar", "w"):
        pass
    erofs.index(path / "empty.tar", None, path / "empty.erofs")
    try:
        with mounted(path / "empty.erofs", [path / "empty.tar"], path / "empty"):
            pass
    except OSError as error:
        pytest.skip(f"erofs cannot be mounted from a file in {path}: {error}; Linux 6.12 can, except from a tmpfs")
    return path
