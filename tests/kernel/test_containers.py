"""Containers that are kept: run again and again, looked at, committed, removed; by programs that may be killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from pycontainer import (
    CommandNotFound,
    Conflict,
    Container,
    Engine,
    ExitError,
    IdMap,
    Image,
    ImageConfig,
    ImageError,
    InvalidReference,
    Limits,
    Mount,
    NotFound,
    TimeoutExpired,
)
from tests.schemas import validate
from tests.trees import describe

MAPS = (IdMap(0, 100_000, 65_536),)
FOREVER = ["sh", "-c", "echo started > /started; while :; do sleep 0.01; done"]


def changes(container: Container) -> list[str]:
    return [str(change) for change in container.diff()]


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def running(container: Container) -> Iterator[threading.Thread]:
    """Run a container in a thread; whoever gets this has to end it."""
    started = threading.Event()
    thread = threading.Thread(target=lambda: container.run(timeout=60, on_start=lambda _: started.set()))
    thread.start()
    assert started.wait(10)
    try:
        until(lambda: "A /started" in changes(container))
        yield thread
    finally:
        if container._store.db.container(container.id) is not None:
            container.remove(force=True)
        thread.join(10)
    assert not thread.is_alive()


# ── life ──


def test_what_it_writes_stays_for_the_next_run(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, ["sh", "-c", "echo line >> /log; wc -l < /log; exit 3"], name="one")
    assert (container.state, container.exit_code, container.started) == ("created", None, None)
    for number in (1, 2, 3):
        result = container.run()
        assert (result.exit_code, result.stdout) == (3, b"%d\n" % number)
        assert result.container_id == container.id
    assert (container.state, container.exit_code) == ("exited", 3)
    assert container.created < container.started < container.finished  # type: ignore[operator]
    with Engine(engine.root) as other:
        again = other.containers.get("one")
        assert again == container
        assert again.run().stdout == b"4\n"
    with pytest.raises(ExitError) as failed:
        container.run(check=True)
    assert failed.value.result.container_id == container.id


def test_its_options_are_kept(engine: Engine, busybox: Image, tmp_path: Path) -> None:
    (tmp_path / "shown").write_text("from the host")
    script = "hostname; id -u; echo $A; pwd; cat /shown; cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null"
    options: dict[str, Any] = {
        "hostname": "keeper",
        "user": "app",
        "env": {"A": "\udcff b"},
        "workdir": "/tmp",
        "mounts": [Mount.bind(str(tmp_path / "shown"), "/shown", read_only=True)],
        "limits": Limits(memory="64M"),
        "cap_drop": ["ALL"],
        "masked_paths": ["/proc/cpuinfo"],
        "labels": {"a": "b"},
    }
    container = engine.containers.create(busybox, ["sh", "-c", script], **options)
    expected = engine.run(busybox, ["sh", "-c", script], **{k: v for k, v in options.items() if k != "labels"}).stdout
    with Engine(engine.root) as other:
        result = other.containers.get(container.short_id).run()
        assert other.containers.get(container.id).labels == {"a": "b"}
    assert result.stdout == expected
    assert expected.startswith(b"keeper\n1000\n\xff b\n/tmp\nfrom the host")


def test_the_host_name_is_that_of_the_container(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, ["hostname"])
    for _ in range(2):
        assert container.run().stdout.decode().strip() == container.short_id


def test_users_are_looked_up_in_the_container(engine: Engine, busybox: Image) -> None:
    script = "echo new:x:77:77::/:/bin/sh >> /etc/passwd; id -u"
    container = engine.containers.create(busybox, ["sh", "-c", script], user="root")
    assert container.run().stdout == b"0\n"
    image = container.commit("users:1")
    assert engine.containers.create(image, ["id", "-u"], user="new").run().stdout == b"77\n"
    with pytest.raises(NotFound, match="new"):
        engine.containers.create(busybox, ["id"], user="new").run()


def test_volumes_of_the_image_live_with_the_container(engine: Engine, busybox_rootfs: Path) -> None:
    config = ImageConfig(volumes=("/home",))
    image = engine.images.import_rootfs(busybox_rootfs, config=config)
    script = "ls /home; echo x >> /home/app/log; wc -l < /home/app/log; ls /home/app"
    container = engine.containers.create(image, ["sh", "-c", script])
    assert container.run().stdout == b"app\n1\nlog\n"
    assert container.run().stdout == b"app\n2\nlog\n"
    assert changes(container) == []
    container.remove()
    assert list((engine.root / "containers").iterdir()) == []


def test_a_start_that_fails_leaves_it_as_it_was(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, ["/nothing"])
    with pytest.raises(CommandNotFound):
        container.run()
    assert (container.state, container.exit_code) == ("created", 127)


def test_the_time_is_up(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, FOREVER)
    with pytest.raises(TimeoutExpired):
        container.run(timeout=0.3)
    assert (container.state, container.exit_code) == ("exited", 137)


def test_a_path_of_a_profile_is_that_of_the_creation(
    engine: Engine, busybox: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profile.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    monkeypatch.chdir(tmp_path)
    container = engine.containers.create(busybox, ["true"], seccomp="profile.json")
    monkeypatch.chdir("/")
    assert container.run().exit_code == 0


def test_what_others_put_there_is_left_alone(engine: Engine, busybox: Image) -> None:
    engine.containers.create(busybox, ["true"])
    (engine.root / "containers/notes").mkdir()
    with Engine(engine.root):
        assert (engine.root / "containers/notes").is_dir()


# ── names ──


def test_names(engine: Engine, busybox: Image) -> None:
    one = engine.containers.create(busybox, ["true"], name="one")
    other = engine.containers.create(busybox, ["true"])
    assert engine.containers.get("one") == engine.containers.get(one.id[:20]) == one
    assert engine.containers.list() == [other, one]
    with pytest.raises(Conflict, match="'one' is in use by the container"):
        engine.containers.create(busybox, ["true"], name="one")
    with pytest.raises(Conflict, match="in use"):
        other.rename("one")
    with pytest.raises(InvalidReference):
        other.rename("-x")
    with pytest.raises(InvalidReference):
        engine.containers.create(busybox, ["true"], name="a/b")
    other.rename("two")
    assert other.name == "two"
    with pytest.raises(NotFound, match="there is two"):
        engine.containers.get("twoo")
    assert len(list((engine.root / "containers").iterdir())) == 2


def test_filters(engine: Engine, busybox: Image) -> None:
    one = engine.containers.create(busybox, ["true"], name="first", labels={"tier": "db"})
    two = engine.containers.create(busybox, ["false"], name="second")
    two.run()
    assert engine.containers.list(state="created") == [one]
    assert engine.containers.list(exit_code=1) == [two]
    assert engine.containers.list(name="sec") == [two]
    assert engine.containers.list(labels={"tier": None}) == engine.containers.list(labels={"tier": "db"}) == [one]
    assert engine.containers.list(labels={"tier": "web"}) == []
    assert engine.containers.list(before="second") == [one]
    assert engine.containers.list(since=one) == [two]
    child = one.commit("child:1")
    three = engine.containers.create(child, ["true"])
    assert engine.containers.list(image="child:1") == [three]
    assert engine.containers.list(image=busybox) == [three, two, one]


def test_nothing_to_run_is_refused_when_it_is_made(engine: Engine, busybox: Image) -> None:
    with pytest.raises(ValueError, match="nothing to run"):
        engine.containers.create(busybox)
    with pytest.raises(NotFound, match="no image"):
        engine.containers.create("missing", ["true"])
    assert engine.containers.list() == []


# ── one at a time ──


def test_its_image_stays_as_long_as_it_does(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, ["true"], name="user-of-it")
    with pytest.raises(Conflict, match="user-of-it"):
        engine.images.remove(busybox, force=True)
    container.remove()
    engine.images.remove(busybox, force=True)


def test_one_that_runs_is_neither_run_nor_removed(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, FOREVER)
    with running(container) as thread, Engine(engine.root) as other:
        seen = other.containers.get(container.id)
        assert (seen.state, seen.exit_code) == ("running", None)
        with pytest.raises(Conflict, match="it is running"):
            seen.run()
        with pytest.raises(Conflict, match="remove it with force"):
            seen.remove()
        assert other.containers.prune().containers == ()
        assert thread.is_alive()
        seen.remove(force=True)
        thread.join(10)
        with pytest.raises(NotFound, match="was removed"):
            _ = container.state
    assert engine.containers.list() == []


def test_prune_takes_what_does_not_run(engine: Engine, busybox: Image) -> None:
    old = engine.containers.create(busybox, ["sh", "-c", "dd if=/dev/zero of=/big bs=1M count=3"])
    old.run()
    kept = engine.containers.create(busybox, FOREVER)
    with running(kept):
        report = engine.containers.prune()
        assert report.containers == (old.id,)
        assert report.size >= 3 << 20
        assert engine.containers.list() == [kept]


# ── changes ──


def test_diff_is_exact_and_leaves_out_what_is_mounted(engine: Engine, busybox: Image) -> None:
    script = "chmod 600 /etc/passwd; chmod 644 /etc/passwd; echo a > /tmp/new; rm /etc/group; touch /proc/x /dev/shm/y"
    container = engine.containers.create(busybox, ["sh", "-c", script])
    assert changes(container) == []
    container.run()
    assert changes(container) == ["C /etc", "D /etc/group", "C /tmp", "A /tmp/new"]


@pytest.mark.parametrize("maps", [(), MAPS], ids=["host-ids", "mapped"])
def test_a_commit_has_the_ids_of_the_container(engine: Engine, busybox: Image, maps: tuple[IdMap, ...]) -> None:
    script = "echo a > /mine; chown 7:8 /mine; mkdir /app; chown app /app; chmod 4755 /bin/busybox"
    container = engine.containers.create(busybox, ["sh", "-c", script], userns=maps)
    container.run(check=True)
    assert changes(container) == ["A /app", "C /bin", "C /bin/busybox", "A /mine"]
    image = container.commit("ids:1")
    found = engine.run(image, ["stat", "-c", "%n %u %g %a", "/mine", "/app", "/bin/busybox"]).stdout
    assert found == b"/mine 7 8 644\n/app 1000 0 755\n/bin/busybox 0 0 4755\n"
    target = io.BytesIO()
    container.export(target)
    target.seek(0)
    with tarfile.open(fileobj=target) as archive:
        assert (archive.getmember("mine").uid, archive.getmember("mine").gid) == (7, 8)


def test_a_commit_says_how_it_came_about(engine: Engine, busybox_rootfs: Path) -> None:
    base = ImageConfig(command=("sh",), env={"A": "1"}, labels={"l": "1"}, workdir="/tmp")
    parent = engine.images.import_rootfs(busybox_rootfs, config=base, reference="parent:1")
    container = engine.containers.create(parent, ["touch", "/x"], env={"B": "2"}, user="app", labels={"m": "2"})
    container.run()
    image = container.commit("child:1", author="Me <me@example.org>", message="a change")
    assert image.layers[:-1] == parent.layers
    assert image.config == attrs.evolve(
        base, command=("touch", "/x"), env={"A": "1", "B": "2"}, user="app", labels={"l": "1", "m": "2"}
    )
    blobs = engine.root / "blobs/sha256"
    document = json.loads((blobs / image.id.removeprefix("sha256:")).read_bytes())
    assert document["author"] == "Me <me@example.org>"
    assert len(document["history"]) == 2
    last = document["history"][-1]
    assert (last["created_by"], last["comment"], last["created"]) == ("touch /x", "a change", document["created"])
    validate("config-schema.json", (blobs / image.id.removeprefix("sha256:")).read_bytes())
    validate("image-manifest-schema.json", (blobs / image.digest.removeprefix("sha256:")).read_bytes())
    other = container.commit(config=ImageConfig(entrypoint=("cat",)))
    assert other.config == ImageConfig(entrypoint=("cat",))
    assert other.references == ()


def test_what_nobody_here_understands_of_a_config_stays(engine: Engine, busybox: Image, tmp_path: Path) -> None:
    engine.images.save(tmp_path / "dir", busybox, format="oci-dir")
    index = json.loads((tmp_path / "dir/index.json").read_bytes())

    def blob(digest: str) -> Path:
        return tmp_path / "dir/blobs/sha256" / digest.removeprefix("sha256:")

    def put(value: object) -> dict[str, object]:
        import hashlib

        data = json.dumps(value).encode()
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        blob(digest).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_bytes())
    config = json.loads(blob(manifest["config"]["digest"]).read_bytes())
    config["config"] = {"Healthcheck": {"Test": ["NONE"]}, "OnBuild": ["RUN x"], "Cmd": ["sh"]}
    config["moby.buildkit.trace"] = {"kept": True}
    config["container"] = "f" * 64
    manifest["config"] |= put(config)
    index["manifests"] = [{**index["manifests"][0], **put(manifest)}]
    (tmp_path / "dir/index.json").write_text(json.dumps(index))
    parent = engine.images.load(tmp_path / "dir", reference="odd:1")
    image = engine.containers.create(parent, ["true"]).commit()
    document = json.loads((engine.root / "blobs/sha256" / image.id.removeprefix("sha256:")).read_bytes())
    assert document["config"]["Healthcheck"] == {"Test": ["NONE"]}
    assert document["config"]["Cmd"] == ["true"]
    assert document["moby.buildkit.trace"] == {"kept": True}
    assert "container" not in document


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_the_same_files_give_the_same_layer(engine: Engine, busybox: Image, compression: Any) -> None:
    container = engine.containers.create(busybox, ["sh", "-c", "for i in $(seq 300); do echo $i > /tmp/$i; done"])
    container.run()
    one, two = container.commit(compression=compression), container.commit(compression=compression)
    assert one.layers == two.layers
    assert len(one.layers) == 2
    assert engine.run(one, ["cat", "/tmp/17"]).stdout == b"17\n"


def test_squash_makes_one_layer_of_all(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, ["sh", "-c", "rm -rf /home; echo a > /b"])
    container.run()
    image = container.commit("flat:1", squash=True)
    assert len(image.layers) == 1
    script = "cat /b; ls -d /home; ls /"
    flat, layered = (engine.run(item, ["sh", "-c", script]) for item in (image, container.commit()))
    assert flat.stdout == layered.stdout
    assert b"home" not in flat.stdout


def test_one_that_runs_stands_still_while_it_is_committed(engine: Engine, busybox: Image) -> None:
    script = (
        "echo started > /started; echo 0 > /one; echo 0 > /two; i=0; "
        "while :; do i=$((i+1)); for f in one two; do echo $i > /new; mv /new /$f; done; done"
    )
    container = engine.containers.create(busybox, ["sh", "-c", script])
    with running(container):
        images = [container.commit(f"still:{number}") for number in range(8)]
        with contextlib.suppress(ImageError):  # a file that becomes shorter while it is read
            container.commit("moving:1", pause=False)
        assert container.state == "running"
        for image in images:
            one, two = engine.run(image, ["cat", "/one", "/two"]).stdout.split()
            assert int(one) - int(two) in (0, 1)
        assert set(changes(container)) - {"A /new"} == {"A /one", "A /started", "A /two"}


def test_an_export_is_the_whole_tree(engine: Engine, busybox: Image, busybox_rootfs: Path, tmp_path: Path) -> None:
    container = engine.containers.create(busybox, ["true"])
    container.export(tmp_path / "whole.tar")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xpf", tmp_path / "whole.tar", "-C", tmp_path / "out", "--numeric-owner"], check=True)
    assert describe(tmp_path / "out") == describe(busybox_rootfs)
    with pytest.raises(FileNotFoundError, match=r"missing"):
        container.export(tmp_path / "missing/x.tar")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_commit_that_fails_leaves_nothing(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, ["touch", "/etc/.wh.passwd"])
    container.run()
    before = {path for path in engine.root.rglob("*") if "runs" not in path.parts}
    with pytest.raises(ImageError, match=r"etc/\.wh\.passwd"):
        container.commit("bad:1")
    assert {path for path in engine.root.rglob("*") if "runs" not in path.parts} == before
    with pytest.raises(ValueError, match="has a tag, not a digest"):
        container.commit("x@sha256:" + "0" * 64)


# ── killed programs ──

PROGRAM = """
import sys
from pycontainer import Engine
with Engine(sys.argv[1]) as engine:
    container = engine.containers.get(sys.argv[2])
    print("ready", flush=True)
    {}
