"""The other tools that move images, each with a store of its own: what they load, show, save, push and pull."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.erofs import overlaid
from tests.trees import Description, describe

__all__ = ["Containers", "Docker", "dockerd", "need", "overlay", "registry", "run", "scratch", "skopeo"]

NAME = "docker.io/library/tour:1"
_SHELL_IN_ITS_OWN_MOUNTS = ("unshare", "--mount", "--propagation=private")


def run(*command: str | Path, timeout: float = 100) -> str:
    """Run a program that must succeed; return its output."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, check=False, timeout=timeout)
    assert done.returncode == 0, f"{words}: {done.stderr.decode(errors='replace')}"
    return done.stdout.decode(errors="replace")


def need(*programs: str) -> None:
    """Skip the test when one of these programs is missing."""
    for program in programs:
        if shutil.which(program) is None:
            _skip(f"{program} is not installed")


def _skip(reason: str) -> NoReturn:
    import pytest  # benchmarks use this module without it

    pytest.skip(reason)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory in memory with a short path: podman refuses long ones, and disks are slow after removals."""
    path = Path(tempfile.mkdtemp(prefix="pyc-", dir="/dev/shm"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def overlay(layers: Sequence[str | Path]) -> Iterator[Path]:
    """Mount layers, the uppermost first, over each other, read-only.

    Args:
        layers: directories.
    """
    with scratch() as base:
        (base / "e").mkdir()
        # By ourselves, not by mount(8): a layer may be known by a descriptor of this process.
        with overlaid([base / "e", *map(Path, reversed(layers))], base / "merged") as merged:
            yield merged


def skopeo(source: str, target: str, *options: str) -> None:
    """Copy an image from one place to another, as skopeo names these."""
    need("skopeo")
    run("skopeo", "--insecure-policy", "copy", "--quiet", *options, source, target)


class Containers:
    """Podman, or buildah, with a store of its own.

    Args:
        base: an empty directory with a short path.
    """

    def __init__(self, base: Path) -> None:
        need("podman")
        self._options = [f"--root={base}/store", f"--runroot={base}/run", "--storage-driver=overlay"]
        self._config = base / "containers.conf"
        self._config.write_text('[containers]\ndefault_ulimits = []\n[engine]\nevents_logger = "none"\n')

    def __call__(self, *words: str | Path, program: str = "podman") -> str:
        """Run a command; its mounts end with it."""
        need(program)
        options = [*self._options, *(["--cgroup-manager=cgroupfs"] if program == "podman" else [])]
        settings = ["env", f"CONTAINERS_CONF={self._config}", "BUILDAH_ISOLATION=chroot"]
        return run(*_SHELL_IN_ITS_OWN_MOUNTS, *settings, program, *options, *words)

    def load(self, archive: Path) -> None:
        """Load an archive."""
        self("load", "--quiet", "--input", archive)

    def save(self, name: str, target: Path, form: str) -> None:
        """Save an image in one of podman's formats."""
        self("save", "--quiet", "--format", form, "--output", target, name)

    def image(self, name: str) -> dict[str, Any]:
        """Return what it tells about an image."""
        found: dict[str, Any] = json.loads(self("image", "inspect", name))[0]
        return found

    def tree(self, name: str) -> Description:
        """Describe an image's root."""
        return _tree(self.image(name))


def _tree(inspected: dict[str, Any]) -> Description:
    """Describe the root of an image of podman's or docker's, from the layers in their stores."""
    data = inspected["GraphDriver"]["Data"]
    layers = [data["UpperDir"], *data.get("LowerDir", "").split(":")]
    with overlay([layer for layer in layers if layer]) as merged:
        return describe(merged, whole_seconds=False, root_too=False)


class Docker:
    """A client of a docker daemon.

    Args:
        socket: where the daemon listens.
    """

    def __init__(self, socket: Path) -> None:
        self._start = ["docker", f"--host=unix://{socket}"]

    def __call__(self, *words: str | Path) -> str:
        """Run a command."""
        return run(*self._start, *words)

    def image(self, name: str) -> dict[str, Any]:
        """Return what it tells about an image."""
        found: dict[str, Any] = json.loads(self("image", "inspect", name))[0]
        return found

    def tree(self, name: str) -> Description:
        """Describe an image's root."""
        return _tree(self.image(name))


@contextlib.contextmanager
def dockerd(base: Path) -> Iterator[Docker]:
    """Run a docker daemon that touches nothing of the host but ``base``; skip where it does not start."""
    need("docker", "dockerd", "containerd")
    path = base / "docker.sock"
    options = ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none"]
    places = [f"--data-root={base}/data", f"--exec-root={base}/exec", f"--pidfile={base}/pid", f"--host=unix://{path}"]
    log = base / "log"
    with log.open("wb") as out:
        daemon = subprocess.Popen(
            [*_SHELL_IN_ITS_OWN_MOUNTS, "dockerd", "--exec-opt=native.cgroupdriver=cgroupfs", *options, *places],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )
    docker = Docker(path)
    try:
        if not _comes_up(daemon, path):
            _skip("dockerd does not start here: " + (log.read_text().splitlines() or ["no words"])[-1])
        yield docker
    finally:
        daemon.terminate()
        daemon.wait(30)


def _comes_up(daemon: subprocess.Popen[bytes], path: Path) -> bool:
    deadline = time.monotonic() + 20
    while daemon.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.fspath(path))
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def registry(base: Path) -> Iterator[str]:
    """Run Debian's docker-registry on loopback, plain; give its ``host:port``."""
    need("docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": f"{base}/data"}, "delete": {"enabled": True}},
        "http": {"addr": address},
    }
    (base / "config.yml").write_text(json.dumps(config))  # YAML has JSON in it
    log = base / "log"
    with log.open("wb") as out:
        command = ["docker-registry", "serve", f"{base}/config.yml"]
        server = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        host, _, port = address.partition(":")
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, "docker-registry does not listen"
                time.sleep(0.02)
        yield address
    finally:
        server.terminate()
        server.wait(10)
