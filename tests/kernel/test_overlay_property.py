"""Whatever a container does to its files, no byte of an image changes, and the next container starts from the image."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer import Engine
from pycontainer.model import IdMap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycontainer import Image

APPLETS = "cat chmod chown cp dd find ln ls mkdir mkfifo mknod mv rm rmdir sh sort stat sync touch truncate".split()  # noqa: SIM905
PLACES = (
    "/data/a",
    "/data/b",
    "/data/d",
    "/data/d/x",
    "/data/d/y",
    "/data/e",
    "/data/l",
    "/data/d/z/w",
    "/new",
    "/data",
)
MAPS = (IdMap(0, 100_000, 65_536),)
places = st.sampled_from(PLACES)
modes = st.sampled_from(["000", "644", "777", "4755", "1777"])
owners = st.sampled_from(["0:0", "1:2", "65534:65534"])
names = st.text(alphabet="abcdefghijklmnop", min_size=1, max_size=8)

operations = st.one_of(
    st.builds("echo {1} > {0}".format, places, names),
    st.builds("echo {1} >> {0}".format, places, names),
    st.builds("truncate -s {1} {0}".format, places, st.sampled_from([0, 1, 70_000])),
    st.builds("dd if=/dev/zero of={0} bs=1 seek={1} count=1 conv=notrunc".format, places, st.integers(0, 9000)),
    st.builds("rm -rf {0}".format, places),
    st.builds("rmdir {0}".format, places),
    st.builds("mkdir -p {0}".format, places),
    st.builds("mv {0} {1}".format, places, places),
    st.builds("cp -a {0} {1}".format, places, places),
    st.builds("ln {0} {1}".format, places, places),
    st.builds("ln -sfn {0} {1}".format, places, places),
    st.builds("chmod {1} {0}".format, places, modes),
    st.builds("chmod -R {1} {0}".format, places, modes),
    st.builds("chown -h {1} {0}".format, places, owners),
    st.builds("touch -d @{1} {0}".format, places, st.integers(0, 2_000_000_000)),
    st.builds("mknod {0} c 0 0".format, places),  # what overlayfs itself takes for "deleted"
    st.builds("mkfifo {0}".format, places),
    st.builds("rm -rf {0}; mkdir {0}; echo {1} > {0}/{1}".format, places, names),
    st.builds("find {0} -type f -exec dd if=/dev/urandom of={{}} bs=10 count=1 conv=notrunc ';'".format, places),
    st.just("rm -rf /data /bin/cat /etc"),
    st.just("sync"),
)


@attrs.frozen
class Seen:
    """Everything that can be seen of a file."""

    mode: int
    owner: tuple[int, int]
    device: int
    size: int
    links: int
    mtime: int
    content: str
    attributes: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, path: Path) -> Seen:
        """Look at a file."""
        found = path.lstat()
        content = ""
        if stat.S_ISREG(found.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(found.st_mode):
            content = str(path.readlink())
        names = os.listxattr(path, follow_symlinks=False)
        return cls(
            found.st_mode,
            (found.st_uid, found.st_gid),
            found.st_rdev,
            0 if stat.S_ISDIR(found.st_mode) else found.st_size,
            found.st_nlink,
            found.st_mtime_ns,
            content,
            tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names)),
        )


def seen(engine: Engine) -> dict[str, Seen]:
    """Return all that the store keeps of images: layers, blobs, index."""
    roots = [engine.root / name for name in ("layers", "blobs", "cache", "index.json", "oci-layout")]
    return {str(p): Seen.of(p) for root in roots if root.exists() for p in (root, *sorted(root.rglob("*")))}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, busybox_rootfs: Path) -> Iterator[tuple[Engine, Image]]:
    scratch = tmp_path_factory.mktemp("overlay")
    tree = scratch / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(busybox_rootfs / "bin/busybox", tree / "bin/busybox")
    for name in APPLETS:
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "data/d/z").mkdir(parents=True)
    (tree / "data/e").mkdir(mode=0o700)
    for name in ("a", "d/x", "d/z/w"):
        (tree / "data" / name).write_text(name * 5000)
    os.link(tree / "data/a", tree / "data/b")
    (tree / "data/l").symlink_to("d/x")
    os.chown(tree / "data/d/x", 1000, 1000)
    with Engine(scratch / "engine") as engine:
        image = engine.images.import_rootfs(tree, reference="small:test")
        engine.run(image, ["/bin/ls"])
        engine.run(image, ["/bin/ls"], userns=MAPS)
        yield engine, image


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(operations, min_size=1, max_size=12), mapped=st.booleans())
def test_no_sequence_of_operations_changes_an_image(
    small: tuple[Engine, Image], script: list[str], mapped: bool
) -> None:
    engine, image = small
    before = seen(engine)
    # Through the shell's own "." so that the script goes on after what fails.
    text = "\n".join(f"({line}) 2>/dev/null" for line in script)
    result = engine.run(
        image, ["/bin/busybox", "sh", "-c", f"{text}\nexit 0"], timeout=20, userns=MAPS if mapped else ()
    )
    assert result.exit_code == 0, result.stderr
    assert seen(engine) == before


def test_each_container_starts_from_the_image(small: tuple[Engine, Image]) -> None:
    engine, image = small
    look = ["/bin/sh", "-c", "find /data /bin | sort; cat /data/a /data/d/x; stat -c %a:%u:%Y /data /data/a /data/d/x"]
    before = engine.run(image, look).stdout
    assert before
    engine.run(image, ["/bin/sh", "-c", "echo x > /data/a; rm -rf /data/d; mkdir /data/d; touch /data/d/q; rm /bin/ls"])
    assert engine.run(image, look).stdout == before


def test_a_file_of_the_image_that_is_open_or_mapped_is_not_written_through(small: tuple[Engine, Image]) -> None:
    """Opened before the copy is made, written after it."""
    engine, image = small
    before = seen(engine)
    script = (
        "exec 8</data/a; exec 9<>/data/a; echo new >&9; cat <&8 >/dev/null; echo x > /proc/self/fd/8; echo y >> /data/b"
    )
    assert engine.run(image, ["/bin/sh", "-c", script]).exit_code == 0
    assert seen(engine) == before


def test_privileged_containers_do_not_change_images_by_their_files_either(small: tuple[Engine, Image]) -> None:
    engine, image = small
    before = seen(engine)
    engine.run(image, ["/bin/sh", "-c", "rm -rf /data; echo x > /bin/cat; chmod -R 777 /bin"], privileged=True)
    assert seen(engine) == before
