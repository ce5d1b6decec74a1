"""Measure the life of an image against podman, docker, containerd and umoci, all in the same run.

Usage, as root: ``python -m benchmarks.images [--quick] [--parts load,save,…] [--tools ours,podman,…] [--out DIR]``
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console

from benchmarks import images_report as report
from benchmarks.contenders import Missing, environment
from benchmarks.images_tools import ARGUMENT, CHANGES, GROUP, IMAGE, TOOLS, Timed, Tool, opened, timed
from benchmarks.images_yardstick import Yardstick, write_layout, yardstick
from benchmarks.measure import Contender, Samples, exclusive, measure
from benchmarks.stage import end_orphans, private_mounts, remove_groups
from tests import images as recipes_of
from tests import recipes
from tests.peers.tools import overlay, registry

HERE = Path(__file__).parent
PARTS = ("load", "save", "commit", "remove", "pull", "start", "read")
# About how long one round of everything takes, in seconds, on two processors.
_COST = {"ours": 25, "podman": 75, "docker": 110, "ctr": 60, "umoci": 25}
_EXTRAS = 60
_READER = "tar -C {} --one-file-system -cf - . | cat >/dev/null"


@attrs.frozen(kw_only=True)
class Stage:
    """Where everything is.

    Attributes:
        disk: an ext4 on a loop device; every store is on it, and the archives.
        memory: a tmpfs for sockets and the like.
        registry: ``host:port``.
        archive: the image in an archive that is docker's and OCI's at once, its layers gzip.
        layout: the same in an OCI layout.
        identity: the image's id.
    """

    disk: Path
    memory: Path
    registry: str
    archive: Path
    layout: Path
    identity: str


@attrs.define
class Found:
    """What was measured.

    Attributes:
        times: step to tool to what each round took.
        missing: ``step: tool`` to why it is not measured.
        starts: times of starts of images of one layer and of 120.
        reads: ``cold`` or ``warm`` to file system to seconds for reading every file.
        versions: tool to version.
    """

    times: dict[str, dict[str, list[Timed]]] = attrs.field(factory=dict)
    missing: dict[str, str] = attrs.field(factory=dict)
    starts: Samples = attrs.field(factory=Samples)
    reads: dict[str, dict[str, list[float]]] = attrs.field(factory=dict)
    versions: dict[str, str] = attrs.field(factory=dict)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the life of an image against other tools.")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which, of {','.join(PARTS)}")
    parser.add_argument("--tools", default=",".join(TOOLS), help=f"who, of {','.join(TOOLS)}")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of this engine")
    parser.add_argument("--peer-rounds", type=int, default=1, help="rounds of the others")
    parser.add_argument("--quick", action="store_true", help="one round each, fewer starts; numbers are rough")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where results, the plot and the page go")
    parser.add_argument("--space", type=Path, default=Path("/var/tmp"), help="where the loop file goes")  # noqa: S108 - a disk
    parser.add_argument(
        "--lock", type=Path, default=Path(tempfile.gettempdir()) / "pycontainer-bench.lock", help="held while measuring"
    )
    arguments = parser.parse_args()
    for name, known in (("parts", PARTS), ("tools", TOOLS)):
        chosen = [word for word in getattr(arguments, name).split(",") if word]
        unknown = set(chosen) - set(known)
        if unknown:
            parser.error(f"unknown {name}: {', '.join(sorted(unknown))}")
        setattr(arguments, name, chosen)
    if arguments.quick:
        arguments.rounds = arguments.peer_rounds = 1
    if os.geteuid() != 0:
        parser.error("needs root: file systems are mounted and layers unpacked")
    return arguments


# ── the stage ─────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _stage(image: Yardstick, space: Path) -> Iterator[Stage]:
    private_mounts()
    base = Path(tempfile.mkdtemp(prefix="pyc-bench-", dir=space))
    disk, memory = base / "d", base / "m"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, base)
        for path in (disk, memory):
            path.mkdir()
        with (base / "ext4").open("wb") as file:
            file.truncate(16 << 30)
        _mount("ext4", base / "ext4", disk, "loop")
        stack.callback(_unmount, disk)
        _mount("tmpfs", "bench", memory, "size=256m")
        stack.callback(_unmount, memory)
        stack.callback(remove_groups, [GROUP])
        stack.callback(end_orphans)
        (disk / "registry").mkdir()
        address = stack.enter_context(registry(disk / "registry"))
        yield _fill(image, disk, memory, address)


def _mount(kind: str, source: str | Path, target: Path, options: str) -> None:
    if kind == "ext4":
        subprocess.run(["mkfs.ext4", "-q", source], check=True)
    subprocess.run(["mount", "-t", kind, "-o", options, source, target], check=True)


def _unmount(target: Path) -> None:
    subprocess.run(["umount", "--lazy", "--recursive", target], check=True)


def _fill(image: Yardstick, disk: Path, memory: Path, address: str) -> Stage:
    """Write the archive and fill the registry."""
    identity = write_layout(image, disk / "gzip", "gzip", "image")
    write_layout(image, disk / "zstd", "zstd", "image")
    write_layout(image, disk / "small", "gzip", "image", [1])
    recipes_of.write_hybrid(disk / "gzip", disk / "image.tar", IMAGE)
    for kind in ("gzip", "zstd", "small"):
        place = f"docker://{address}/image:{kind}"
        copied = subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", f"oci:{disk}/{kind}:image", place],
            capture_output=True,
            text=True,
            check=False,
        )
        if copied.returncode:
            raise RuntimeError(f"skopeo cannot fill the registry: {copied.stderr.strip()}")
    for kind in ("zstd", "small"):
        shutil.rmtree(disk / kind)
    return Stage(
        disk=disk,
        memory=memory,
        registry=address,
        archive=disk / "image.tar",
        layout=disk / "gzip",
        identity=identity,
    )


# ── the life of an image ──────────────────────────────────────────────────────────────────────────────────────────


class _Life:
    """One round of one tool.

    Args:
        stage: where.
        tool: who.
        parts: what.
        found: receives it.
    """

    def __init__(self, stage: Stage, tool: Tool, parts: list[str], found: Found) -> None:
        self._stage, self._tool, self._parts, self._found = stage, tool, parts, found

    def live(self) -> None:
        """Go through all chosen parts that the tool knows."""
        tool, parts = self._tool, self._parts
        if {"load", "save", "commit", "remove"} & set(parts):
            archive = self._stage.layout if tool.takes_layout else self._stage.archive
            if self._step("load a gzip archive", tool.load, archive):
                self._check(IMAGE)
                if "save" in parts:
                    self._save()
                if "commit" in parts and tool.container:
                    self._commit()
                self._step("remove the image", tool.remove, IMAGE)
        if "pull" in parts:
            for step, kind in (("gzip layers", "gzip"), ("zstd layers", "zstd"), ("one layer of 25 MB", "small")):
                reference = f"{self._stage.registry}/image:{kind}"
                if self._step(f"pull, {step}", tool.pull, reference):
                    if kind != "small":
                        self._check(reference)
                    self._quietly(tool.remove, reference)

    def _save(self) -> None:
        target = self._stage.disk / "saved.tar"
        self._step("save", self._tool.save, target)
        target.unlink(missing_ok=True)

    def _commit(self) -> None:
        if self._quietly(self._tool.container, ""):
            if self._step("diff, 10,000 changes", self._tool.diff, ""):
                told = self._found.times["diff, 10,000 changes"][self._tool.name][-1].lines
                if told < CHANGES:
                    raise RuntimeError(f"{self._tool.name} tells {told} changes of {CHANGES}")
            if self._step("commit, 10,000 changes", self._tool.commit, ""):
                self._quietly(self._tool.remove, "committed")
            self._quietly(self._tool.discard, "")

    def _step(self, step: str, command: list[str] | Any, argument: str | Path) -> bool:  # noqa: ANN401
        """Time a command; note why when it fails."""
        if not command:
            return False
        try:
            taken = timed(self._tool, command, argument, self._stage.disk)
        except RuntimeError as error:
            self._found.missing[f"{step}: {self._tool.name}"] = str(error)
            _say(f"    {step}: {error}")
            return False
        self._found.times.setdefault(step, {}).setdefault(self._tool.name, []).append(taken)
        whole = f"{taken.seconds:.2f} s, {taken.synced:.2f} s to disk, {taken.processor:.2f} s of processors"
        _say(f"    {step}: {whole}, {taken.memory >> 20} MiB")
        return True

    def _quietly(self, command: Any, argument: str) -> bool:  # noqa: ANN401
        try:
            timed(self._tool, command, argument, self._stage.disk)
        except RuntimeError as error:
            self._found.missing[f"set-up: {self._tool.name}"] = str(error)
            _say(f"    set-up: {error}")
            return False
        return True

    def _check(self, name: str) -> None:
        """Make sure that it is the image."""
        if not self._tool.identity:
            return
        words = [word.replace(ARGUMENT, name) for word in self._tool.identity]
        done = subprocess.run(words, env=self._tool.env, capture_output=True, text=True, check=False)
        if self._stage.identity not in done.stdout:
            raise RuntimeError(f"{self._tool.name} has another image: {done.stdout.strip()} {done.stderr.strip()}")


def _lives(stage: Stage, arguments: argparse.Namespace, found: Found) -> None:
    for turn in range(max(arguments.rounds, arguments.peer_rounds)):
        for name in arguments.tools:
            if turn >= (arguments.rounds if name == "ours" else arguments.peer_rounds):
                continue
            _say(f"  {name}, round {turn + 1}")
            try:
                with opened(name, stage.disk, stage.memory) as tool, exclusive(arguments.lock):
                    found.versions[name] = tool.version
                    _Life(stage, tool, arguments.parts, found).live()
            except Missing as reason:
                found.missing[f"everything: {name}"] = str(reason)
                _say(f"    left out: {reason}")


# ── starts of many layers ─────────────────────────────────────────────────────────────────────────────────────────


def _caller(root: Path, *words: str | Path) -> list[str]:
    return [sys.executable, str(HERE / "images_caller.py"), f"--root={root}", *map(str, words)]


def _starts(stage: Stage, arguments: argparse.Namespace, found: Found) -> None:
    """Compare starts of an image of 120 layers with those of one of one layer."""
    root = stage.disk / "starts"
    contenders = []
    for layers in (1, 120):
        name = f"chain-{layers}"
        recipes_of.write_layout(stage.disk / name, recipes.chain(layers), tag="chain", compression="gzip")
        subprocess.run(_caller(root, "--load", stage.disk / name, name), env=environment(), check=True)
        contenders.append(
            Contender(
                name=name, label=f"{layers} layers", argv=_caller(root, "--start", name), env=environment(), batch=10
            )
        )
    rounds = 3 if arguments.quick else 15
    measure(contenders, found.starts, rounds=rounds, sparse_rounds=rounds, pause_ms=50, lock=arguments.lock)
    for name in ("chain-1", "chain-120"):
        shutil.rmtree(stage.disk / name)
    shutil.rmtree(root)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _in_a_container(stage: Stage) -> Iterator[Path]:
    """Give the root of a container of the image, as the host sees it."""
    root = stage.disk / "reading"
    subprocess.run(_caller(root, "--load", stage.archive, IMAGE), env=environment(), check=True)
    command = _caller(root, "--hold", IMAGE)
    with subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        if holder.stdout is None:
            raise RuntimeError("no pipe to the holder of the container")
        yield Path(f"/proc/{int(holder.stdout.readline())}/root")
        holder.communicate()
    shutil.rmtree(root)


@contextlib.contextmanager
def _on_ext4(stage: Stage, image: Yardstick) -> Iterator[Path]:
    """Give an overlay of the layers, unpacked by GNU tar."""
    layers = []
    for number, path in enumerate(image.layers("plain")):
        layer = stage.disk / f"plain/{number}"
        layer.mkdir(parents=True)
        subprocess.run(["tar", "-C", layer, "--numeric-owner", "-xpf", path], check=True)
        layers.append(layer)
    with overlay(layers[::-1]) as merged:
        yield merged
    shutil.rmtree(stage.disk / "plain")


def _reads(stage: Stage, image: Yardstick, arguments: argparse.Namespace, found: Found) -> None:
    """Compare reading every file of the image with reading it from ext4, with and without its pages in memory."""
    with _in_a_container(stage) as ours, _on_ext4(stage, image) as plain, exclusive(arguments.lock):
        for _ in range(1 if arguments.quick else 3):
            for name, root in (("ours", ours), ("ext4", plain)):
                subprocess.run(["sync"], check=True)
                Path("/proc/sys/vm/drop_caches").write_text("3")
                for kind in ("cold", "warm"):
                    start = time.perf_counter()
                    subprocess.run(["sh", "-c", _READER.format(root)], check=True)
                    seconds = time.perf_counter() - start
                    found.reads.setdefault(kind, {}).setdefault(name, []).append(seconds)
                    _say(f"    read everything, {kind}, {name}: {seconds:.2f} s")


def _estimate(arguments: argparse.Namespace) -> int:
    rounds = {name: arguments.rounds if name == "ours" else arguments.peer_rounds for name in arguments.tools}
    share = len({*arguments.parts} - {"start", "read"}) / 5
    extras = _EXTRAS if {"start", "read"} & {*arguments.parts} else 0
    return int(sum(_COST[name] * count for name, count in rounds.items()) * share + extras)


def _machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "processors": os.cpu_count(),
        "processor": model,
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def main() -> int:
    """Measure, print tables, write ``images.json``, ``images.svg`` and ``images.md``."""
    arguments = _arguments()
    began = time.monotonic()
    _say("making the image, if it is not kept from before")
    image = yardstick()
    _say(f"measuring; about {_estimate(arguments) / 60:.0f} min")
    machine, found = _machine(), Found()
    taken = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    with _stage(image, arguments.space) as stage:
        _lives(stage, arguments, found)
        if "start" in arguments.parts:
            _starts(stage, arguments, found)
        if "read" in arguments.parts:
            _reads(stage, image, arguments, found)
    machine["load_after"] = round(os.getloadavg()[0], 2)
    results = {
        "taken": taken,
        "machine": machine,
        "image": image.facts,
        "seconds": round(time.monotonic() - began),
        **attrs.asdict(found),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "images.json").write_text(json.dumps(results, indent=1))
    (arguments.out / "images.md").write_text(report.markdown(results))
    problem = report.plot(results, arguments.out / "images.svg")
    report.tables(results, Console())
    if problem:
        _say(problem)
    _say(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
