"""Layers of whatever members, indexed, show the tree that unpacking them makes, or are refused for the same reason.

And one index of many layers shows what an overlay of them shows.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer.distribution import erofs, parents
from pycontainer.distribution.layer import AppliedLayer, apply
from pycontainer.errors import ImageError
from tests.erofs import mounted, overlaid
from tests.trees import describe

COMMON = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
TIME = 10**9

nothing = st.just("")
components = st.sampled_from(["a", "b", "c"])
paths = st.lists(components, min_size=1, max_size=3).map("/".join)
links = st.one_of(
    paths,
    paths.map("/{}".format),
    paths.map("../{}".format),
    st.sampled_from(["..", ".", "/", "../..", "a/../b", "a//b/."]),
)
Describe = dict[str, tuple[object, ...]]


@attrs.frozen
class Member:
    """A member of a layer."""

    name: str
    kind: bytes
    link: str = ""
    content: bytes = b""
    mode: int = 0o755
    xattr: str = ""


def member(kind: bytes, link: st.SearchStrategy[str] = nothing) -> st.SearchStrategy[Member]:
    return st.builds(
        Member,
        paths,
        st.just(kind),
        link=link,
        content=st.binary(max_size=600) if kind == tarfile.REGTYPE else st.just(b""),
        mode=st.sampled_from([0o755, 0o644, 0o4711, 0o1777]),
        xattr=st.sampled_from(["", "", "", "user.a", "user.b", "trusted.c"]),
    )


def marks(name: str) -> list[str]:
    directory, _, base = name.rpartition("/")
    prefix = f"{directory}/" if directory else ""
    return [f"{prefix}.wh.{base}", f"{name}/.wh..wh..opq"]


described = st.one_of(
    member(tarfile.REGTYPE),
    member(tarfile.REGTYPE),
    member(tarfile.DIRTYPE),
    member(tarfile.DIRTYPE),
    member(tarfile.SYMTYPE, links),
    member(tarfile.LNKTYPE, paths),
    member(tarfile.FIFOTYPE),
    member(tarfile.CHRTYPE),  # 0/0: a whiteout
    paths.flatmap(lambda name: st.sampled_from(marks(name))).map(lambda name: Member(name, tarfile.REGTYPE)),
    st.just(Member("./", tarfile.DIRTYPE)),
)
layers = st.lists(described, max_size=10)


def make(members: list[Member]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, each in enumerate(members):
            info = tarfile.TarInfo(each.name)
            info.type, info.linkname, info.size, info.mode = each.kind, each.link, len(each.content), each.mode
            info.mtime = TIME + number
            info.uid = number
            if each.xattr:
                info.pax_headers = {f"SCHILY.xattr.{each.xattr}": f"value {number}"}
            archive.addfile(info, io.BytesIO(each.content))
    return out.getvalue()


def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True)


def look(root: Path) -> Describe:
    """Describe a tree with its marks, without the times of what no member describes."""
    found: Describe = {}
    for name, (mode, uid, gid, time, attributes, content, first) in describe(root, ghosts=False).items():
        path = root / name
        opaque = "trusted.overlay.opaque" in os.listxattr(path, follow_symlinks=False)
        known = isinstance(time, int) and TIME <= time < TIME + 1000
        found[name] = (mode, uid, gid, time if known else 0, attributes, content, first, opaque)
    return found


def timed_as(one: Describe, other: Describe) -> Describe:
    """Leave out times of directories that have none in ``one``."""
    untimed = {name for name, value in one.items() if str(value[0]).startswith("0o4") and not value[3]}
    return {name: (*value[:3], 0, *value[4:]) if name in untimed else value for name, value in other.items()}


def reason(error: ImageError) -> str:
    return re.sub(r"'.*'|the layer", "...", str(error), flags=re.DOTALL)


@COMMON
@given(layers)
def test_a_layer_is_the_same_unpacked_and_indexed(erofs_disk: Path, members: list[Member]) -> None:
    layer = make(members)
    with scratch() as name, tempfile.TemporaryDirectory(dir=erofs_disk) as here:
        tree, base = Path(name) / "tree", Path(here)
        tree.mkdir()
        (base / "layer.tar").write_bytes(layer)
        applied: AppliedLayer | None = None
        try:
            applied = apply(io.BytesIO(layer), tree)
        except ImageError as error:
            with pytest.raises(ImageError) as caught:
                erofs.index(io.BytesIO(layer), None, base / "index")
            assert reason(caught.value).replace("index", "apply") == reason(error)  # noqa: PT017 - both outcomes are right
            return
        indexed = erofs.index(io.BytesIO(layer), None, base / "index")
        for field in ("diff_id", "entries", "content", "dropped_xattrs", "hides_all"):
            assert getattr(indexed, field) == getattr(applied, field), field
        with mounted(base / "index", [base / "layer.tar"], base / "shown") as where:
            # A directory that was described through a link which is gone by the end keeps the time of its making.
            unpacked = look(tree)
            assert timed_as(unpacked, look(where)) == unpacked


def unpack(layer: bytes, tree: Path, lowers: list[Path]) -> bool:
    """Unpack a layer as the store does; return whether it needed directories that it does not describe."""
    tree.mkdir()
    tree.chmod(0o755)
    since = tree.stat().st_mtime_ns
    applied = apply(io.BytesIO(layer), tree)
    parents.mark(tree, since)
    implied = bool(parents.marked(tree))
    parents.complete(tree, [] if applied.hides_all else lowers[::-1])
    return implied


def plain(found: Describe) -> Describe:
    """Leave out the root, which is the container's, and the times of what nothing describes."""
    return {name: value[:-1] for name, value in found.items() if name != "."}


