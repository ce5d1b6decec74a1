"""The commands for images: what docker's and podman's users type, and what they read."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pycontainer import Engine, ImageConfig
from tests.archives import docker_archive, member, sha, tar

COMMAND = (sys.executable, "-m", "pycontainer")
LAYERS = [tar(member("a", b"a" * 1000)), tar(member("b", b"b" * 3000))]


def cli(root: Path, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run([*COMMAND, "--root", str(root), *map(str, words)], check=False, **options)


def lines(root: Path, *words: str | Path) -> list[str]:
    done = cli(root, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a store with an image of two layers and a history, and a smaller one."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "author": "somebody",
        "created": "2020-02-02T20:20:20.5Z",
        "config": {"Labels": {"team": "red"}},
        "rootfs": {"type": "layers", "diff_ids": [sha(layer) for layer in LAYERS]},
        "history": [
            {"created": "2020-02-01T00:00:00Z", "created_by": "ADD a\t/", "comment": "buildkit"},
            {"created": "2020-02-02T00:00:00Z", "created_by": "ENV " + "x" * 100, "empty_layer": True},
            {"created": "2020-02-02T20:20:20.5Z", "created_by": "ADD b /", "comment": "the last"},
        ],
    }
    path = tmp_path / "archive.tar"
    path.write_bytes(docker_archive(LAYERS, files={"c.json": json.dumps(config).encode()}))
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("content")
    with Engine(tmp_path / "root") as engine:
        engine.images.load(path, reference="x:1")
        engine.images.import_rootfs(tree, reference="localhost:5000/y:2", config=ImageConfig(labels={"team": "blue"}))
    return tmp_path / "root"


def test_filters(root: Path) -> None:
    def names(*words: str) -> set[str]:
        return set(lines(root, "images", "--format", "{{.Repository}}:{{.Tag}}", *words))

    both = {"x:1", "localhost:5000/y:2"}
    assert names() == names("-f", "label=team") == both
    assert names("x") == names("x:*") == names("--filter", "label=team=red") == {"x:1"}
    assert names("*/y") == {"localhost:5000/y:2"}
    assert names("-f", "before=localhost:5000/y:2") == names("-f", "until=2021-01-01") == {"x:1"}
    assert names("-f", "since=x:1") == {"localhost:5000/y:2"}
    assert names("-f", "dangling=true") == set()
    assert lines(root, "untag", "localhost:5000/y:2") == []
    assert names("-f", "dangling=true") == {"<none>:<none>"}
    refused = cli(root, "images", "-f", "colour=red")
    assert (refused.returncode, "there is no filter 'colour'" in refused.stderr) == (1, True)


def test_only_the_names_that_fit_are_listed(root: Path) -> None:
    assert lines(root, "tag", "x:1", "z:1") == []
    assert lines(root, "images", "z", "--format", "{{.Repository}}") == ["z"]
    assert set(lines(root, "images", "[xz]", "--format", "{{.Repository}}")) == {"x", "z"}


def test_history(root: Path) -> None:
    identity = lines(root, "images", "-q", "--no-trunc", "x")[0]
    head, last, env, first = lines(root, "history", "x:1")
    assert head.split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert last.split()[0] == identity.removeprefix("sha256:")[:12]
    assert last.endswith("the last")
    assert env.startswith("<missing>")
    assert "ENV " + "x" * 40 + "…" in env
    assert "ADD a /" in first
    whole = lines(root, "history", "--no-trunc", "-q", "x:1")
    assert whole == [identity, "<missing>", "<missing>"]
    assert lines(root, "image", "history", "--human=false", "--format", "{{.CreatedAt}} {{.Size}}", "x:1") == [
        f"2020-02-02T20:20:20.500000Z {len(LAYERS[1])}",
        "2020-02-02T00:00:00Z 0",
        f"2020-02-01T00:00:00Z {len(LAYERS[0])}",
    ]
    step = json.loads(lines(root, "history", "--format", "json", "x:1")[2])
    assert set(step) == {"ID", "CreatedSince", "CreatedAt", "CreatedBy", "Size", "Comment"}
    assert cli(root, "history", "nosuch").returncode == 1


def test_inspect(root: Path) -> None:
    (shown,) = json.loads("\n".join(lines(root, "image", "inspect", "x:1")))
    assert (shown["Author"], shown["Comment"], shown["Parent"]) == ("somebody", "the last", "")
    assert shown["Created"] == "2020-02-02T20:20:20.500000Z"
    assert shown["RootFS"]["Layers"] == [sha(layer) for layer in LAYERS]
    assert shown["RepoDigests"] == []
    assert shown["Size"] == sum(map(len, LAYERS))
    assert shown["Metadata"]["LastTagTime"].startswith("20")


def test_untag_exists_and_rmi(root: Path) -> None:
    assert cli(root, "image", "exists", "x:1").returncode == 0
    assert cli(root, "image", "exists", "x:2").returncode == 1
    assert lines(root, "tag", "x:1", "x:2") == []
    assert lines(root, "untag", "x:1", "x:2") == []
    refused = cli(root, "image", "untag", "x:1", "x:2")
    assert (refused.returncode, "is not called 'x:2'" in refused.stderr) == (1, True)
    identity = lines(root, "images", "-q", "--no-trunc", "x")[0]
    assert lines(root, "untag", identity) == []
    assert lines(root, "rmi", identity[7:20]) == [f"Deleted: {identity}"]


def test_diff(root: Path, tmp_path: Path) -> None:
    tree = tmp_path / "other"
    tree.mkdir()
    (tree / os.fsdecode(b"\xff")).touch()
    (tree / "file").write_text("more content")
    assert cli(root, "import", tree, "z:1").returncode == 0
    done = cli(root, "image", "diff", "localhost:5000/y:2", "z:1", errors="surrogateescape")
    assert (done.returncode, done.stdout) == (0, "C /file\nA /\udcff\n")
    told = json.loads(lines(root, "image", "diff", "--format", "json", "z:1", "x:1")[0])
    assert told["added"] == ["/a", "/b"]
    assert set(told["deleted"]) == {"/file", "/\ufffd"}
    assert lines(root, "image", "diff", "x:1", "x:1") == []


def test_prune(root: Path) -> None:
    refused = cli(root, "image", "prune")
    assert (refused.returncode, "give --force" in refused.stderr) == (1, True)
    assert lines(root, "image", "prune", "-f") == ["Total reclaimed space: 0B"]
    identity = lines(root, "images", "-q", "--no-trunc", "x")[0]
    assert lines(root, "image", "prune", "-a", "-f", "--filter", "label=team=red", "--filter", "until=24h") == [
        "Deleted Images:",
        "untagged: x:1",
        f"deleted: {identity}",
        "",
        "Total reclaimed space: 20.5kB",
    ]
    assert lines(root, "image", "prune", "-af", "--filter", "label!=team") == ["Total reclaimed space: 0B"]
    assert lines(root, "image", "prune", "-af")[1] == "untagged: localhost:5000/y:2"
    assert lines(root, "images", "-q") == []


class Terminal:
    """A pseudo terminal; what was written to it is read at the end."""

    def __init__(self) -> None:
        self._primary, self.fd = os.openpty()
        self._read: list[bytes] = []
        self._reader = threading.Thread(target=self._drain)
        self._reader.start()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := os.read(self._primary, 1 << 16):
                self._read.append(data)

    def write(self, data: bytes) -> None:
        os.write(self._primary, data)

    def text(self) -> str:
        os.close(self.fd)
        self._reader.join()
        os.close(self._primary)
        return b"".join(self._read).decode()


@pytest.mark.parametrize(("answer", "left"), [("n", 2), ("", 2), ("y", 0)])
def test_prune_asks_on_a_terminal(root: Path, answer: str, left: int) -> None:
    terminal = Terminal()
    terminal.write(f"{answer}\n".encode())
    done = cli(root, "image", "prune", "--all", stdin=terminal.fd)
    terminal.text()
    assert done.returncode == 0
    assert "Are you sure you want to continue? [y/N]" in done.stdout
    assert len(lines(root, "images", "-q")) == left


def test_bars_on_a_terminal_only(root: Path, tmp_path: Path) -> None:
    for words in (("save", "-o", str(tmp_path / "out.tar"), "x:1"), ("load", "-i", str(tmp_path / "out.tar"))):
        for quiet in ((), ("-q",)):
            terminal = Terminal()
            environment = os.environ | {"TERM": "xterm"}
            with Engine(root) as engine:
                engine.images.remove("x:1") if words[0] == "load" and not quiet else None
            process = subprocess.Popen(
                [*COMMAND, "--root", str(root), *words, *quiet],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=terminal.fd,
                env=environment,
            )
            out = process.communicate(timeout=60)[0].decode()
            shown = terminal.text()
            assert process.returncode == 0, shown
            assert ("of 2 layers" in shown) is not bool(quiet)
            assert out == ("Loaded image: x:1\n" if words[0] == "load" else "")
