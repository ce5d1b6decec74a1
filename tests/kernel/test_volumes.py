"""What an image declares as volumes lies outside the container's layers and starts with the image's content."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from pycontainer import IdMap, ImageConfig, Mount

if TYPE_CHECKING:
    from pathlib import Path

    from pycontainer import Engine, Image


@pytest.fixture
def image(engine: Engine, busybox_rootfs: Path, tmp_path: Path) -> Image:
    root = tmp_path / "rootfs"
    shutil.copytree(busybox_rootfs, root, symlinks=True)
    data = root / "srv/data"
    (data / "deep").mkdir(parents=True)
    (data / "deep/file").write_text("from the image")
    (data / "link").symlink_to("/etc/passwd")
    os.chown(data, 1000, 1000)
    data.chmod(0o750)
    config = ImageConfig(command=["true"], volumes=["/srv/data", "/srv/none"])
    return engine.images.import_rootfs(root, reference="volumes", config=config)


def test_a_volume_starts_with_the_images_content(engine: Engine, image: Image) -> None:
    command = (
        "cat /srv/data/deep/file; readlink /srv/data/link; stat -c %u:%a /srv/data; ls /srv/none;"
        "grep -c ' /srv/' /proc/mounts"
    )
    result = engine.run(image, ["sh", "-c", command])
    assert result.stdout.decode().split("\n") == ["from the image/etc/passwd", "1000:750", "2", ""]


def test_what_is_written_there_is_gone_with_the_container(engine: Engine, image: Image) -> None:
    assert engine.run(image, ["sh", "-c", "echo x > /srv/data/new"]).ok
    assert engine.run(image, ["ls", "/srv/data"]).stdout == b"deep\nlink\n"


def test_a_mount_of_the_caller_takes_its_place(engine: Engine, image: Image) -> None:
    result = engine.run(image, ["ls", "-A", "/srv/data"], mounts=[Mount.tmpfs("/srv/data")])
    assert result.stdout == b""


def test_in_a_user_namespace_it_belongs_to_the_containers_users(engine: Engine, image: Image) -> None:
    result = engine.run(image, ["stat", "-c", "%u", "/srv/data", "/srv/none"], userns=[IdMap(0, 100000, 65536)])
    assert result.stdout == b"1000\n0\n"
