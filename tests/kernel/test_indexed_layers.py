"""Layers that are indexed tars: seen as directories are, on every kernel's way, and nothing of them stays mounted."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pycontainer import Engine, IdMap
from pycontainer.errors import StoreError
from pycontainer.images import Images
from pycontainer.runtime import overlay
from pycontainer.store import Store, shown
from tests.archives import docker_archive, folder, member, tar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pycontainer import Image


@pytest.fixture(scope="module")
def base_layer() -> bytes:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    names = ("cat", "find", "ls", "stat", "true")
    return tar(
        folder("bin"),
        member("bin/sh", Path(busybox).read_bytes(), mode=0o755),
        *(member(f"bin/{name}", type=tarfile.LNKTYPE, linkname="bin/sh") for name in names),
        folder("etc"),
        member("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:7:8::/:/bin/sh\n"),
        folder("data", uid=7, gid=8),
        member("data/old", b"old", uid=7, gid=8, mode=0o640),
        member("data/gone", b"gone"),
    )


UPPER = tar(folder("data", uid=7, gid=8), member("data/.wh.gone"), member("data/new", b"new", uid=7))
IMPLIED = tar(member("data/more/x", b"x"))


def load(engine: Engine, path: Path, layers: Sequence[bytes]) -> Image:
    path.write_bytes(docker_archive(layers))
    return engine.images.load(path)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(root=tmp_path / "store") as opened:
        yield opened


def store_of(engine: Engine) -> Store:
    return engine._store


@pytest.fixture
def image(engine: Engine, base_layer: bytes, tmp_path: Path) -> Image:
    loaded = load(engine, tmp_path / "x.tar", [base_layer, UPPER])
    if not store_of(engine).indexed:
        pytest.skip("this kernel mounts no erofs from files here")
    return loaded


def run(engine: Engine, image: Image, script: str, **options: object) -> str:
    result = engine.run(image, ["sh", "-c", script], network="none", check=True, timeout=20, **options)  # type: ignore[arg-type]
    return result.stdout.decode()


LOOK = "cat data/old data/new; ls data; stat -c '%a %u %g' data/old; ls -l /bin/true >/dev/null && echo fine"
SEEN = "oldnewnew\nold\n640 7 8\nfine\n"


def test_a_container_sees_what_it_would_see_in_directories(engine: Engine, image: Image) -> None:
    assert not any(path.is_dir() for path in (store_of(engine).root / "layers/sha256").iterdir())
    assert run(engine, image, LOOK) == SEEN
    assert run(engine, image, "echo more >> data/old; rm data/new; cat data/old; ls data") == "oldmore\nold\n"
    assert run(engine, image, LOOK) == SEEN
    assert run(engine, image, "id -u; cat data/old", user="app") == "7\nold"


def test_all_files_have_the_device_number_of_their_directory(engine: Engine, image: Image) -> None:
    """Programs that stay on one file system would leave out files of layers otherwise."""
    numbers = run(engine, image, "echo x > written; stat -c %d / /data /data/old /data/new /bin/sh /written").split()
    assert len(numbers) == 6
    assert len(set(numbers)) == 1
    assert "/data/old" in run(engine, image, "find / -xdev -type f").split()


@pytest.mark.parametrize("version", [(6, 18), (6, 12), (6, 5)])
@pytest.mark.parametrize("userns", [False, True])
@pytest.mark.parametrize("loops", [False, True])
def test_the_ways_of_older_kernels(
    engine: Engine,
    image: Image,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int],
    userns: bool,
    loops: bool,
) -> None:
    if loops and not Path("/dev/loop-control").exists():
        pytest.skip("there are no loop devices")
    monkeypatch.setattr(overlay, "kernel_version", lambda: version)
    views = store_of(engine)._shown._views
    views.loops = loops
    assert run(engine, image, LOOK, userns=[IdMap(0, 200_000, 65_536)] if userns else ()) == SEEN
    assert bool(loop_devices(store_of(engine).root)) == loops
    engine.close()
    assert not loop_devices(store_of(engine).root)


def loop_devices(root: Path) -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = path.read_text().strip()
        except OSError:
            continue  # detached just now
        if text.startswith(str(root)):
            found.append(text)
    return found


CHILD = """
import os, sys
from pycontainer.store import Store
store = Store.open(sys.argv[1])
store._shown._views.loops = sys.argv[3] == "loops"
for lower in store.acquire(sys.argv[2]):
    os.listdir(lower)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("loops", ["loops", "files"])
def test_nothing_stays_mounted_after_a_kill(engine: Engine, image: Image, loops: str) -> None:
    root = store_of(engine).root
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, root, image.id, loops], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert bool(loop_devices(root)) == (loops == "loops")
        child.send_signal(signal.SIGKILL)
    assert not loop_devices(root)
    engine.images.remove(image.id, force=True)
    assert list(store_of(engine).blobs.list()) == []


def test_many_layers_become_one(engine: Engine, base_layer: bytes, tmp_path: Path) -> None:
    layers = [
        base_layer,
        *(tar(folder(f"d{number % 3}"), member(f"d{number % 3}/f{number}", b"%d" % number)) for number in range(50)),
        UPPER,
    ]
    image = load(engine, tmp_path / "x.tar", layers)
    if not store_of(engine).indexed:
        pytest.skip("this kernel mounts no erofs from files here")
    store = store_of(engine)
    assert len(store.acquire(image.id)) == 1
    store.release(image.id)
    assert run(engine, image, LOOK) == SEEN
    assert run(engine, image, "cat d1/f49; ls d0 d1 d2 | grep -c f") == "49" + "50\n"
    row = store.db.by_id(image.id)
    assert row is not None
    assert store.snapshots.has_index(row.merged)
    engine.images.remove(image.id, force=True)
    assert store.snapshots.list() == set()