@COMMON
@given(st.lists(layers, min_size=2, max_size=4))
def test_one_index_of_many_layers_is_what_an_overlay_of_them_shows(erofs_disk: Path, stack: list[list[Member]]) -> None:
    with ExitStack() as cleanup:
        base = Path(cleanup.enter_context(tempfile.TemporaryDirectory(dir=erofs_disk)))
        trees = Path(cleanup.enter_context(scratch()))
        tars: list[Path] = []
        singles: list[Path] = []
        unpacked: list[Path] = []
        implied = False
        for number, members in enumerate(stack):
            layer, tar, single = make(members), base / f"{number}.tar", base / f"{number}.erofs"
            try:
                indexed = erofs.index(io.BytesIO(layer), tar, single)
                implied |= unpack(layer, trees / str(number), unpacked)
            except ImageError:
                continue
            where = cleanup.enter_context(mounted(single, [tar], base / f"{number}.shown"))
            tars.append(tar)
            singles = [where] if indexed.hides_all else [*singles, where]
            unpacked = [trees / str(number)] if indexed.hides_all else [*unpacked, trees / str(number)]
        if len(tars) < 2:
            return
        try:
            erofs.merge(tars, base / "merged", diff_ids=[f"sha256:{number}" for number in range(len(tars))])
        except ImageError as error:
            assert "link" in str(error)  # noqa: PT017 - both outcomes are right
            return
        merged = plain(look(cleanup.enter_context(mounted(base / "merged", tars, base / "merged.shown"))))
        (trees / "empty").mkdir()
        # Where links of lower layers lead what is put into them has tests of its own.
        if not (implied and any(each.kind == tarfile.SYMTYPE for members in stack for each in members)):
            laid = plain(look(cleanup.enter_context(overlaid([trees / "empty", *unpacked], base / "unpacked"))))
            assert timed_as(laid, merged) == laid
        if not implied:
            assert merged == plain(look(cleanup.enter_context(overlaid([trees / "empty", *singles], base / "singles"))))


def regular(name: str, content: bytes = b"x") -> Member:
    return Member(name, tarfile.REGTYPE, content=content)


LINKED = {
    "relative": ([Member("usr/lib", tarfile.DIRTYPE), Member("lib", tarfile.SYMTYPE, "usr/lib")], "lib/x", "usr/lib/x"),
    "absolute": (
        [Member("opt/lib", tarfile.DIRTYPE), Member("lib", tarfile.SYMTYPE, "/opt/lib")],
        "lib/x",
        "opt/lib/x",
    ),
    "to nothing": ([Member("lib", tarfile.SYMTYPE, "usr/lib64")], "lib/x", "usr/lib64/x"),
    "up": ([Member("a/b", tarfile.DIRTYPE), Member("a/b/up", tarfile.SYMTYPE, "../../c")], "a/b/up/x", "c/x"),
    "beyond the root": ([Member("a", tarfile.SYMTYPE, "../../../b/./c")], "a/x", "b/c/x"),
    "to a link": (
        [Member("one", tarfile.SYMTYPE, "two/in"), Member("two", tarfile.SYMTYPE, "three")],
        "one/x",
        "three/in/x",
    ),
    "with a name of its own": ([Member("a", tarfile.SYMTYPE, ".")], "a/a", "a"),
}


