"""config.json as other tools write it: all of it is understood, and it reads the same when written again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from pycontainer.oci import runtime

if TYPE_CHECKING:
    from collections.abc import Iterator


def run(*command: str, cwd: Path | None = None) -> str:
    """Return what a program prints; skip when it is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def understood(path: Path) -> runtime.Spec:
    spec = runtime.parse(path.read_bytes())
    assert runtime.parse(runtime.to_json(spec)) == spec
    return spec


@pytest.mark.parametrize("command", [("runc", "spec"), ("runc", "spec", "--rootless"), ("crun", "spec")])
def test_specs_of_runtimes(command: tuple[str, ...], tmp_path: Path) -> None:
    run(*command, cwd=tmp_path)
    spec = understood(tmp_path / "config.json")
    assert spec.process is not None
    assert spec.process.args == ("sh",)
    assert spec.process.no_new_privileges
    assert spec.root == runtime.Root(path="rootfs", readonly=True)
    kinds = {namespace.type for namespace in spec.linux.namespaces}
    assert {"pid", "ipc", "uts", "mount"} <= kinds
    assert ("user" in kinds) == ("--rootless" in command) == bool(spec.linux.uid_mappings)


def test_bundle_of_umoci(tmp_path: Path) -> None:
    run("umoci", "init", "--layout", str(tmp_path / "image"))
    run("umoci", "new", "--image", f"{tmp_path}/image:latest")
    run("umoci", "config", "--image", f"{tmp_path}/image:latest", "--config.cmd", "id", "--config.env", "A=1")
    run("umoci", "unpack", "--image", f"{tmp_path}/image:latest", str(tmp_path / "bundle"))
    spec = understood(tmp_path / "bundle/config.json")
    assert spec.process is not None
    assert "A=1" in spec.process.env
    assert spec.annotations["org.opencontainers.image.os"] == "linux"


PODMAN_OPTIONS = """
    --memory=64m --cpus=1.5 --cpu-shares=512 --pids-limit=64 --memory-swappiness=10 --blkio-weight=100
    --device=/dev/null:/dev/zilch:rw --sysctl=net.ipv4.ip_forward=1 --ulimit=core=0:0
    --cap-add=NET_ADMIN --cap-drop=CHOWN --read-only --tmpfs=/scratch:size=1m --volume=/usr:/host:ro,rslave
    --oom-score-adj=100 --user=1000:1000 --group-add=27 --umask=0077 --workdir=/ --hostname=c1 --tty --annotation=a=b
    --security-opt=no-new-privileges --security-opt=mask=/proc/uptime
"""


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Give a directory whose path is short enough for podman's sockets."""
    with tempfile.TemporaryDirectory(prefix="pyc-") as path:
        yield Path(path)


def test_container_of_podman(short_path: Path) -> None:
    (short_path / "rootfs").mkdir()
    podman = (
        "podman", f"--root={short_path}/store", f"--runroot={short_path}/run", "--storage-driver=vfs",
        "--cgroup-manager=cgroupfs", "--runtime=crun",
    )  # fmt: skip
    options = [*PODMAN_OPTIONS.split(), "--device-cgroup-rule=c 1:* rw"]
    identity = run(*podman, "create", "--network=none", *options, "--rootfs", f"{short_path}/rootfs", "/bin/sh").strip()
    try:
        # It writes the document before the runtime, which may fail here: there is nothing in the root.
        subprocess.run([*podman, "init", identity], capture_output=True, check=False, timeout=60)
        (document,) = short_path.glob(f"store/vfs-containers/{identity}/userdata/config.json")
        spec = understood(document)
        plain = json.loads(document.read_bytes())
    finally:
        run(*podman, "rm", "--force", identity)
    assert spec.process is not None
    assert spec.process.user == runtime.User(uid=1000, gid=1000, umask=0o077, additional_gids=(1000, 27))
    assert spec.process.terminal
    assert spec.linux.resources is not None
    assert spec.linux.resources.memory is not None
    assert spec.linux.resources.memory.limit == 64 * 1024**2
    assert spec.linux.seccomp is not None
    assert len(spec.linux.seccomp.syscalls) == len(plain["linux"]["seccomp"]["syscalls"])
    assert "/proc/uptime" in spec.linux.masked_paths


@pytest.mark.parametrize("command", ["runc", "crun"])
def test_runtimes_take_what_we_write(command: str, tmp_path: Path) -> None:
    run(command, "spec", cwd=tmp_path)
    spec = understood(tmp_path / "config.json")
    assert spec.process is not None
    spec = attrs.evolve(spec, process=attrs.evolve(spec.process, terminal=False))
    (tmp_path / "config.json").write_bytes(runtime.to_json(spec))
    # There is no root, so they fail, but not at reading the document.
    done = subprocess.run(
        [command, f"--root={tmp_path}/state", "create", f"--bundle={tmp_path}", "document"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert not re.search("json|pars|schema|spec|missing", done.stderr), done.stderr