"""


@contextmanager
def program(engine: Engine, container: Container, code: str) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-c", PROGRAM.format(code), str(engine.root), container.id]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        yield started
        started.kill()


def test_a_program_that_is_killed_leaves_its_container_exited(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, FOREVER)
    with program(engine, container, "container.run()") as other:
        until(lambda: "A /started" in changes(container))
        assert container.state == "running"
        other.send_signal(signal.SIGKILL)
        other.wait()
    with Engine(engine.root):  # the next open looks after it
        row = engine._store.db.container(container.id)
        assert row is not None
        assert (row.state, row.exit_code) == ("exited", None)
    assert sorted(path.name for path in (engine.root / "containers" / container.id).iterdir()) == [
        "upper",
        "volumes",
        "work",
    ]
    assert (container.state, container.exit_code) == ("exited", None)
    with pytest.raises(TimeoutExpired):
        container.run(timeout=0.3)


def test_a_commit_that_is_killed_leaves_nothing_and_the_container_going_on(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(
        busybox, ["sh", "-c", "echo started > /started; while :; do date +%s%N > /now; done"]
    )
    with running(container):
        freeze = (
            "import pycontainer.distribution.commit as c, time; "
            "c.commit = lambda *_: (print('frozen', flush=True), time.sleep(60)); container.commit('never:1')"
        )
        with program(engine, container, freeze) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"frozen\n"
            now = engine.root / "containers" / container.id / "upper/now"
            stopped = now.read_bytes()
            time.sleep(0.1)
            assert now.read_bytes() == stopped
            other.send_signal(signal.SIGKILL)
            other.wait()
        with Engine(engine.root):
            until(lambda: now.read_bytes() not in (stopped, b""))
        assert not engine.images.exists("never:1")


def test_commits_killed_at_any_moment_leave_what_the_next_open_removes(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, ["sh", "-c", "for i in $(seq 2000); do echo $i > /tmp/$i; done"])
    container.run()

    def content() -> set[str]:
        names = ("blobs", "layers", "tmp")
        return {str(path) for name in names for path in (engine.root / name).glob("*/*")}

    before = content()
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        with program(engine, container, "container.commit()\n    import time; time.sleep(60)") as other:
            time.sleep(delay)
            other.send_signal(signal.SIGKILL)
            other.wait()
        with Engine(engine.root) as opened:
            for image in opened.images.list():
                if image.id != busybox.id:
                    assert opened.run(image, ["cat", "/tmp/2000"]).stdout == b"2000\n"
                    opened.images.remove(image)
        assert content() == before
    assert container.state == "exited"


def test_removals_and_creations_killed_at_any_moment(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, ["true"], name="stays")
    code = "while True: engine.containers.create(container.image, ['true']).remove()"
    for delay in (0.02, 0.05, 0.08):
        with program(engine, container, code) as other:
            time.sleep(delay)
            other.send_signal(signal.SIGKILL)
            other.wait()
        with Engine(engine.root) as opened:
            recorded = {item.id for item in opened.containers.list()}
            assert {path.name for path in (engine.root / "containers").iterdir()} == recorded
            assert container.id in recorded


def test_several_programs_run_one_container_one_after_the_other(engine: Engine, busybox: Image) -> None:
    container = engine.containers.create(busybox, ["sh", "-c", "echo x >> /log"])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with Engine(engine.root) as other:
                for _ in range(5):
                    while True:
                        try:
                            other.containers.get(container.id).run()
                        except Conflict:
                            time.sleep(0.002)
                        else:
                            break
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (engine.root / "containers" / container.id / "upper/log").read_text() == "x\n" * 15
    assert os.listdir(engine.root / "containers" / container.id / "work") == ["work"]  # noqa: PTH208
