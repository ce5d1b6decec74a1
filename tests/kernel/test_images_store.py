"""The store: shared by threads and processes, whole after any kill, and never somebody else's directory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pycontainer.errors import Conflict, ImageError, InvalidReference, NotFound, StoreError
from pycontainer.images import Images
from pycontainer.model import ImageConfig
from pycontainer.store import Store
from pycontainer.store.locks import INDEX
from tests.trees import describe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(params=["indexes", "directories"])
def store(root: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    with Store.open(root) as opened:
        if request.param == "directories":
            opened.indexed = False
        yield opened


@pytest.fixture
def images(store: Store) -> Images:
    return Images(store)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    (path / "etc").mkdir(parents=True)
    (path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    return path


def check_whole(root: Path) -> list[str]:
    """Check that a store holds what its images need and nothing else; return the ids of the images."""
    with Store.open(root) as store:
        assert list((root / "tmp").iterdir()) == []
        needed = store.db.content()
        assert needed.blobs <= set(store.blobs.list()) <= needed.blobs | needed.tars
        assert store.snapshots.list() == needed.snapshots
        rows = store.db.images()
        index = json.loads((root / "index.json").read_text())
        assert {item["digest"] for item in index["manifests"]} == {row.digest for row in rows}
        found = [image.id for image in Images(store).list()]
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in root.iterdir()} == {
        *("lock", "state.db", "oci-layout", "index.json", "blobs", "layers", "tmp"),
    }
    return found


# ── opening ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_store_opens_twice_and_closes_twice(root: Path, tree: Path) -> None:
    with Store.open(root) as first, Store.open(root) as second:
        image = Images(first).import_rootfs(tree, reference="one")
        assert Images(second).get("one") == image
        first.close()
        first.close()
        with pytest.raises(StoreError, match="closed"):
            Images(first).list()
        assert Images(second).get("one") == image


def test_a_forgotten_store_warns(root: Path) -> None:
    store = Store.open(root)
    with pytest.warns(ResourceWarning, match="never closed"):
        store.__del__()


def test_directories_of_others_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("mine")
    with pytest.raises(StoreError, match="not empty and not a store"):
        Store.open(other)
    (other / "oci-layout").write_text("{}")
    with pytest.raises(StoreError, match="OCI image layout of another program"):
        Store.open(other)
    assert sorted(path.name for path in other.iterdir()) == ["file", "oci-layout"]
    with pytest.raises(StoreError, match="it is a file"):
        Store.open(other / "file")


def test_a_store_of_a_newer_version_is_refused(root: Path) -> None:
    Store.open(root).close()
    connection = sqlite3.connect(root / "state.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="version 99, this pycontainer knows versions up to 2"):
        Store.open(root)


def test_a_database_of_another_program_is_refused(root: Path) -> None:
    Store.open(root).close()
    connection = sqlite3.connect(root / "state.db")
    connection.execute("PRAGMA application_id = 7")
    connection.close()
    with pytest.raises(StoreError, match="database of another program"):
        Store.open(root)


def test_a_damaged_database_is_an_error_that_says_so(root: Path) -> None:
    Store.open(root).close()
    (root / "state.db").write_bytes(b"x" * 8192)
    with pytest.raises(StoreError, match="no SQLite database"):
        Store.open(root)


def test_a_read_only_store_is_an_error_that_says_so(root: Path) -> None:
    Store.open(root).close()
    subprocess.run(["mount", "--bind", root, root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
        with pytest.raises(StoreError, match="writable file system"):
            Store.open(root)
    finally:
        subprocess.run(["umount", root], check=True)


def test_what_a_dead_process_left_goes_with_the_next_open(root: Path, tree: Path) -> None:
    with Store.open(root) as store:
        Images(store).import_rootfs(tree, reference="one")
    left = root / "tmp/0123"
    (left / "sha256-x/sub").mkdir(parents=True)
    (root / "blobs/sha256" / ("0" * 64)).write_text("published, never recorded")
    (root / "layers/sha256" / ("1" * 64)).mkdir()
    (root / "index.json").write_text("cut sho")
    assert len(check_whole(root)) == 1


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_way_to_name_an_image(images: Images, tree: Path) -> None:
    image = images.import_rootfs(tree, reference="registry.example/team/app:1")
    digits = image.id.removeprefix("sha256:")
    whole = "registry.example/team/app"
    for name in (image, f"{whole}:1", image.id, digits, digits[:12], digits[:1], image.id[:12], image.digest):
        assert images.get(name) == image
        assert images.exists(name if isinstance(name, str) else name.id)
    assert images.get(f"{whole}@{image.digest}") == images.get(f"{whole}:1@{image.digest}") == image
    for name in (
        f"{whole}:2",
        "app",
        "f" * 64,
        "sha256:",
        "sha256:xyz",
        f"other@{image.digest}",
        f"{whole}:2@{image.digest}",
    ):
        with pytest.raises(NotFound):
            images.get(name)
        assert not images.exists(name)
    with pytest.raises(InvalidReference):
        images.get("Not A Name")


def test_a_missing_image_lists_names_that_are_alike(images: Images, tree: Path) -> None:
    with pytest.raises(NotFound, match="holds no named image yet"):
        images.get("debian")
    images.import_rootfs(tree, reference="debian:bookworm")
    images.tag("debian:bookworm", "registry.example/python:3")
    with pytest.raises(NotFound, match=r"'debain'.*there is debian:bookworm"):
        images.get("debain")
    with pytest.raises(NotFound, match=r"there is registry.example/python:3"):
        images.get("pyton:3")


def test_a_prefix_of_several_ids_is_a_conflict(images: Images, tree: Path) -> None:
    for number in range(17):
        images.import_rootfs(tree, config=ImageConfig(labels={"n": str(number)}))
    first = [image.id.removeprefix("sha256:")[0] for image in images.list()]
    twice = next(digit for digit in first if first.count(digit) > 1)
    with pytest.raises(Conflict, match="more digits"):
        images.get(twice)


def test_a_name_moves_to_the_newer_image(images: Images, tree: Path) -> None:
    old = images.import_rootfs(tree, reference="app")
    (tree / "new").write_text("new")
    new = images.import_rootfs(tree, reference="app")
    assert images.get("app").id == new.id != old.id
    assert images.get(old.id).references == ()
    assert [image.id for image in images.list()] == [new.id, old.id]


def test_removal_is_that_of_docker(images: Images, store: Store, tree: Path) -> None:
    image = images.import_rootfs(tree, reference="app:1")
    assert images.tag("app:1", "app:2").references == ("app:1", "app:2")
    images.remove("app:1")
    assert images.get(image.id).references == ("app:2",)
    images.tag(image, "app:3")
    with pytest.raises(Conflict, match=r"app:2, app:3.*force=True"):
        images.remove(image.id)
    images.remove(image.short_id, force=True)
    assert images.list() == []
    again = images.import_rootfs(tree, reference="app:1")
    assert again.id == image.id
    images.remove("app:1")
    with pytest.raises(NotFound):
        images.remove("app:1")
    assert store.blobs.list() == {}
    assert store.snapshots.list() == set()
    assert json.loads((store.root / "index.json").read_text())["manifests"] == []


def test_images_share_layers_and_removal_leaves_the_other_whole(images: Images, store: Store, tree: Path) -> None:
    one = images.import_rootfs(tree, reference="one", config=ImageConfig(command=["one"]))
    two = images.import_rootfs(tree, reference="two", config=ImageConfig(command=["two"]))
    assert one.layers == two.layers
    images.remove("one")
    (path,) = store.acquire(two.id)
    assert describe(Path(path), root_too=False) == describe(tree, root_too=False)
    store.release(two.id)


def test_names_that_come_and_go_meanwhile(
    images: Images, store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images.import_rootfs(tree, reference="app:1")
    delete, untag = store.db.remove_image, store.db.remove_reference

    def named_before(identity: str, names: Iterable[str] | None = None) -> bool:
        monkeypatch.setattr(store.db, "remove_image", delete)
        images.tag(identity, "app:2")
        return delete(identity, names)

    def removed_before(name: str, identity: str, *, keep_last: bool) -> bool:
        monkeypatch.setattr(store.db, "remove_reference", untag)
        return untag(name, identity, keep_last=keep_last) and untag(name, identity, keep_last=keep_last)

    monkeypatch.setattr(store.db, "remove_image", named_before)
    images.remove("app:1")
    assert images.get(image.id).references == ("app:2",)
    images.tag("app:2", "app:3")
    monkeypatch.setattr(store.db, "remove_reference", removed_before)
    with pytest.raises(NotFound):
        images.remove("app:2")
    assert images.get(image.id).references == ("app:3",)
    images.untag("app:3")
    monkeypatch.setattr(store.db, "remove_image", named_before)
    assert images.prune().deleted == ()
    assert images.get(image.id).references == ("app:2",)


def test_an_interrupted_collection_goes_on_with_the_next_open(
    images: Images, store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.import_rootfs(tree, reference="app:1")

    def interrupted(_digest: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store.blobs, "remove", interrupted)
        with pytest.raises(KeyboardInterrupt):
            images.remove("app:1")
    assert len(store.blobs.list()) > 0
    assert check_whole(store.root) == []


# ── in use ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_image_in_use_stays(images: Images, store: Store, tree: Path, root: Path) -> None:
    image = images.import_rootfs(tree, reference="app")
    store.acquire(image.id)
    store.acquire(image.id)
    with Store.open(root) as other:
        for collection in (images, Images(other)):
            with pytest.raises(Conflict, match="in use"):
                collection.remove(image.id, force=True)
        store.release(image.id)
        with pytest.raises(Conflict):
            Images(other).remove("app")
        store.release(image.id)
        with pytest.raises(ValueError, match="more often"):
            store.release(image.id)
        Images(other).remove("app")
    with pytest.raises(NotFound):
        store.acquire(image.id)
    with pytest.raises(ValueError, match="more often"):
        store.release(image.id)


CHILD = """
import sys
from pycontainer.store import Store
from pycontainer.store.locks import INDEX
store = Store.open(sys.argv[1])
store.acquire(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_user_lets_go(images: Images, root: Path, tree: Path) -> None:
    image = images.import_rootfs(tree, reference="app")
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, root, image.id], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(Conflict):
            images.remove("app")
        child.kill()
    images.remove("app")


