"""What an overlay's upper changed, as a list and as a layer: applied, the layer gives the tree that was seen."""

from __future__ import annotations

import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pycontainer import ImageError
from pycontainer.distribution.layer import apply
from pycontainer.distribution.pack import list_changes, pack, pack_root, pack_upper
from tests.strategies import Node, trees, write_tree
from tests.trees import CAPABILITY, describe


def _place() -> Path:
    """Return a directory in memory; before Linux 6.6 tmpfs has no user attributes, then it is on disk."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        try:
            os.setxattr(file.fileno(), "user.x", b"")
        except OSError:
            return Path(tempfile.gettempdir())
    return Path("/dev/shm")


SHM = _place()
Tree = dict[str, tuple[object, ...]]


@attrs.frozen
class Overlay:
    """An overlay on a file system in memory: what is below, what was changed, and both together, mounted."""

    base: Path
    upper: Path
    merged: Path

    def changes(self) -> list[str]:
        """Return the changes as docker shows them."""
        with opened(self.upper) as upper, opened(self.base) as base, opened(self.merged) as merged:
            return [str(change) for change in list_changes(upper, base=base, merged=merged)]

    def layer(self, target: Path) -> None:
        """Write the changes as a layer."""
        with (
            target.open("wb") as file,
            opened(self.upper) as upper,
            opened(self.base) as base,
            opened(self.merged) as merged,
        ):
            pack_upper(upper, file.write, base=base, merged=merged)

    def names(self) -> list[str]:
        """Return the names in the layer."""
        path = self.upper.parent / "names.tar"
        self.layer(path)
        with tarfile.open(path) as archive:
            return archive.getnames()


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def mounted(lowers: list[Path], target: Path, options: str = "") -> Iterator[Path]:
    target.mkdir()
    words = ",".join(filter(None, ["lowerdir=" + ":".join(map(str, lowers)), options]))
    subprocess.run(["mount", "-t", "overlay", "-o", words, "overlay", target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


@contextmanager
def overlay(
    fill: Callable[[Path], object], options: str = "index=off,metacopy=off,redirect_dir=off"
) -> Iterator[Overlay]:
    """Give an overlay over what ``fill`` makes."""
    scratch = Path(tempfile.mkdtemp(prefix="pycontainer-changes-", dir=SHM))
    try:
        for name in ("base", "upper", "work", "empty"):
            (scratch / name).mkdir()
        fill(scratch / "base")
        writable = f"upperdir={scratch}/upper,workdir={scratch}/work"
        with mounted([scratch / "base"], scratch / "merged", f"{writable},{options}") as merged:
            yield Overlay(scratch / "base", scratch / "upper", merged)
    finally:
        subprocess.run(["rm", "-rf", scratch], check=True)  # rmtree is recursive, and some trees are deep


def seen_with_layer(given: Overlay) -> Tree:
    """Return the tree that the layer gives over the base."""
    scratch = given.upper.parent
    given.layer(scratch / "layer.tar")
    (scratch / "applied").mkdir()
    apply(scratch / "layer.tar", scratch / "applied")
    with mounted([scratch / "applied", given.base], scratch / "again") as again:
        return described(again)


def described(root: Path) -> Tree:
    # Names of a file that was linked below and changed above are told apart by overlay: links as the tree has them.
    return describe(root, whole_seconds=False, root_too=False)


def is_directory(tree: Tree, name: str) -> bool:
    return name == "." or (name in tree and stat.S_ISDIR(int(str(tree[name][0]), 8)))


# ── any changes ──


def change(root: Path, tree: list[Node], seed: int) -> None:
    """Change a tree in some of the ways in which programs do."""
    pick = random.Random(seed)  # noqa: S311 - hypothesis chose the seed
    paths = sorted(path for path in root.rglob("*"))
    for path in pick.sample(paths, min(len(paths), 6)):
        if not os.path.lexists(path):
            continue
        what = pick.choice(["delete", "replace", "mode", "owner", "time", "write", "attribute", "directory", "same"])
        info = path.lstat()
        is_dir = stat.S_ISDIR(info.st_mode)
        if what in ("delete", "replace", "directory"):
            shutil.rmtree(path) if is_dir else path.unlink()
            if what == "replace":
                path.write_text("instead")
            elif what == "directory":
                path.mkdir()
                (path / "new").write_text("in a new directory")
        elif what == "owner":
            os.chown(path, 7, 8, follow_symlinks=False)
        elif what == "time":
            os.utime(path, ns=(5, 5_000_000_007), follow_symlinks=False)
        elif what == "mode" and not path.is_symlink():
            path.chmod(0o751)
        elif what == "same" and not path.is_symlink():
            path.chmod(0o123)
            path.chmod(stat.S_IMODE(info.st_mode))
        elif stat.S_ISREG(info.st_mode):
            if what == "write":
                with path.open("r+b") as file:
                    file.write(b"changed")
            else:
                os.setxattr(path, "user.new", b"value")
    (root / "written").mkdir(exist_ok=True)
    write_tree(root / "written", tree)


# Each example mounts: to make a failing one smaller takes minutes.
COMMON = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.explicit, Phase.reuse, Phase.generate]
)


@settings(COMMON, max_examples=40)
@given(trees(), trees(6), st.integers(0, 2**32))
def test_a_layer_of_any_changes_gives_the_tree_that_was_seen(below: list[Node], above: list[Node], seed: int) -> None:
    with overlay(lambda base: write_tree(base, below)) as made:
        change(made.merged, above, seed)
        # index=off: what was linked below comes apart when it is copied up, which a layer cannot say of names below
        expected = {name: row[:-1] for name, row in described(made.merged).items()}
        assert {name: row[:-1] for name, row in seen_with_layer(made).items()} == expected


@settings(COMMON, max_examples=25)
@given(trees(), trees(6), st.integers(0, 2**32))
def test_the_list_says_what_two_walks_see(below: list[Node], above: list[Node], seed: int) -> None:
    with overlay(lambda base: write_tree(base, below)) as made:
        before = {name: row[:-1] for name, row in described(made.base).items()}
        change(made.merged, above, seed)
        after = {name: row[:-1] for name, row in described(made.merged).items()}
        found = made.changes()
        assert {line[3:] for line in found if line[0] == "A"} == after.keys() - before.keys()
        gone = {name for name in before.keys() - after.keys() if is_directory(after, str(Path(name).parent))}
        assert {line[3:] for line in found if line[0] == "D"} == gone
        differ = {name for name in before.keys() & after.keys() if before[name] != after[name]}
        listed = {line[3:] for line in found if line[0] == "C"}
        assert differ <= listed
        changed = {name for line in found if (name := line[3:])}
        linked = {name for name in listed if (made.merged / name).lstat().st_nlink > 1}
        parents = {str(parent) for name in changed for parent in Path(name).parents}
        assert listed - differ - parents - linked == set()


# ── one thing at a time ──


def sample(base: Path) -> None:
    (base / "etc/conf.d").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (base / "etc/conf.d" / name).write_text(name * 5000)
    (base / "usr/share/doc").mkdir(parents=True)
    (base / "usr/share/doc/file").write_text("doc")
    (base / "empty").mkdir()
    (base / "link").symlink_to("etc")


def test_what_is_copied_up_and_the_same_is_no_change() -> None:
    with overlay(sample) as made:
        file = made.merged / "etc/conf.d/a"
        file.chmod(0o600)
        file.chmod(0o644)
        os.setxattr(file, "user.x", b"1")
        os.removexattr(file, "user.x")
        (made.merged / "usr/share/doc").chmod(0o700)
        (made.merged / "usr/share/doc").chmod(0o755)
        assert (made.upper / "etc/conf.d/a").exists()
        assert made.changes() == []
        assert made.names() == ["."]
        time = file.stat().st_mtime_ns
        file.write_text("A" * 5000)
        os.utime(file, ns=(time, time))
        assert made.changes() == ["C /etc", "C /etc/conf.d", "C /etc/conf.d/a"]


def test_an_opaque_directory_is_a_mark_in_a_layer_and_names_in_the_list() -> None:
    with overlay(sample) as made:
        shutil.rmtree(made.merged / "etc/conf.d")
        (made.merged / "etc/conf.d").mkdir()
        (made.merged / "etc/conf.d/b").write_text("new")
        shutil.rmtree(made.merged / "empty")
        (made.merged / "empty").mkdir()
        changed = ["C /empty", "C /etc", "C /etc/conf.d"]
        files = ["D /etc/conf.d/a", "C /etc/conf.d/b", "D /etc/conf.d/c"]
        assert made.changes() == changed + files
        assert made.names() == [".", "empty", "etc", "etc/conf.d", "etc/conf.d/.wh..wh..opq", "etc/conf.d/b"]
        assert seen_with_layer(made) == described(made.merged)


def test_directories_that_moved_and_files_without_content_are_read_from_the_whole() -> None:
    with overlay(sample, "index=off,metacopy=on,redirect_dir=on") as made:
        (made.merged / "etc").rename(made.merged / "moved")
        (made.merged / "moved/conf.d/a").unlink()
        (made.merged / "usr/share/doc/file").chmod(0o600)
        assert "trusted.overlay.redirect" in os.listxattr(made.upper / "moved")
        assert "trusted.overlay.metacopy" in os.listxattr(made.upper / "usr/share/doc/file")
        assert made.changes() == [
            "D /etc",
            "A /moved",
            "A /moved/conf.d",
            "A /moved/conf.d/b",
            "A /moved/conf.d/c",
            "C /usr",
            "C /usr/share",
            "C /usr/share/doc",
            "C /usr/share/doc/file",
        ]
        assert seen_with_layer(made) == described(made.merged)
        missing = pytest.raises(ImageError, match="moved from a lower layer: 'moved'")
        with opened(made.upper) as upper, opened(made.base) as base, missing:
            pack_upper(upper, lambda _data: None, base=base)


def test_files_with_a_mark_stand_for_deletions_too() -> None:
    scratch = Path(tempfile.mkdtemp(prefix="pycontainer-changes-", dir=SHM))
    try:
        (scratch / "base").mkdir()
        sample(scratch / "base")
        (scratch / "upper/etc/conf.d").mkdir(parents=True)
        os.setxattr(scratch / "upper/etc/conf.d", "trusted.overlay.opaque", b"x")
        for name in ("a", "b"):
            (scratch / "upper/etc/conf.d" / name).touch()
        os.setxattr(scratch / "upper/etc/conf.d/a", "trusted.overlay.whiteout", b"")
        with opened(scratch / "upper") as upper, opened(scratch / "base") as base:
            found = [str(change) for change in list_changes(upper, base=base)]
        assert found == ["C /etc", "C /etc/conf.d", "D /etc/conf.d/a", "C /etc/conf.d/b"]
    finally:
        shutil.rmtree(scratch)


def test_names_of_one_file_stay_together() -> None:
    with overlay(sample) as made:
        os.link(made.merged / "etc/conf.d/c", made.merged / "one")
        os.link(made.merged / "one", made.merged / "zwei")
        (made.merged / "etc/conf.d/c").chmod(0o644)
        with tempfile.NamedTemporaryFile(dir=SHM) as file:
            made.layer(Path(file.name))
            with tarfile.open(file.name) as archive:
                links = {member.name: member.linkname for member in archive if member.islnk()}
        assert links == {"one": "etc/conf.d/c", "zwei": "etc/conf.d/c"}
        assert seen_with_layer(made) == described(made.merged)


def test_odd_things_survive() -> None:
    with overlay(sample) as made:
        root = made.merged
        with (root / "sparse").open("wb") as file:
            file.seek(8 << 30)
            file.write(b"end")
        (root / "zero").touch()
        os.setxattr(root / "zero", "security.capability", CAPABILITY)
        os.setxattr(root / "empty", "user.percent%=", b"\0value")
        os.mknod(root / "device", stat.S_IFBLK | 0o640, os.makedev(259, 70000))
        os.mkfifo(root / "fifo")
        (root / "n\udcff").touch()
        (root / ("x" * 255)).symlink_to("y" * 4000)
        os.chown(root / "zero", 4_000_000_000, 3_000_000, follow_symlinks=False)
        for name, time in (("zero", -1_500_000_001), ("fifo", 10**19 // 2), ("device", 1_000_000_007)):
            os.utime(root / name, ns=(time, time))
        expected = described(root)
        got = seen_with_layer(made)
        assert got == expected
        assert (made.upper.parent / "layer.tar").stat().st_size < 1 << 20


def test_sockets_are_listed_and_not_packed() -> None:
    import socket

    with overlay(sample) as made:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(made.merged / "socket"))
        assert made.changes() == ["A /socket"]
        assert made.names() == ["."]


def test_the_same_upper_gives_the_same_layer_in_any_order_of_the_directory() -> None:
    with overlay(sample) as made:
        names = [f"name-{number}" for number in range(3000)]
        for name in random.Random(1).sample(names, len(names)):  # noqa: S311
            (made.merged / name).write_text(name)
        for path in made.merged.iterdir():
            os.utime(path, (1, 1), follow_symlinks=False)
        os.utime(made.merged, (1, 1))
        made.layer(made.base.parent / "one.tar")
        copy = made.base.parent / "copy"
        subprocess.run(["cp", "-a", made.upper, copy], check=True)
        attrs.evolve(made, upper=copy).layer(made.base.parent / "two.tar")
        assert (made.base.parent / "one.tar").read_bytes() == (made.base.parent / "two.tar").read_bytes()


# ── hostile uppers ──


def test_a_name_that_means_a_deletion_is_refused() -> None:
    with overlay(sample) as made:
        (made.merged / "etc/.wh.a").touch()
        assert made.changes() == ["C /etc", "A /etc/.wh.a"]
        with pytest.raises(ImageError, match=r"'etc/\.wh\.a': names that start with '\.wh\.' mean deletions"):
            made.names()


def test_depth_costs_no_descriptors() -> None:
    with overlay(sample) as made:
        fd = os.open(made.merged / "empty", os.O_RDONLY)
        for number in range(2000):
            os.mkdir("d", dir_fd=fd)
            if number % 100 == 0:
                os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        try:
            assert len(made.changes()) == 1 + 2000 + 20
            assert len(made.names()) == 2 + 2000 + 20
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_path_that_no_layer_can_have_is_refused_with_its_beginning() -> None:
    with overlay(sample) as made:
        fd = os.open(made.merged, os.O_RDONLY)
        for _ in range(20):
            os.mkdir("e" * 250, dir_fd=fd)
            below = os.open("e" * 250, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
        with pytest.raises(ImageError, match="longer than 4095"):
            made.names()


def test_links_of_the_upper_are_not_followed() -> None:
    with overlay(sample) as made:
        (made.merged / "etc/shadow").symlink_to("/etc/shadow")
        (made.merged / "out").symlink_to("/proc")
        assert made.changes() == ["C /etc", "A /etc/shadow", "A /out"]
        assert seen_with_layer(made) == described(made.merged)


MANY = """
import os, resource, sys
from pycontainer.distribution.pack import list_changes, pack_upper
upper, base = (os.open(path, os.O_RDONLY) for path in sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(pack_upper(upper, lambda data: None, base=base).entries, sum(1 for _ in list_changes(upper, base=base)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_hundred_thousand_files_are_not_held_in_memory() -> None:
    scratch = Path(tempfile.mkdtemp(prefix="pycontainer-changes-", dir=SHM))
    try:
        (scratch / "base").mkdir()
        for directory in range(100):
            path = scratch / f"upper/{directory}"
            path.mkdir(parents=True)
            fd = os.open(path, os.O_RDONLY)
            for number in range(1000):
                os.mknod(f"file-{number}", dir_fd=fd)
            os.close(fd)
        done = subprocess.run(
            [sys.executable, "-c", MANY, scratch / "upper", scratch / "base"],
            capture_output=True,
            check=True,
            text=True,
        )
        counts, kilobytes = done.stdout.splitlines()
        assert counts == "100101 100100"
        assert int(kilobytes) < 8 << 10
    finally:
        shutil.rmtree(scratch)


# ── whole trees ──


def test_a_whole_tree_comes_back(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    sample(tmp_path / "tree")
    with (tmp_path / "tree.tar").open("wb") as file, opened(tmp_path / "tree") as root:
        packed = pack_root(root, file.write)
    assert packed.entries == 12
    (tmp_path / "again").mkdir()
    apply(tmp_path / "tree.tar", tmp_path / "again", marks="none")
    whole = describe(tmp_path / "tree", whole_seconds=False)
    assert describe(tmp_path / "again", whole_seconds=False) == whole
    # As layers that are imported have whole seconds, so that they do not grow by a header for each file.
    with (tmp_path / "import.tar").open("wb") as file:
        assert pack(tmp_path / "tree", file.write) == packed.entries
    assert (tmp_path / "import.tar").stat().st_size < (tmp_path / "tree.tar").stat().st_size


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree/file").open("wb") as file:
        file.write(b"x" * (3 << 20))

    def cut(_data: bytes) -> None:
        os.truncate(tmp_path / "tree/file", 1000)

    with pytest.raises(ImageError, match="becomes shorter meanwhile: 'file': something writes to it"):
        pack(tmp_path / "tree", cut)
