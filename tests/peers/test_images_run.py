"""A Debian made by mmdebstrap and packed by podman, skopeo, umoci and buildah runs here as it does from its root."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontainer import Engine

QUESTIONS = {
    "release": ["cat", "/etc/os-release"],
    "python": ["python3", "-c", "import json, sqlite3, sys; print(sys.version, json.dumps([6 * 7]))"],
    "packages": ["apt", "list", "--installed"],
    "id": ["id"],
    "names": ["getent", "passwd", "root", "nobody"],
    "libraries": ["sh", "-c", "ldconfig -p | sort"],
}


def tool(*command: str | Path) -> None:
    """Run a program; skip when it is not installed."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def podman_options(base: Path, name: str) -> list[str]:
    """Return the options for stores of their own; ``base`` is short, for podman refuses paths over 50 characters."""
    return [f"--root={base}/store", f"--runroot={base}/run", "--storage-driver=vfs"] + (
        ["--cgroup-manager=cgroupfs"] if name == "podman" else []
    )


def by_podman(root: Path, tar: Path, base: Path) -> Path:
    """As docker-archive."""
    del root
    options = podman_options(base, "podman")
    tool("podman", *options, "import", "-q", tar, "localhost/debian:test")
    tool("podman", *options, "save", "-q", "-o", base / "image.tar", "localhost/debian:test")
    return base / "image.tar"


def by_buildah(root: Path, tar: Path, base: Path) -> Path:
    """As OCI layout in a tar."""
    del root
    options = podman_options(base, "buildah")
    tool("buildah", *options, "from", "--name", "work", "scratch")
    tool("buildah", *options, "add", "--quiet", "work", tar, "/")
    tool("buildah", *options, "config", "--cmd", "id", "--env", "FROM=buildah", "work")
    tool("buildah", *options, "commit", "-q", "work", f"oci-archive:{base}/image.tar:debian:test")
    return base / "image.tar"


def by_umoci(root: Path, tar: Path, base: Path) -> Path:
    """As OCI layout with layers by umoci."""
    del tar
    layout = base / "layout"
    tool("umoci", "init", "--layout", layout)
    tool("umoci", "new", "--image", f"{layout}:test")
    tool("umoci", "insert", "--image", f"{layout}:test", root, "/")
    tool(
        "umoci",
        "config",
        "--image",
        f"{layout}:test",
        "--config.cmd",
        "id",
        "--config.env",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    )
    return _packed(layout, base)


def by_skopeo(root: Path, tar: Path, base: Path) -> Path:
    """As OCI layout copied by skopeo from what umoci made, with zstd layers."""
    by_umoci(root, tar, base)
    tool("skopeo", "copy", "-q", "--dest-compress-format=zstd", f"oci:{base}/layout:test", f"oci:{base}/copied:test")
    return _packed(base / "copied", base)


def _packed(layout: Path, base: Path) -> Path:
    path = base / "image.tar"
    path.unlink(missing_ok=True)
    tool("tar", "-C", layout, "-cf", path, ".")
    return path


@pytest.fixture(scope="module")
def debian_root(debian_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the same Debian as a directory."""
    root = tmp_path_factory.mktemp("debian") / "root"
    root.mkdir()
    tool("tar", "-C", root, "--numeric-owner", "-xf", debian_tar, "--exclude=./dev/*")
    return root


@pytest.fixture(scope="module")
def answers(debian_root: Path) -> dict[str, bytes]:
    """Give what the programs answer in the plain root, by chroot: a container must not make a difference."""
    found = {}
    for name, command in QUESTIONS.items():
        done = subprocess.run(
            ["chroot", str(debian_root), "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *command],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        found[name] = done.stdout
    return found


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Give a directory with a short path."""
    with tempfile.TemporaryDirectory(prefix="pyc-") as path:
        yield Path(path)


@pytest.mark.slow
@pytest.mark.parametrize("make", [by_podman, by_buildah, by_umoci, by_skopeo], ids=lambda make: make.__name__[3:])
def test_an_image_answers_as_its_root(
    make: Callable[[Path, Path, Path], Path],
    debian_root: Path,
    debian_tar: Path,
    answers: dict[str, bytes],
    tmp_path: Path,
    short_path: Path,
) -> None:
    archive = make(debian_root, debian_tar, short_path)
    with Engine(tmp_path / "engine") as engine:
        image = engine.images.load(archive)
        for name, command in QUESTIONS.items():
            result = engine.run(image, command, timeout=60)
            assert result.exit_code == 0, result
            assert result.stdout == answers[name], name
        if make is by_buildah:
            assert engine.run(image, ["printenv", "FROM"]).stdout == b"buildah\n"
        if make is not by_podman:
            assert engine.run(image).stdout == answers["id"]
