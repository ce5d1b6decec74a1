"""Disks that are full, read-only, moved, copied, or damaged: a clear error, and a store that works again afterwards."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontainer import Engine
from pycontainer.errors import DigestMismatch, NotFound, StartError, StoreError
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


# ── stores that others touched ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def root(tmp_path: Path, archives: tuple[Path, Path]) -> Path:
    """Give a store with the images ``small`` and ``large``, closed."""
    with Engine(tmp_path / "root") as engine:
        engine.images.load(archives[0], reference="small")
        engine.images.load(archives[1], reference="large")
    return tmp_path / "root"


def works(root: Path, *names: str) -> None:
    with Engine(root) as engine:
        assert sorted(name for image in engine.images.list() for name in image.references) == sorted(names)
        for name in names:
            assert engine.run(name, ["/bin/busybox", "true"]).ok
    check_whole(root)


def test_a_store_that_was_moved(root: Path, tmp_path: Path) -> None:
    root.rename(tmp_path / "elsewhere")
    works(tmp_path / "elsewhere", "small:latest", "large:latest")


def test_a_copy_of_a_store_has_a_life_of_its_own(root: Path, tmp_path: Path) -> None:
    with Engine(root) as engine:
        assert engine.run("large", ["/bin/busybox", "true"]).ok
        subprocess.run(["cp", "-a", root, tmp_path / "copy"], check=True)
    with Engine(tmp_path / "copy") as copy:
        copy.images.remove("small")
    works(tmp_path / "copy", "large:latest")
    works(root, "small:latest", "large:latest")


def test_the_index_is_written_anew(root: Path) -> None:
    (root / "index.json").unlink()
    with Engine(root):
        assert len(json.loads((root / "index.json").read_bytes())["manifests"]) == 2
    (root / "index.json").write_text("[")
    works(root, "small:latest", "large:latest")


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_content_without_its_records_is_not_thrown_away(root: Path, how: str) -> None:
    before = sorted(path.name for path in root.glob("blobs/*/*"))
    index = (root / "index.json").read_bytes()
    (root / "state.db").unlink()
    if how == "emptied":
        (root / "state.db").touch()
    with pytest.raises(StoreError, match=r"has no records of it.*put state.db back, or move"):
        Engine(root)
    assert sorted(path.name for path in root.glob("blobs/*/*")) == before
    # It is a layout still: what it holds can be loaded into another.
    (root / "index.json").write_bytes(index)
    with Engine(root.parent / "other") as engine:
        assert len(engine.images.load_all(root)) == 2


@pytest.mark.parametrize("size", [100, 4096, 3 * 4096 + 17])
def test_records_that_were_cut(root: Path, size: int) -> None:
    os.truncate(root / "state.db", size)
    with pytest.raises(StoreError, match=r"state\.db.*(damaged|no SQLite database)"), Engine(root) as engine:
        engine.images.remove("small")
    assert len(list(root.glob("blobs/*/*"))) > 5


def test_records_with_noise_in_them(root: Path) -> None:
    with (root / "state.db").open("r+b") as file:
        for page in range(1, os.fstat(file.fileno()).st_size // 4096):
            file.seek(page * 4096)
            file.write(os.urandom(64))
    with pytest.raises(StoreError, match=r"state\.db.*damaged"), Engine(root) as engine:
        engine.images.list()


def test_records_that_another_holds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycontainer.store.connections._BUSY_SECONDS", 0.1)
    other = sqlite3.connect(root / "state.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with Engine(root) as engine:
            assert engine.images.get("small").references == ("small:latest",)  # who reads is not kept waiting
            with pytest.raises(StoreError, match="another process holds it"):
                engine.images.tag("small", "more")
        other.execute("ROLLBACK")
    finally:
        other.close()
    works(root, "small:latest", "large:latest")


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
@pytest.mark.parametrize("what", ["config", "manifest"])
def test_a_damaged_document(root: Path, archives: tuple[Path, Path], what: str, damage: str) -> None:
    with Store.open(root) as store:
        row = store.db.by_name("docker.io/library/large:latest")
        assert row is not None
        path = store.blobs.path(row.id if what == "config" else row.digest)
    spoil(path, damage)
    with Engine(root) as engine:
        with pytest.raises((DigestMismatch, NotFound), match=path.name):
            use(engine, root.parent / "saved.tar")
        engine.images.remove("large")
        engine.images.load(archives[1], reference="large")
    works(root, "small:latest", "large:latest")


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_layer(root: Path, archives: tuple[Path, Path], damage: str) -> None:
    with Store.open(root) as store:
        row = store.db.by_name("docker.io/library/large:latest")
        assert row is not None
        layer = store.db.layers(row.id)[-1]
        index = store.snapshots.index(layer.snapshot)
    assert index.is_file(), "this kernel mounts no indexes"
    spoil(index, damage)
    with Engine(root) as engine:
        with pytest.raises((StoreError, StartError)) as caught:
            engine.run("large", ["/bin/busybox", "true"])
        assert "system check --repair" in str(caught.value)
        engine.images.remove("large")
        engine.images.load(archives[1], reference="large")
    works(root, "small:latest", "large:latest")


def use(engine: Engine, target: Path) -> None:
    """Do what needs the documents of an image, one way or the other."""
    engine.images.get("large")
    engine.images.save(target, "large")
    engine.images.load(target)


def spoil(path: Path, damage: str) -> None:
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("limit", [1000, 30_000, 1_000_000])
def test_files_that_may_not_grow(tmp_path: Path, root: Path, archives: tuple[Path, Path], limit: int) -> None:
    """RLIMIT_FSIZE, see setrlimit(2); Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Engine(root) as engine:
        engine.images.remove("large")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            for act in (ACTS["load"], ACTS["import"]):
                with pytest.raises(StoreError, match=r"too large|full|I/O"):
                    act(engine, archives[1], tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    works(root, "small:latest")