@pytest.mark.parametrize("case", LINKED)
def test_links_below_lead_where_they_point(erofs_disk: Path, tmp_path: Path, case: str) -> None:
    below, name, found = LINKED[case]
    tars = write_tars(tmp_path, below, [regular(name, b"moved")])
    with merged_of(erofs_disk, tars) as where:
        assert (where / found).read_bytes() == b"moved"
        assert not (where / found).is_symlink()


def test_what_a_layer_says_itself_counts_more_than_a_link_below(erofs_disk: Path, tmp_path: Path) -> None:
    link = [Member("usr/lib", tarfile.DIRTYPE), Member("lib", tarfile.SYMTYPE, "usr/lib")]
    for own in (
        [Member("lib", tarfile.DIRTYPE), regular("lib/x")],
        [regular(".wh.lib"), regular("lib/x")],
        [regular("usr"), regular("lib/x")],
    ):
        with merged_of(erofs_disk, write_tars(tmp_path, link, own)) as where:
            assert not (where / "lib").is_symlink()
            assert (where / "lib/x").is_file()


@pytest.mark.parametrize("target", ["loop", "loop/in", "other"])
def test_links_below_that_lead_to_themselves_are_refused(tmp_path: Path, target: str) -> None:
    below = [Member("loop", tarfile.SYMTYPE, target), Member("other", tarfile.SYMTYPE, "loop")]
    tars = write_tars(tmp_path, below, [regular("loop/x")])
    with pytest.raises(ImageError, match=r"cannot index the layers: .*link.*too many symbolic links"):
        erofs.merge(tars, tmp_path / "index", diff_ids=["sha256:0", "sha256:1"])


def test_a_file_that_is_hidden_and_its_links(erofs_disk: Path, tmp_path: Path) -> None:
    """Names are counted as they are in the end."""
    tars = write_tars(
        tmp_path,
        [regular("d/file"), Member("kept", tarfile.LNKTYPE, "d/file"), Member("other", tarfile.LNKTYPE, "d/file")],
        [regular(".wh.d"), regular("new"), Member("also", tarfile.LNKTYPE, "new")],
        [regular("also")],
    )
    with merged_of(erofs_disk, tars) as where:
        assert sorted(path.name for path in where.iterdir()) == ["also", "kept", "new", "other"]
        assert {path.name: path.stat().st_nlink for path in where.iterdir()} == {
            "also": 1,
            "kept": 2,
            "new": 1,
            "other": 2,
        }


def test_a_hundred_layers_are_one_mount(erofs_disk: Path, tmp_path: Path) -> None:
    layers = [[regular(f"file-{number}", b"%d" % number), regular("last", b"%d" % number)] for number in range(120)]
    for number in range(0, 119, 3):
        layers[number + 1].append(regular(f".wh.file-{number}"))
    with merged_of(erofs_disk, write_tars(tmp_path, *layers)) as where:
        assert {path.name for path in where.iterdir()} == {"last"} | {
            f"file-{number}" for number in range(120) if number % 3 or number == 119
        }
        assert all((where / f"file-{number}").read_bytes() == b"%d" % number for number in range(1, 120, 3))
        assert (where / "last").read_bytes() == b"119"


def write_tars(base: Path, *layers: list[Member]) -> list[Path]:
    tars = [base / f"{number}.tar" for number in range(len(layers))]
    for tar, members in zip(tars, layers, strict=True):
        tar.write_bytes(make(members))
    return tars


@contextmanager
def merged_of(disk: Path, tars: list[Path]) -> Iterator[Path]:
    """Merge copies of tars where they can be mounted from, and mount the index."""
    with tempfile.TemporaryDirectory(dir=disk) as name:
        base = Path(name)
        copies = [Path(shutil.copy(tar, base)) for tar in tars]
        erofs.merge(copies, base / "index", diff_ids=[f"sha256:{number}" for number in range(len(copies))])
        with mounted(base / "index", copies, base / "shown") as where:
            yield where
