"""Time the application of a layer of many small files against ``tar -xz`` of the same blob, on a fresh ext4.

    python -m benchmarks.layers [--files 45000] [--rounds 5]

Needs root: it makes an ext4 with a journal in a loop-mounted file, so that neither the host's file system nor its past
counts. Ours verifies two digests meanwhile, tar none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pycontainer.distribution.layer import AppliedLayer, apply

PER_DIRECTORY = 6
MEAN_SIZE = 5000  # bytes, of a file


def make_tree(root: Path, files: int) -> None:
    """Make a tree like node_modules: small files in many nested directories, some links."""
    rng = random.Random(1)  # noqa: S311 - the same tree every time
    words = [bytes(rng.choices(b"abcdefghijklmnop (){};=\n", k=rng.randint(3, 12))) for _ in range(400)]
    for index in range(files):
        number, name = divmod(index, PER_DIRECTORY)
        directory = root / f"package-{number // 9}" / "dist" / f"part-{number % 9}"
        if name == 0:
            directory.mkdir(parents=True)
        size = min(int(rng.expovariate(1 / MEAN_SIZE)), 200_000)
        (directory / f"module-{name}.js").write_bytes(b"".join(rng.choices(words, k=size // 8)))
        if index % 100 == 0:
            (directory / "latest.js").symlink_to("module-0.js")


@contextmanager
def ext4(directory: Path, size: str = "4G") -> Iterator[Path]:
    """Mount a new ext4 with default options."""
    image, mounted = directory / "disk", directory / "mounted"
    mounted.mkdir()
    subprocess.run(["truncate", "-s", size, image], check=True)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True)


def by_tar(blob: Path, target: Path) -> None:
    """Extract as GNU tar and gzip do, with no digest verified."""
    subprocess.run(["tar", "-xzpf", blob, "--numeric-owner", "-C", target], check=True)


def timed(action: Callable[[Path], object], disk: Path, copies: int = 1) -> float:
    """Run the action in ``copies`` threads, each on a directory of its own; return seconds."""
    targets = [disk / f"target-{number}" for number in range(copies)]
    for target in targets:
        target.mkdir()
    start = time.perf_counter()
    with ThreadPoolExecutor(copies) as pool:
        list(pool.map(action, targets))
    seconds = time.perf_counter() - start
    for target in targets:
        shutil.rmtree(target)
    subprocess.run(["sync", "-f", disk], check=True)
    return seconds


def measure(blob: Path, disk: Path, rounds: int) -> dict[str, float]:
    """Alternate the contenders; return the median of each in seconds."""
    digest = "sha256:" + hashlib.sha256(blob.read_bytes()).hexdigest()
    (disk / "first").mkdir()
    first = apply(blob, disk / "first")
    shutil.rmtree(disk / "first")

    def ours(target: Path) -> AppliedLayer:
        return apply(blob, target, expected_digest=digest, expected_diff_id=first.diff_id)

    def tar(target: Path) -> None:
        by_tar(blob, target)

    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, action in (("pycontainer", ours), ("tar -xz", tar)):
            for copies in (1, 2):
                times.setdefault(f"{name}, {copies} at a time", []).append(timed(action, disk, copies))
    return {"entries": first.entries, "bytes": first.bytes} | {key: statistics.median(v) for key, v in times.items()}


def main() -> None:
    """Build the layer, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=45_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, ext4(Path(name)) as disk:
        directory = Path(name)
        make_tree(directory / "tree", arguments.files)
        blob = directory / "layer.tar.gz"
        subprocess.run(["tar", "-C", directory / "tree", "-czf", blob, "."], check=True)
        print(json.dumps(measure(blob, disk, arguments.rounds), indent=2))


if __name__ == "__main__":
    main()
