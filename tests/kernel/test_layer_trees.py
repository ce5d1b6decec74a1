"""Trees that went through a tar come out the same, as the tree they were and as GNU tar extracts them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.distribution.layer import apply
from tests.strategies import Node, trees, write_tree
from tests.trees import describe

COMMON = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
XATTRS = ("--xattrs", "--xattrs-include=*")


def gnu_tar(*arguments: object, **environment: str) -> None:
    subprocess.run(
        ["tar", *map(str, arguments)], check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"} | environment
    )


def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True)


def both_ways(base: Path, archive: Path) -> tuple[dict[str, tuple[object, ...]], dict[str, tuple[object, ...]]]:
    """Extract with GNU tar and with ours."""
    (base / "gnu").mkdir()
    (base / "ours").mkdir()
    gnu_tar("-xpf", archive, "--warning=no-timestamp", "--numeric-owner", "--same-owner", *XATTRS, "-C", base / "gnu")
    apply(archive, base / "ours")
    return describe(base / "gnu", whole_seconds=False), describe(base / "ours", whole_seconds=False)


@COMMON
@given(trees(), st.sampled_from(["0.0", "0.1", "1.0"]))
def test_posix_archives_keep_everything(tree: list[Node], sparse: str) -> None:
    with scratch() as name:
        base = Path(name)
        (base / "tree").mkdir()
        write_tree(base / "tree", tree)
        layer = base / "layer.tar"
        gnu_tar("-C", base / "tree", "--format=posix", "-S", f"--sparse-version={sparse}", *XATTRS, "-cf", layer, ".")
        gnu, ours = both_ways(base, layer)
        assert ours == gnu
        assert ours == describe(base / "tree", whole_seconds=False)


@COMMON
@given(trees())
def test_gnu_archives_come_out_as_gnu_tar_extracts_them(tree: list[Node]) -> None:
    with scratch() as name:
        base = Path(name)
        (base / "tree").mkdir()
        write_tree(base / "tree", tree)
        gnu_tar("-C", base / "tree", "--format=gnu", "-S", "-cf", base / "layer.tar", ".")
        gnu, ours = both_ways(base, base / "layer.tar")
        assert ours == gnu


@COMMON
@given(trees(), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_archives_of_python_come_out_as_gnu_tar_extracts_them(tree: list[Node], form: int) -> None:
    # tarfile writes times as floats: 1e-09 is none by POSIX, and the least bits get lost.
    tree = [attrs.evolve(node, mtime_ns=node.mtime_ns // 10**9 * 10**9) for node in tree]
    with scratch() as name:
        base = Path(name)
        (base / "tree").mkdir()
        write_tree(base / "tree", tree)
        with tarfile.open(base / "layer.tar", "w", format=form, encoding="utf-8") as archive:
            archive.add(base / "tree", ".")
        gnu, ours = both_ways(base, base / "layer.tar")
        assert ours == gnu


def test_holes_stay_holes(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree/disk").open("wb") as file:
        for offset in (1 << 20, 1 << 30, 20 << 30):
            file.seek(offset)
            file.write(b"island")
        file.truncate(1 << 40)
    for form in ("--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"):
        layer, target = tmp_path / f"{form}.tar", tmp_path / form
        target.mkdir()
        gnu_tar("-C", tmp_path / "tree", "-S", form, "-cf", layer, "disk")
        apply(layer, target)
        info = (target / "disk").stat()
        assert info.st_size == 1 << 40
        assert info.st_blocks * 512 < 1 << 20
        with (target / "disk").open("rb") as file:
            file.seek(20 << 30)
            assert file.read(7) == b"island\0"


def test_more_old_sparse_extents_than_a_header_holds(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree/file").open("wb") as file:
        for number in range(100):
            file.seek(number << 16)
            file.write(b"%d" % number)
    gnu_tar("-C", tmp_path / "tree", "-S", "--format=gnu", "-cf", tmp_path / "layer.tar", ".")
    gnu, ours = both_ways(tmp_path, tmp_path / "layer.tar")
    assert ours == gnu


@pytest.mark.parametrize("mask", [0o077, 0o777, 0])
def test_the_umask_of_the_caller_does_not_matter(tmp_path: Path, mask: int) -> None:
    (tmp_path / "tree/dir").mkdir(parents=True)
    (tmp_path / "tree/dir/file").write_text("x")
    (tmp_path / "tree/dir/file").chmod(0o666)
    (tmp_path / "tree/dir").chmod(0o2777)
    gnu_tar("-C", tmp_path / "tree", "-cf", tmp_path / "layer.tar", "dir/file", "dir")
    (tmp_path / "out").mkdir()
    # A process of its own: the umask belongs to all threads.
    code = f"import os; os.umask({mask}); from pycontainer.distribution.layer import apply; apply('layer.tar', 'out')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "out/dir").stat().st_mode == 0o42777
    assert (tmp_path / "out/dir/file").stat().st_mode == 0o100666
