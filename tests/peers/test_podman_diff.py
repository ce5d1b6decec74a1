"""What a container changed, as podman tells it for the same changes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontainer import Engine, Image
from tests.peers.podman import Podman

SCRIPT = """
mkdir -p /data/deep/er; echo x > /data/deep/er/file; ln -s file /data/deep/er/link; mkfifo /data/fifo
echo more >> /etc/passwd; rm /etc/group; rm -r /home; mkdir /home; echo x > /home/me
rm -r /var/tmp; echo a file now > /var/tmp; chmod 750 /root; touch /tmp/t; ln /etc/passwd /second
"""
# What podman itself puts into a container's layer, or leaves there.
OF_PODMAN = ("/dev", "/proc", "/sys", "/run", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab")


@pytest.fixture
def podman() -> Iterator[Podman]:
    base = Path(tempfile.mkdtemp(prefix="pycd", dir="/var/tmp"))
    made = None
    try:
        made = Podman(base, "crun")
        yield made
    finally:
        if made is not None:
            made.close()
        shutil.rmtree(base)


def test_diff_is_podmans(engine: Engine, busybox: Image, podman: Podman) -> None:
    container = engine.containers.create(busybox, ["sh", "-ec", SCRIPT])
    assert container.run().exit_code == 0
    ours = {(change.kind, change.path) for change in container.diff()}
    engine.images.save(podman.base / "image.tar", busybox, format="docker-archive")
    loaded = podman("load", "--quiet", "--input", podman.base / "image.tar")
    assert loaded.returncode == 0, loaded.stderr
    done = podman("run", "--name", "changed", "busybox:test", "sh", "-ec", SCRIPT)
    assert done.returncode == 0, done.stderr
    told = json.loads(podman("diff", "--format", "json", "changed").stdout)
    theirs = {(kind, path) for kind in ("added", "changed", "deleted") for path in told.get(kind) or ()}
    podman("rm", "changed")
    theirs = {item for item in theirs if not item[1].startswith(OF_PODMAN)}
    # A directory that was made anew is deleted, as podman says it; what it has now podman lists all the same.
    assert ours - theirs == {("changed", "/home"), ("deleted", "/home/app")}
    assert theirs - ours == {("deleted", "/home")}
