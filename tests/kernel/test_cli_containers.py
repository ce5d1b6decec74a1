"""The commands of containers that are kept, as a program."""

from __future__ import annotations

import io
import json
import re
import select
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

COMMAND = (sys.executable, "-m", "pycontainer")


@pytest.fixture
def root(tmp_path: Path, busybox_rootfs: Path) -> Path:
    from pycontainer import Engine

    with Engine(tmp_path / "engine") as engine:
        engine.images.import_rootfs(busybox_rootfs, reference="busybox:test")
    return tmp_path / "engine"


def cli(root: Path, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": 60, **options}
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([*COMMAND, "--root", str(root), *map(str, arguments)], check=False, **options)


def good(root: Path, *arguments: str | Path, **options: Any) -> str:
    done = cli(root, *arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def test_a_container_from_its_creation_to_its_end(root: Path, tmp_path: Path) -> None:
    script = "echo $A >> /log; wc -l < /log; rm /etc/group"
    identity = good(
        root, "create", "--name", "one", "-e", "A=1", "-l", "k=v", "busybox:test", "sh", "-c", script
    ).strip()
    assert re.fullmatch(r"[0-9a-f]{64}", identity)
    assert good(root, "ps") == "CONTAINER ID   IMAGE     COMMAND   CREATED   STATUS    PORTS     NAMES\n"
    assert good(root, "ps", "-aq").strip() == identity[:12]
    assert good(root, "start", "-a", "one") == "1\n"
    assert cli(root, "start", "-a", identity[:6]).stdout == "2\n"
    row = good(root, "ps", "-a").splitlines()[1]
    start = rf"{identity[:12]}   busybox:test   \"sh -c 'echo \$A >> /…\"   "
    assert re.fullmatch(start + r".* ago   Exited \(1\) .* ago +one", row)
    assert good(root, "diff", "one") == "C /etc\nD /etc/group\nA /log\n"
    image = good(
        root, "commit", "-a", "me", "-m", "why", "-c", 'CMD ["cat", "/log"]', "-c", "ENV B=2", "one", "new:1"
    ).strip()
    assert good(root, "run", "--rm", "new:1") == "1\n1\n"
    assert json.loads(good(root, "inspect", "new:1"))[0]["Config"]["Env"] == ["A=1", "B=2"]
    assert json.loads(good(root, "inspect", image))[0]["Config"]["Cmd"] == ["cat", "/log"]
    good(root, "export", "-o", tmp_path / "out.tar", "one")
    piped = subprocess.run([*COMMAND, "--root", root, "export", "one"], capture_output=True, check=True).stdout
    assert piped == (tmp_path / "out.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(piped)) as archive:
        log = archive.extractfile("log")
        assert log is not None
        assert log.read() == b"1\n1\n"
    good(root, "rename", "one", "two")
    parent = json.loads(good(root, "inspect", "two"))[0]["Image"]
    assert "in use by the container two" in cli(root, "rmi", "-f", parent).stderr
    assert good(root, "rm", "two") == "two\n"
    missing = cli(root, "rm", "two")
    assert (missing.returncode, "no container 'two'" in missing.stderr) == (1, True)
    assert good(root, "rm", "-f", "two") == ""


def test_run_keeps_the_container_unless_told_not_to(root: Path, tmp_path: Path) -> None:
    done = cli(root, "run", "--name", "kept", "busybox:test", "sh", "-c", "exit 7")
    assert done.returncode == 7
    assert re.fullmatch(r"Exited \(7\) .* ago\n", good(root, "ps", "-a", "--format", "{{.Status}}"))
    good(root, "run", "--rm", "--name", "gone", "--cidfile", tmp_path / "id", "busybox:test", "true")
    assert re.fullmatch(r"[0-9a-f]{64}", (tmp_path / "id").read_text())
    again = cli(root, "run", "--cidfile", tmp_path / "id", "busybox:test", "true")
    assert (again.returncode, "is there already" in again.stderr) == (125, True)
    taken = cli(root, "run", "--name", "kept", "busybox:test", "true")
    assert (taken.returncode, "'kept' is in use" in taken.stderr) == (125, True)
    assert good(root, "ps", "-a", "--format", "{{.Names}}") == "kept\n"
    assert cli(root, "run", "-d", "busybox:test", "true").returncode == 125
    nothing = cli(root, "run", "--name", "nothing", "busybox:test", "/nothing")
    assert nothing.returncode == 127
    assert good(root, "ps", "-a", "-f", "status=created", "--format", "{{.Names}} {{.Status}}") == "nothing Created\n"


def test_start_types_into_it(root: Path) -> None:
    good(root, "create", "--name", "cat", "-i", "busybox:test", "cat")
    assert good(root, "start", "-ai", "cat", input="typed\n") == "typed\n"
    assert good(root, "start", "-a", "cat") == ""
    detached = cli(root, "start", "cat")
    assert (detached.returncode, "in the foreground only" in detached.stderr) == (125, True)
    assert "one by one" in cli(root, "start", "-a", "cat", "cat").stderr
    assert cli(root, "start", "-a", "dog").returncode == 125


def test_ps_filters_and_formats(root: Path) -> None:
    for name, label, script in (("a1", "x=1", "exit 1"), ("a2", "x=2", "true"), ("b3", "y", "true")):
        cli(root, "run", "--name", name, "-l", label, "busybox:test", "sh", "-c", script)

    def names(*filters: str) -> list[str]:
        return good(root, "ps", "--format", "{{.Names}}", *(word for text in filters for word in ("-f", text))).split()

    assert names("exited=1") == ["a1"]
    assert names("status=exited") == names("status=exited", "status=created") == ["b3", "a2", "a1"]
    assert names("name=^a", "status=exited") == ["a2", "a1"]
    assert names("label=x", "status=exited") == ["a2", "a1"]
    assert names("label=x=2", "status=exited") == ["a2"]
    assert names("before=a2") == ["a1"]
    assert names("since=a2") == ["b3"]
    assert names("ancestor=busybox:test", "status=exited") == ["b3", "a2", "a1"]
    assert names() == []
    assert good(root, "ps", "-l", "--format", "{{.Names}}") == "b3\n"
    assert good(root, "ps", "-n", "2", "--format", "{{.Names}}") == "b3\na2\n"
    row = json.loads(good(root, "ps", "-l", "--format", "json", "--no-trunc"))
    assert (row["Names"], row["Labels"], row["State"], len(row["ID"])) == ("b3", "y=", "exited", 64)
    assert "(virtual" in good(root, "ps", "-als")
    for bad in ("volume=x", "status", "status=odd"):
        assert cli(root, "ps", "-f", bad).returncode != 0


def test_inspect_tells_of_containers_and_images(root: Path) -> None:
    good(root, "create", "--name", "busybox", "-v", "/usr:/usr2:ro", "-w", "/tmp", "busybox:test", "sh", "-c", "true")
    both = json.loads(good(root, "inspect", "busybox", "busybox:test"))
    assert (both[0]["Name"], both[0]["Image"]) == ("/busybox", both[1]["Id"])
    assert both[0]["State"]["Status"] == "created"
    assert both[0]["Mounts"][0] == {
        "Type": "bind",
        "Source": "/usr",
        "Destination": "/usr2",
        "RW": False,
        "Propagation": "rprivate",
    }
    assert (
        good(root, "inspect", "--type", "container", "-f", "{{.Path}} {{.Config.WorkingDir}}", "busybox") == "sh /tmp\n"
    )
    assert good(root, "container", "inspect", "-f", "{{.State.Status}}", "busybox") == "created\n"
    assert cli(root, "inspect", "--type", "image", "busybox").returncode == 1
    assert cli(root, "container", "inspect", "busybox:test").returncode == 1


def test_prune_asks(root: Path) -> None:
    good(root, "create", "--name", "old", "-l", "keep", "busybox:test", "true")
    assert cli(root, "container", "prune", input="n\n").returncode != 0
    assert "Total reclaimed space: 0B" in good(root, "container", "prune", "-f", "--filter", "until=1h")
    assert "Total reclaimed space: 0B" in good(root, "container", "prune", "-f", "--filter", "label=other")
    assert "Deleted Containers:\n" in good(root, "container", "prune", "-f", "--filter", "label=keep")
    assert good(root, "ps", "-aq") == ""
    assert cli(root, "container", "prune", "-f", "--filter", "odd=1").returncode != 0


def test_rm_kills_one_that_runs_in_another_terminal(root: Path) -> None:
    words = [
        *COMMAND,
        "--root",
        str(root),
        "run",
        "--name",
        "busy",
        "busybox:test",
        "sh",
        "-c",
        "echo ready; exec sleep 60",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 20)[0]
        assert process.stdout.readline() == b"ready\n"
        assert re.fullmatch(r"busy Up .*\n", good(root, "ps", "--format", "{{.Names}} {{.Status}}"))
        refused = cli(root, "rm", "busy")
        assert (refused.returncode, "it is running" in refused.stderr) == (1, True)
        paused = good(root, "commit", "busy", "snapshot:1")
        assert paused.startswith("sha256:")
        assert good(root, "rm", "-f", "busy") == "busy\n"
        assert process.wait(20) == 137
    assert good(root, "ps", "-aq") == ""
