"""One Debian run by us and by podman gives the same answers: files, Python, packages, who the process is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontainer import Engine
from tests.peers.podman import Podman

IMAGE = "localhost/debian:test"

QUESTIONS = {
    "release": ["cat", "/etc/os-release"],
    "python": ["python3", "-c", "import hashlib, sqlite3, sys; print(sys.version, hashlib.sha256(b'x').hexdigest())"],
    "threads": ["python3", "-c", "from multiprocessing import Pool; print(Pool(2).map(abs, range(-9, 0)))"],
    "packages": ["apt", "list", "--installed"],
    "id": ["id"],
    "process": ["sh", "-c", "umask; pwd; echo $HOME $PATH $$; ulimit -n"],
    "links": ["ls", "/sys/class/net"],
    "interface": ["python3", "-c", "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.fileno())"],
    "devices": ["sh", "-c", "cd /dev && stat -c '%n %F %a %t:%T' fd full null ptmx random shm tty urandom zero"],
    "root": ["stat", "-c", "%n %a %u:%g", "/root", "/tmp", "/usr/bin/passwd"],
    "owner": ["sh", "-c", "touch /new && chown 7:8 /new && chmod 4751 /new && stat -c '%a %u:%g %s' /new"],
}
USERS = ["nobody", "games", "www-data:mail", "0:0"]
NUMBERS = ["1234", "1234:99", "33", "0:33"]


@pytest.fixture(scope="module", params=["crun", "runc"])
def podman(request: pytest.FixtureRequest, debian_tar: Path) -> Iterator[Podman]:
    """Give a podman that has the Debian as an image; skip with its own words when it cannot run here."""
    with tempfile.TemporaryDirectory(prefix="pyc-") as base:
        podman = Podman(Path(base), request.param)
        try:
            for first in (("import", "-q", debian_tar, IMAGE), ("run", "--rm", IMAGE, "true")):
                done = podman(*first)
                if done.returncode != 0:
                    words = done.stderr.decode(errors="replace").strip()
                    pytest.skip(f"podman {first[0]} with {request.param} does not work here: {words}")
            yield podman
        finally:
            podman.close()


def same(podman: Podman, engine: Engine, command: list[str], user: str | None = None) -> bytes:
    """Return what both answer."""
    theirs = podman("run", "--rm", *(() if user is None else (f"--user={user}",)), IMAGE, *command)
    ours = engine.run("debian:test", command, user=user, timeout=60)
    assert theirs.returncode == 0, theirs.stderr
    assert ours.exit_code == 0, ours
    assert ours.stdout == theirs.stdout
    return ours.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", QUESTIONS)
def test_root_is_answered_alike(podman: Podman, stocked: Engine, name: str) -> None:
    assert same(podman, stocked, QUESTIONS[name])


@pytest.mark.slow
@pytest.mark.parametrize("user", USERS)
def test_users_of_the_image_are_alike(podman: Podman, stocked: Engine, user: str) -> None:
    command = ["sh", "-c", "id; echo $HOME; test -w /etc/passwd && echo writable; test -w /tmp && echo tmp"]
    answer = same(podman, stocked, command, user)
    assert (b"writable" in answer) == (user == "0:0")


@pytest.mark.slow
@pytest.mark.parametrize("user", NUMBERS)
def test_users_by_number_are_alike(podman: Podman, stocked: Engine, user: str) -> None:
    """Numbers only: podman adds a line for a user that the image does not know."""
    same(podman, stocked, ["sh", "-c", "id -u; id -g; id -G; touch /tmp/x; stat -c %u:%g /tmp/x"], user)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$; sleep 1; exit 3"], 3),  # PID 1 is spared the signals that it does not handle
        (["sh", "-c", "sh -c 'kill -KILL $$'"], 137),
        (["false"], 1),
    ],
)
def test_the_end_is_told_alike(podman: Podman, stocked: Engine, command: list[str], status: int) -> None:
    assert podman("run", "--rm", IMAGE, *command).returncode == status
    assert stocked.run("debian:test", command, timeout=60).exit_code == status


@pytest.mark.slow
def test_input_and_both_streams_are_alike(podman: Podman, stocked: Engine) -> None:
    command = ["sh", "-c", "echo out; echo err >&2; cat"]
    theirs = podman("run", "--rm", IMAGE, *command)
    ours = stocked.run("debian:test", command, timeout=60)
    assert (ours.stdout, ours.stderr) == (theirs.stdout, theirs.stderr) == (b"out\n", b"err\n")
