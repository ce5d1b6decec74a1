"""The skeleton: the lowest layer under every image, with the places at which each container gets mounts.

With it no start has to make directories and files in the container's own layer, so that layer holds only what the
container wrote. What an image has under these names covers the skeleton.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["FILES", "prepare"]

FILES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
_DIRECTORIES = ("dev", "etc", "proc", "sys")
_VERSION = 1


def prepare(cache: Path) -> str:
    """Return the path of the skeleton, made when it is missing.

    Args:
        cache: directory of things that can be made again.
    """
    path = cache / f"skeleton-{_VERSION}"
    if path.is_dir():
        return str(path)
    import shutil  # slow to import, and this is done once in the life of a store
    import tempfile

    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="skeleton-", dir=cache))
    try:
        for name in _DIRECTORIES:
            (made / name).mkdir()
            (made / name).chmod(0o755)
        for name in FILES:
            file = made / name.removeprefix("/")
            file.touch()
            file.chmod(0o644)
        made.chmod(0o755)
        os.rename(made, path)  # noqa: PTH104 - Path.rename says nothing of directories
    except OSError:
        shutil.rmtree(made)
        if not path.is_dir():  # else another program was quicker
            raise
    return str(path)