def test_a_forked_child_works_and_has_no_locks_of_its_parent(images: Images, store: Store, tree: Path) -> None:
    image = images.import_rootfs(tree, reference="app")
    store.acquire(image.id)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert images.get("app") == image
            images.tag("app", "by-the-child")
            with pytest.raises(ValueError, match="more often"):
                store.release(image.id)
            store.acquire(image.id)
            store.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert images.exists("by-the-child")
    with pytest.raises(Conflict):
        images.remove(image.id, force=True)
    store.release(image.id)
    images.remove(image.id, force=True)


def test_a_child_outlives_its_parent_without_its_locks(images: Images, root: Path, tree: Path) -> None:
    image = images.import_rootfs(tree, reference="app")
    code = CHILD.replace('print("ready", flush=True)', 'import os\nif os.fork() == 0:\n    print("ready", flush=True)')
    with subprocess.Popen(
        [sys.executable, "-c", code, root, image.id], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
        parent.wait()
        images.remove("app")
        parent.stdin.close()
        assert parent.stdout.read() == b""


def test_looking_up_and_acquiring_are_quick(images: Images, store: Store, tree: Path) -> None:
    image = images.import_rootfs(tree, reference="app")

    def best(call: object) -> float:
        times = []
        for _ in range(2000):
            start = time.perf_counter()
            call()  # type: ignore[operator]
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 4] * 1e6

    def use() -> None:
        store.acquire(image.id)
        store.release(image.id)

    assert best(use) < 40  # microseconds; 9 on a quiet machine
    assert best(lambda: images.get("app")) < 100  # 11
    assert best(lambda: images.get(image.short_id)) < 100  # 19


