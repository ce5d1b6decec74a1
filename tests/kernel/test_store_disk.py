"""Disks that are full, read-only, moved, copied, or damaged: a clear error, and a store that works again afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontainer import Engine
from pycontainer.errors import StartError, StoreError
from pycontainer.store import Store
from tests.archives import docker_archive, folder, member, tar

MEGABYTE = 1 << 20
# Bytes that are left: nothing, a block, what a transaction takes, a part of a layer, of two layers.
LEFT = [0, 4096, 40_000, 150_000, 600_000, 2_000_000]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give an ext4 of its own of 24 MB."""
    base = tmp_path_factory.mktemp("disk")
    image, mount = base / "image", base / "mount"
    with image.open("wb") as file:
        file.truncate(24 * MEGABYTE)
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-N", "3000", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.fixture
def base(disk: Path) -> Iterator[Path]:
    """Give an empty directory on that disk."""
    path = disk / "base"
    path.mkdir()
    yield path
    (disk / "filler").unlink(missing_ok=True)
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, busybox_rootfs: Path) -> tuple[Path, Path]:
    """Give two archives: of a busybox, and of one with a second layer of a megabyte in files."""
    directory = tmp_path_factory.mktemp("archives")
    program = (busybox_rootfs / "bin/busybox").read_bytes()
    lower = tar(folder("bin"), member("bin/busybox", program, mode=0o755))
    upper = tar(folder("data"), *(member(f"data/{number}", os.urandom(50_000)) for number in range(20)))
    (directory / "small.tar").write_bytes(docker_archive([lower]))
    (directory / "large.tar").write_bytes(docker_archive([lower, upper]))
    return directory / "small.tar", directory / "large.tar"


def fill(disk: Path, left: int) -> None:
    """Take all space of a disk but so many bytes."""
    with (disk / "filler").open("wb") as file:
        size = 0
        for step in (MEGABYTE, 1 << 16, 1 << 12):
            while True:
                try:
                    os.posix_fallocate(file.fileno(), size, step)
                except OSError:
                    break
                size += step
        file.truncate(max(size - left, 0))
        os.fsync(file.fileno())


def load_stream(engine: Engine, archive: Path) -> None:
    with archive.open("rb") as stream:
        engine.images.load(stream, reference="new")


Act = Callable[[Engine, Path, Path], object]

ACTS: dict[str, Act] = {
    "load": lambda engine, archive, _target: engine.images.load(archive, reference="new"),
    "load a stream": lambda engine, archive, _target: load_stream(engine, archive),
    "import": lambda engine, archive, _target: engine.images.import_rootfs(archive, reference="new"),
    "tag": lambda engine, _archive, _target: [engine.images.tag("old", f"old:{number}") for number in range(50)],
    "save": lambda engine, _archive, target: engine.images.save(target, "old"),
    "run": lambda engine, _archive, _target: engine.run("old", ["/bin/busybox", "true"], pull="never"),
    "remove": lambda engine, _archive, _target: engine.images.remove("old"),
}


class _Full(Exception):
    """The disk was full, and the error said so."""


@contextlib.contextmanager
def full_disk(target: Path) -> Iterator[None]:
    """Check that an error tells that the disk is full and what to do."""
    try:
        yield
    except (StoreError, StartError) as error:
        if "space" not in str(error):
            raise
        raise _Full from error
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename != str(target):
            raise
        raise _Full from error


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("act", ACTS)
def test_a_full_disk(disk: Path, base: Path, archives: tuple[Path, Path], act: str, left: int) -> None:
    root, target = base / "root", base / "saved.tar"
    with Engine(root) as engine:
        engine.images.load(archives[0], reference="old")
        fill(disk, left)
        # Whether it is enough depends on the file system; a target of the caller's own is an OSError, as for open().
        with contextlib.suppress(_Full), full_disk(target):
            ACTS[act](engine, archives[1], target)
        names = {name for image in engine.images.list() for name in image.references}
        assert not target.exists() or act == "save"
    (disk / "filler").unlink()
    with Engine(root) as engine:
        assert {name for image in engine.images.list() for name in image.references} == names
    check_whole(root)


def check_whole(root: Path) -> None:
    """Check that a store has what its images need and nothing else."""
    with Store.open(root) as store:
        needed = store.db.content()
        assert needed.blobs <= set(store.blobs.list()) <= needed.blobs | needed.tars
        assert store.snapshots.list() == needed.snapshots
    assert list((root / "tmp").iterdir()) == []
