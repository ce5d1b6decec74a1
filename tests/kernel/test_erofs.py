"""What the kernel reads from an index and its tar is what GNU tar extracts, and what our own extractor makes."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.distribution import erofs
from pycontainer.distribution.layer import apply
from tests.erofs import mounted
from tests.strategies import Node, trees, write_tree
from tests.trees import describe, write_sample

COMMON = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
XATTRS = ("--xattrs", "--xattrs-include=*")


def gnu_tar(*arguments: object) -> None:
    subprocess.run(["tar", *map(str, arguments)], check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"})


@contextmanager
def shown(erofs_disk: Path, archive: Path) -> Iterator[Path]:
    """Index an archive and mount it."""
    with tempfile.TemporaryDirectory(dir=erofs_disk) as name:
        base = Path(name)
        indexed = erofs.index(archive, base / "layer.tar", base / "layer.erofs")
        assert (base / "layer.tar").read_bytes() == archive.read_bytes()
        assert (base / "layer.erofs").stat().st_size == indexed.index_size
        with mounted(base / "layer.erofs", [base / "layer.tar"], base / "shown") as where:
            yield where


@contextmanager
def scratch(tree: list[Node]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as name:
        base = Path(name)
        (base / "tree").mkdir()
        (base / "ours").mkdir()
        write_tree(base / "tree", tree)
        yield base


@COMMON
@given(trees(), st.sampled_from(["0.0", "0.1", "1.0"]))
def test_posix_archives_keep_everything(erofs_disk: Path, tree: list[Node], sparse: str) -> None:
    with scratch(tree) as base:
        layer = base / "layer.tar"
        gnu_tar("-C", base / "tree", "--format=posix", "-S", f"--sparse-version={sparse}", *XATTRS, "-cf", layer, ".")
        with shown(erofs_disk, layer) as where:
            assert describe(where, whole_seconds=False) == describe(base / "tree", whole_seconds=False)


@COMMON
@given(trees(), st.booleans())
def test_archives_of_gnu_and_python_show_what_we_extract(erofs_disk: Path, tree: list[Node], gnu: bool) -> None:
    tree = [attrs.evolve(node, mtime_ns=node.mtime_ns // 10**9 * 10**9) for node in tree]
    with scratch(tree) as base:
        layer = base / "layer.tar"
        if gnu:
            gnu_tar("-C", base / "tree", "--format=gnu", "-S", "-cf", layer, ".")
        else:
            with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as archive:
                archive.add(base / "tree", ".")
        apply(layer, base / "ours")
        with shown(erofs_disk, layer) as where:
            assert describe(where, whole_seconds=False) == describe(base / "ours", whole_seconds=False)


def test_the_sample_with_capabilities(erofs_disk: Path, tmp_path: Path, busybox_rootfs: Path) -> None:
    (tmp_path / "tree").mkdir()
    write_sample(tmp_path / "tree", busybox_rootfs / "bin/busybox")
    gnu_tar("-C", tmp_path / "tree", "--format=posix", "-S", *XATTRS, "-cf", tmp_path / "layer.tar", ".")
    with shown(erofs_disk, tmp_path / "layer.tar") as where:
        assert describe(where, whole_seconds=False) == describe(tmp_path / "tree", whole_seconds=False)
        said = subprocess.run(["getcap", where / "bin/server"], check=True, capture_output=True, text=True).stdout
        assert "cap_net_bind_service=ep" in said
        assert subprocess.run([where / "bin/sh", "-c", "exit 7"], check=False).returncode == 7


def test_holes_stay_holes(erofs_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    islands = (1 << 20, 1 << 30, (20 << 30) + 5)
    with (tmp_path / "tree/disk").open("wb") as file:
        for offset in islands:
            file.seek(offset)
            file.write(b"island")
        file.truncate(1 << 40)
    for form in ("--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"):
        gnu_tar("-C", tmp_path / "tree", "-S", form, "-cf", tmp_path / "layer.tar", "disk")
        with shown(erofs_disk, tmp_path / "layer.tar") as where, (where / "disk").open("rb") as file:
            assert os.fstat(file.fileno()).st_size == 1 << 40
            assert (where.parent / "layer.erofs").stat().st_blocks * 512 < 2 << 20
            for offset in islands:
                file.seek(offset - 3)
                assert file.read(12) == b"\0\0\0island\0\0\0"
            file.seek(-4096, os.SEEK_END)
            assert file.read() == bytes(4096)


def test_many_names_in_one_directory(erofs_disk: Path, tmp_path: Path) -> None:
    names = [f"{number * 7919 % 30011:x}" + "-" * (number % 90) for number in range(30_000)]
    with tarfile.open(tmp_path / "layer.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"many/{name}"))
    with shown(erofs_disk, tmp_path / "layer.tar") as where:
        assert sorted(path.name for path in (where / "many").iterdir()) == sorted(names)
        assert all(stat.S_ISREG((where / "many" / name).lstat().st_mode) for name in names[::37])
        assert not (where / "many/absent").exists()


gaps = st.sampled_from([0, 0, 1, 511, 512, 4096, 5000, 1 << 20, (1 << 20) + 512, 3 << 30])
sizes = st.sampled_from([0, 1, 7, 512, 513, 4096, 9000, 70_000])


@settings(COMMON, max_examples=60)
@given(st.lists(st.tuples(gaps, sizes), max_size=8), gaps)
def test_pieces_that_do_not_fall_on_blocks(erofs_disk: Path, pieces: list[tuple[int, int]], end: int) -> None:
    """What a writer of archives may choose, and none does: content anywhere in the file and in the tar."""
    at, expected = 0, list[tuple[int, bytes]]()
    for number, (gap, size) in enumerate(pieces):
        at += gap
        expected.append((at, bytes([number + 1]) * size))
        at += size
    content = b"".join(data for _, data in expected)
    info = tarfile.TarInfo("file")
    info.size = len(content)
    places = ",".join(f"{offset},{len(data)}" for offset, data in expected) or "0,0"
    info.pax_headers = {"GNU.sparse.map": places, "GNU.sparse.size": str(at + end), "GNU.sparse.major": "0"}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        with tarfile.open(Path(name) / "layer.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(info, io.BytesIO(content))
        with shown(erofs_disk, Path(name) / "layer.tar") as where, (where / "file").open("rb") as file:
            assert os.fstat(file.fileno()).st_size == at + end
            before = 0
            for offset, data in expected:
                hole = min(offset - before, 5000)
                assert os.pread(file.fileno(), hole, before) == bytes(hole)
                assert os.pread(file.fileno(), hole + len(data), offset - hole) == bytes(hole) + data
                before = offset + len(data)
            tail = min(end, 5000)
            assert os.pread(file.fileno(), 9000, at + end - tail) == bytes(tail)
            assert (where.parent / "layer.erofs").stat().st_blocks * 512 < 3 * len(content) + (1 << 20)