# ── many at once ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a docker archive of four layers with a few hundred files each, that takes a moment to load."""
    path = tmp_path_factory.mktemp("archive") / "many.tar"
    with tarfile.open(path, "w") as archive:
        names, diff_ids = [], []

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        for number in range(4):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as layer:
                top = tarfile.TarInfo(f"d{number}")
                top.type, top.mode = tarfile.DIRTYPE, 0o755
                layer.addfile(top)
                for entry in range(400):
                    info = tarfile.TarInfo(f"d{number}/f{entry}")
                    data = hashlib.sha256(b"%d" % entry).digest() * 64
                    info.size = len(data)
                    layer.addfile(info, io.BytesIO(data))
            names.append(f"{number}/layer.tar")
            diff_ids.append("sha256:" + hashlib.sha256(buffer.getvalue()).hexdigest())
            add(names[-1], buffer.getvalue())
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        add("config.json", json.dumps(config).encode())
        item = {"Config": "config.json", "RepoTags": ["many:1"], "Layers": names}
        add("manifest.json", json.dumps([item]).encode())
    return path


LOAD = """
import sys
from pycontainer.store import Store
from pycontainer.store.locks import INDEX
from pycontainer.images import Images
print("ready", flush=True)
with Store.open(sys.argv[1]) as store:
    print(Images(store).load(sys.argv[2]).id)
"""


