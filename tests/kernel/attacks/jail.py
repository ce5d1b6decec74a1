"""A container under attack: an engine, an image with the attack program in it, and the same program outside."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pycontainer import Engine, Image, Result

__all__ = ["PRIVILEGED", "Jail", "Node", "build", "compile_attacks", "keep_node"]

SOURCE = Path(__file__).with_name("attack.c")
PRIVILEGED: dict[str, Any] = {"privileged": True}
SECONDS = 20.0


@attrs.frozen(kw_only=True)
class Jail:
    """What the tests attack.

    Attributes:
        engine: on a root of its own.
        image: busybox with ``attack`` and ``attack-setuid`` in /bin.
        tree: the directory that the image was made of.
        tool: the attack program on the host.
        scratch: a directory of the host.
    """

    engine: Engine
    image: Image
    tree: Path
    tool: Path
    scratch: Path

    def run(self, *command: str, **options: Any) -> Result:
        """Run a command in a new container."""
        options.setdefault("image", self.image)
        options.setdefault("timeout", SECONDS)
        return self.engine.run(options.pop("image"), list(command), **options)

    def sh(self, script: str, **options: Any) -> str:
        """Run a shell script that must succeed; return its output without the last newline."""
        result = self.run("/bin/sh", "-euc", script, **options)
        assert result.exit_code == 0, (result.exit_code, result.stdout, result.stderr)
        return result.stdout.decode().rstrip("\n")

    def attack(self, *words: object, **options: Any) -> int:
        """Run one attack in a new container; return its errno, 0 when it worked."""
        return self.told(*words, **options)[0]

    def told(self, *words: object, **options: Any) -> tuple[int, str]:
        """The same, and what the attack had to tell."""
        program = options.pop("program", "/bin/attack")
        result = self.run(program, *map(str, words), **options)
        assert result.exit_code == 0, (result.exit_code, result.stdout, result.stderr)
        return int(result.stdout), result.stderr.decode(errors="replace")

    def outside(self, *words: object, **options: Any) -> int:
        """Run one attack on the host; return its errno, 0 when it worked."""
        done = subprocess.run(
            [self.tool, *map(str, words)], check=True, capture_output=True, text=True, timeout=SECONDS, **options
        )
        return int(done.stdout)

    def variant(self, name: str, change: Callable[[Path], None], **config: Any) -> Image:
        """Return an image whose root was changed first."""
        tree = self.scratch / f"tree-{name}"
        shutil.copytree(self.tree, tree, symlinks=True)
        os.chown(tree / "home/app", 1000, 1000)
        change(tree)
        try:
            return self.engine.images.import_rootfs(tree, reference=f"jail:{name}", **config)
        finally:
            shutil.rmtree(tree)


def compile_attacks(directory: Path) -> Path:
    """Return the attack program, compiled into ``directory``."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler; as root: apt-get install gcc libc6-dev")
    program = directory / "attack"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-static"]
    subprocess.run([compiler, *flags, "-o", program, SOURCE], check=True)
    return program


def build(engine: Engine, busybox: Path, tool: Path, scratch: Path) -> Jail:
    """Return a jail on an engine."""
    tree = scratch / "tree"
    shutil.copytree(busybox, tree, symlinks=True)
    os.chown(tree / "home/app", 1000, 1000)
    for name, mode in (("attack", 0o755), ("attack-setuid", 0o4755)):
        shutil.copy(tool, tree / "bin" / name)
        (tree / "bin" / name).chmod(mode)
    image = engine.images.import_rootfs(tree, reference="jail:test")
    return Jail(engine=engine, image=image, tree=tree, tool=tool, scratch=scratch)


@attrs.frozen
class Node:
    """What can be seen of a file of the host that somebody may have tampered with."""

    mode: int
    uid: int
    gid: int
    mtime: int

    @classmethod
    def of(cls, path: str) -> Node:
        """Look at a file."""
        st = os.stat(path)  # noqa: PTH116 - a path of /proc among others
        return cls(st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns)


def keep_node(path: str) -> Iterator[Node]:
    """Yield what a file is like, and make it so again afterwards: an attack that works must not hurt the host."""
    before = Node.of(path)
    try:
        yield before
    finally:
        os.chown(path, before.uid, before.gid)
        Path(path).chmod(before.mode & 0o7777)