def test_layers_with_parents_of_others_and_both_forms(engine: Engine, base_layer: bytes, tmp_path: Path) -> None:
    """An image from before the kernel could mount indexes shares its layers with one from after."""
    store = store_of(engine)
    store.indexed = False
    first = load(engine, tmp_path / "x.tar", [base_layer, IMPLIED])
    look = "stat -c '%a %u %g' data; cat data/more/x data/old"
    seen = "755 7 8\nxold"
    assert run(engine, first, look) == seen
    store.indexed = None
    second = load(engine, tmp_path / "y.tar", [base_layer, IMPLIED, UPPER])
    if not store.indexed:
        pytest.skip("this kernel mounts no erofs from files here")
    assert store.snapshots.has_directory(first.layers[0])
    row = store.db.by_id(second.id)
    assert row is not None
    assert store.snapshots.has_index(row.merged)
    assert run(engine, second, look + "; cat data/new") == seen + "new"
    assert run(engine, first, look) == seen
    engine.images.remove(first.id, force=True)
    assert run(engine, second, look + "; cat data/new") == seen + "new"
    store.indexed = False
    third = load(engine, tmp_path / "z.tar", [base_layer, IMPLIED, UPPER])
    assert third.id == second.id
    assert run(engine, third, look + "; cat data/new") == seen + "new"
    engine.images.remove(third.id, force=True)
    assert store.snapshots.list() == set()
    assert store.blobs.list() == {}


def test_mounts_are_shared_kept_and_limited(
    engine: Engine, base_layer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "_KEPT", 3)
    images = [load(engine, tmp_path / "x.tar", [base_layer, tar(member(f"{n}", b"x"))]) for n in range(5)]
    store = store_of(engine)
    if not store.indexed:
        pytest.skip("this kernel mounts no erofs from files here")
    views = store._shown._views
    held = [store.acquire(image.id) for image in images]
    assert len(views) == 6  # the base once, all in use
    for image in images:
        store.release(image.id)
    assert store.acquire(images[4].id) == held[4]
    store.release(images[4].id)
    assert len(views) == 3
    assert [run(engine, image, f"cat {number}") for number, image in enumerate(images)] == ["x"] * 5


def test_a_program_that_closes_all_descriptors_gets_new_mounts(engine: Engine, image: Image) -> None:
    assert run(engine, image, LOOK) == SEEN
    lowers = store_of(engine).acquire(image.id)
    for lower in lowers:
        os.close(int(lower.split("/")[4]))
    store_of(engine).release(image.id)
    taken = os.open("/", os.O_RDONLY)  # the number that the first one had, most likely
    try:
        assert str(taken) in {lower.split("/")[4] for lower in lowers}
        assert run(engine, image, LOOK) == SEEN
    finally:
        os.close(taken)


def test_what_another_process_removed_is_let_go(engine: Engine, image: Image) -> None:
    assert run(engine, image, LOOK) == SEEN
    views = store_of(engine)._shown._views
    assert len(views) == 2
    with Store.open(store_of(engine).root) as other:
        Images(other).remove(image.id, force=True)
    host = engine.images.host()
    engine.run(host, ["true"], network="none", check=True, timeout=20)
    assert len(views) == 1


def test_a_forked_child_shares_the_mounts(engine: Engine, image: Image) -> None:
    (top, *_) = store_of(engine).acquire(image.id)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            store = store_of(engine)
            assert store.acquire(image.id)[0] == top
            assert "new" in os.listdir(f"{top}/data")  # noqa: PTH208
            store.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert "new" in os.listdir(f"{top}/data")  # noqa: PTH208
    store_of(engine).release(image.id)
    assert run(engine, image, LOOK) == SEEN


def test_views_are_read_only_and_trust_nothing(engine: Engine, image: Image) -> None:
    (top, *_) = store_of(engine).acquire(image.id)
    flags = os.statvfs(top).f_flag
    assert flags & os.ST_RDONLY
    assert flags & os.ST_NOSUID
    assert flags & os.ST_NODEV
    store_of(engine).release(image.id)


def test_a_missing_or_damaged_part_is_named(engine: Engine, image: Image) -> None:
    store = store_of(engine)
    tar_path, index = store.blobs.path(image.layers[0]), store.snapshots.index(image.layers[0])
    tar_path.rename(tar_path.with_name("away"))
    with pytest.raises(StoreError, match=r"(?s)mount the layer .*system check --repair"):
        engine.run(image, ["true"], network="none")
    tar_path.with_name("away").rename(tar_path)
    data = index.read_bytes()
    index.write_bytes(data[:1024] + bytes(128) + data[1152:])
    with pytest.raises(StoreError, match=r"(?s)mount the layer .*system check --repair"):
        engine.run(image, ["true"], network="none")
    index.write_bytes(data)
    assert run(engine, image, LOOK) == SEEN
    assert stat.S_IMODE(index.stat().st_mode) == 0o600