def test_many_processes_that_load_one_archive_get_one_image(root: Path, archive: Path) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", LOAD, root, archive], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = {child.communicate(timeout=60)[0].split()[-1] for child in children}
    assert [child.returncode for child in children] == [0] * 4
    assert check_whole(root) == list(answers)
    with Store.open(root) as store:
        image = Images(store).get("many:1")
        counts = [sum(1 for _ in Path(path).rglob("f*")) for path in store.acquire(image.id)]
    assert counts == [400] * 4


def test_many_threads_that_load_and_remove_leave_a_whole_store(root: Path, archive: Path, tree: Path) -> None:
    failures: list[BaseException] = []
    with Store.open(root) as store:
        images = Images(store)

        def work(number: int) -> None:
            try:
                for turn in range(4):
                    image = images.load(archive) if (number + turn) % 2 else images.import_rootfs(tree, reference="t")
                    try:
                        images.remove(image.id, force=True)
                    except NotFound:
                        continue  # another thread was quicker
            except NotFound:
                return  # loaded here, and removed by another thread before it was looked up
            except BaseException as error:  # noqa: BLE001 - it is raised below
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    check_whole(root)


@pytest.mark.timeout(120)
def test_a_kill_at_any_moment_leaves_nothing_half_done(root: Path, archive: Path) -> None:
    chance = random.Random(4711)  # noqa: S311 - a test that comes out the same
    seen = set()
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", LOAD, root, archive], stdout=subprocess.PIPE, start_new_session=True
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(chance.uniform(0, 0.25))
            child.send_signal(signal.SIGKILL)
        found = check_whole(root)
        seen.add(len(found))
        if found:
            with Store.open(root) as store:
                images = Images(store)
                image = images.get("many:1")
                counts = [sum(1 for _ in Path(path).rglob("f*")) for path in store.acquire(image.id)]
                store.release(image.id)
                assert counts == [400] * 4
                images.remove("many:1")
            check_whole(root)
    assert 0 in seen


# ── failures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_disk_leaves_nothing(tmp_path: Path, archive: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", root], check=True)
    try:
        with Store.open(root / "store") as store, pytest.raises(StoreError, match=r"[Nn]o space"):
            Images(store).load(archive)
        assert check_whole(root / "store") == []
    finally:
        subprocess.run(["umount", root], check=True)


def test_a_pipe_is_refused(images: Images, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for bring_in in (images.load, images.import_rootfs):
        with pytest.raises(ImageError, match=r"is a pipe.*write it to a file first"):
            bring_in(tmp_path / "pipe")
        with pytest.raises(NotFound, match="No such file"):
            bring_in(tmp_path / "missing")


def test_a_name_with_a_digest_cannot_be_given(images: Images, tree: Path) -> None:
    with pytest.raises(ValueError, match="a tag, not a digest"):
        images.import_rootfs(tree, reference="app@sha256:" + "0" * 64)
    assert images.list() == []


def test_a_lock_that_an_interrupt_made_unknown_is_let_go(store: Store, tree: Path) -> None:
    lock = store._locks.take(INDEX)
    assert lock is not None
    del lock  # as when an interrupt comes between the lock and the block that releases it
    assert Images(store).import_rootfs(tree, reference="app:1").references == ("app:1",)
