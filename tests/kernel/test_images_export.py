"""Images taken out as a tree, and compared with each other."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from pycontainer.distribution.pack import compare
from pycontainer.errors import NotFound
from pycontainer.images import Images
from pycontainer.store import Store
from tests import strategies
from tests.archives import docker_archive, folder, member, tar
from tests.trees import describe, write_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.strategies import Node

BELOW = tar(
    folder("etc", mode=0o750),
    member("etc/kept", b"kept"),
    member("etc/gone", b"gone"),
    member("etc/changed", b"before"),
    folder("old"),
    member("old/file", b"x"),
    folder("opaque"),
    member("opaque/hidden", b"x"),
    member("turned", b"a file"),
)
ABOVE = tar(
    member("etc/.wh.gone"),
    member("etc/changed", b"after!"),
    member(".wh.old"),
    folder("opaque"),
    member("opaque/.wh..wh..opq"),
    member("opaque/shown", b"y"),
    folder("turned"),
    member("turned/inside", b"z"),
    folder("new"),
    folder("new/deep"),
    member("new/deep/file", b"n"),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def images(store: Store, tmp_path: Path) -> Images:
    found = Images(store)
    for name, layers in (("one:1", [BELOW]), ("two:1", [BELOW, ABOVE])):
        (tmp_path / "archive.tar").write_bytes(docker_archive(layers))
        found.load(tmp_path / "archive.tar", reference=name)
    return found


def exported(images: Images, name: str) -> dict[str, tarfile.TarInfo]:
    target = io.BytesIO()
    images.export(name, target)
    target.seek(0)
    with tarfile.open(fileobj=target) as archive:
        return {info.name: info for info in archive}


def test_layers_are_laid_over_each_other(images: Images) -> None:
    one = exported(images, "one:1")
    assert set(one) == {
        *(".", "etc", "etc/kept", "etc/gone", "etc/changed", "old", "old/file", "opaque", "opaque/hidden", "turned"),
    }
    assert (one["etc"].mode, one["etc/kept"].size) == (0o750, 4)
    assert set(exported(images, "two:1")) == {
        *(".", "etc", "etc/kept", "etc/changed", "opaque", "opaque/shown", "turned", "turned/inside"),
        *("new", "new/deep", "new/deep/file"),
    }


def test_an_export_comes_back_as_the_same_tree(store: Store, tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    tree = tmp_path / "tree"
    tree.mkdir()
    write_sample(tree, Path(busybox))
    images = Images(store)
    images.import_rootfs(tree, reference="sample:1")
    images.export("sample:1", tmp_path / "first.tar")
    images.export("sample:1", tmp_path / "second.tar")
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()
    (tmp_path / "out").mkdir()
    subprocess.run(
        ["tar", "-C", tmp_path / "out", "--xattrs", "--xattrs-include=*", "-xpf", tmp_path / "first.tar"], check=True
    )
    assert describe(tmp_path / "out", root_too=False) == describe(tree, root_too=False)
    assert list((store.root / "tmp").iterdir()) == []


def test_a_failed_export_leaves_nothing(images: Images, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        images.export("nosuch", tmp_path / "out.tar")
    with pytest.raises(FileNotFoundError):
        images.export("one:1", tmp_path / "missing/out.tar")

    class Full(io.BytesIO):
        def write(self, _data: object, /) -> int:
            raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match="No space"):
        images.export("one:1", Full())
    assert not (tmp_path / "out.tar").exists()
    images.remove("one:1")  # nobody uses it any more


def test_what_another_image_has_else(images: Images) -> None:
    assert list(map(str, images.diff("one:1", "two:1"))) == [
        "C /etc",
        "C /etc/changed",
        "D /etc/gone",
        "A /new",
        "A /new/deep",
        "A /new/deep/file",
        "D /old",
        "C /opaque",
        "D /opaque/hidden",
        "A /opaque/shown",
        "C /turned",
        "A /turned/inside",
    ]
    assert images.diff("two:1", images.get("two:1")) == []
    back = {(change.kind, change.path) for change in images.diff("two:1", "one:1")}
    assert ("deleted", "/new") in back
    assert ("deleted", "/turned/inside") not in back  # what is in a directory that is gone is gone with it
    assert ("added", "/old/file") in back


def change_content(path: Path) -> None:
    info = path.stat()
    path.write_bytes(b"x" * info.st_size)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def change_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("else")
    os.utime(path, (1, 1), follow_symlinks=False)


def change_device(path: Path) -> None:
    path.unlink()
    os.mknod(path, 0o20644, os.makedev(1, 5))
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("file", change_content),
        ("file", lambda path: path.chmod(0o600)),
        ("file", lambda path: os.chown(path, 1, 2)),
        ("file", lambda path: os.utime(path, ns=(0, 1_000_000_001))),
        ("file", lambda path: os.setxattr(path, "user.a", b"1")),
        ("sub", lambda path: os.setxattr(path, "user.a", b"1")),
        ("link", change_link),
        ("null", change_device),
    ],
)
def test_everything_that_can_differ_counts(tmp_path: Path, name: str, change: Callable[[Path], None]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "sub").mkdir(parents=True)
    (one / "file").write_bytes(b"a" * 3_000_000)
    (one / "link").symlink_to("file")
    os.mknod(one / "null", 0o20644, os.makedev(1, 3))
    for path in one.iterdir():
        os.utime(path, (1, 1), follow_symlinks=False)
    subprocess.run(["cp", "-a", one, two], check=True)
    assert compared(one, two) == []
    change(two / name)
    assert compared(one, two) == [f"C /{name}"]


def compared(one: Path, two: Path) -> list[str]:
    first, second = os.open(one, os.O_PATH), os.open(two, os.O_PATH)
    try:
        return list(map(str, compare(second, old=first)))
    finally:
        os.close(first)
        os.close(second)


def test_a_tree_deeper_than_the_interpreter_recurses(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        here = os.open(tmp_path / name, os.O_PATH)
        for _ in range(1500):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_PATH, dir_fd=here)
            os.close(here)
            here = inner
        if name == "two":
            os.mkdir("new", dir_fd=here)
        os.close(here)
    found = compared(tmp_path / "one", tmp_path / "two")
    assert found[-1] == "A " + "/d" * 1500 + "/new"
    assert len(found) == 1501
    assert all(text.startswith("C /d") for text in found[:-1])
    subprocess.run(["rm", "-rf", tmp_path / "one", tmp_path / "two"], check=True)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategies.trees(), strategies.trees())
def test_trees_are_equal_or_their_differences_are_named(
    tmp_path_factory: pytest.TempPathFactory, first: list[Node], second: list[Node]
) -> None:
    base = tmp_path_factory.mktemp("trees")
    for name, tree in (("one", first), ("two", second)):
        (base / name).mkdir()
        strategies.write_tree(base / name, tree)
    one, two = (describe(base / name, whole_seconds=False, root_too=False) for name in ("one", "two"))
    found = {text[3:]: text[0] for text in compared(base / "one", base / "two")}
    assert {name for name in found if found[name] == "A"} == two.keys() - one.keys()
    # Of what is gone, that is named whose directory is still there.
    assert {name for name in found if found[name] == "D"} == {
        name
        for name in one.keys() - two.keys()
        if (parent := str(Path(name).parent)) == "." or str(two.get(parent, ("",))[0]).startswith("0o40")
    }
    for name in one.keys() & two.keys():
        if one[name][:-1] != two[name][:-1]:
            assert found[name] == "C"
    subprocess.run(["rm", "-rf", base], check=True)
