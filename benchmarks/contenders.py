"""Who is measured and how each is set up: the floor, this engine, and the peers from the package archive."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Contender, Worker
from benchmarks.stage import Stage, write_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "CLI_IMPORTS",
    "IMPORT",
    "PEERS",
    "Missing",
    "environment",
    "floor",
    "ours",
    "peer",
    "python_starts",
    "throughput",
    "versions",
    "view",
]

PEERS = ("bwrap", "crun", "runc", "podman", "docker")
RESIDENT = 2 << 30
OTHER_MOUNTS = 500
IMPORT = "from pycontainer import Engine"
CLI_IMPORTS = "import gc; gc.set_threshold(200_000); import pycontainer.cli.foreground, pycontainer.runner"
_HERE = Path(__file__).parent
_SOURCE = _HERE.parent / "src"

# crun 1.8 refuses hybrid cgroups: give it the v1 hierarchies alone, on a tmpfs that goes with its mount namespace.
_WITHOUT_UNIFIED = """
set -e
view=$1; shift
mkdir -p "$view"; mount -t tmpfs view "$view"
for d in /sys/fs/cgroup/*/; do
    case $(stat -fc %T "$d") in cgroup2fs) continue;; esac
    mkdir "$view/$(basename "$d")"; mount --bind "$d" "$view/$(basename "$d")"
done
mount --rbind "$view" /sys/fs/cgroup
exec "$@"
"""
_MANY_MOUNTS = """
set -e
base=$1 count=$2; shift 2
mkdir -p "$base"
i=0; while [ $i -lt $count ]; do mkdir -p "$base/$i"; mount -t tmpfs "other$i" "$base/$i"; i=$((i + 1)); done
exec "$@"
"""


class Missing(Exception):
    """A contender cannot take part; the text says why."""


def environment() -> dict[str, str]:
    """Return the environment for Python contenders: ours, plus the source tree where nothing is installed.

    An installed package has its byte code beside it, so they may write and read theirs too.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if importlib.util.find_spec("pycontainer") is None and _SOURCE.is_dir():
        env["PYTHONPATH"] = str(_SOURCE)
    return env


def _unshared(script: str, *argv: str | Path) -> list[str]:
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *map(str, argv)]


def view(place: Path, *argv: str | Path) -> list[str]:
    """Return a command that sees no hierarchy of version 2 beside those of version 1.

    Args:
        place: where its view of them is put together, in a mount namespace of its own.
        argv: the command.
    """
    if not Path("/sys/fs/cgroup/unified").is_dir():
        return [str(a) for a in argv]
    return _unshared(_WITHOUT_UNIFIED, place, *argv)


def _view(stage: Stage, *argv: str | Path) -> list[str]:
    return view(stage.memory / "cgroup-view", *argv)


def _program(name: str, package: str) -> str:
    path = shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin:" + os.environ.get("PATH", ""))
    if path is None:
        raise Missing(f"{name} is not installed: apt-get install {package}")
    return path


def floor(stage: Stage) -> list[Contender]:
    """Return the floor and the same floor with 500 mounts on the host, once as it is and once copying their table."""
    command = [str(stage.floor), "--rootfs", str(stage.rootfs), "--run-root", str(stage.disk / "runs")]
    command += ["--seccomp", str(stage.bpf), "--group", stage.group]
    many = [str(stage.memory / "floor-mounts"), str(OTHER_MOUNTS), *command]
    return [
        Contender(name="floor", label="kernel floor (bare C)", argv=command),
        Contender(
            name="floor_copy_500",
            label="kernel floor, copying a host table of 500 mounts",
            argv=_unshared(_MANY_MOUNTS, *many, "--copy-host-mounts"),
            sparse_batch=0,
            share=0.5,
        ),
    ]


def ours(stage: Stage) -> list[Contender]:
    """Return ``engine.run`` from a small caller, a big one, and on a host with many mounts.

    Raises:
        Missing: the engine cannot be imported or cannot take the image.
    """
    root = stage.disk / "engine"
    command = [sys.executable, str(_HERE / "caller.py"), "--root", str(root)]
    made = subprocess.run(
        [*command, "--import", str(stage.rootfs), "--filter", str(stage.bpf)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise Missing("pycontainer: " + (made.stderr.strip().splitlines() or ["no words"])[-1])
    env = environment()
    many = _unshared(_MANY_MOUNTS, stage.memory / "other-mounts", str(OTHER_MOUNTS), *command)
    return [
        Contender(name="ours", label="engine.run", argv=command, env=env),
        Contender(
            name="ours_2gb",
            label="engine.run, caller with 2 GB resident",
            argv=[*command, "--resident", str(RESIDENT)],
            env=env,
        ),
        Contender(name="ours_mounts", label="engine.run, 500 other mounts", argv=many, env=env),
    ]


def cli(stage: Stage) -> list[str]:
    """Return the command line of one whole ``pycontainer run``."""
    script = Path(sys.executable).parent / "pycontainer"
    start = [str(script)] if script.exists() else [sys.executable, "-c", "from pycontainer.cli import main; main()"]
    options = ["--root", str(stage.disk / "engine"), "run", "--rm", "--network", "none"]
    limits = ["--memory", "256m", "--cpus", "1", "--pids-limit", "64"]
    return [*start, *options, *limits, "bench", "/bin/true"]


def python_starts(stage: Stage) -> list[Contender]:
    """Return whole Python processes: doing nothing, importing us, importing the CLI, running a container."""
    codes = {
        "python_pass": ("python -c pass", ["-c", "pass"]),
        "python_pass_isolated": ("python -I -S -c pass", ["-I", "-S", "-c", "pass"]),
        "python_import": (f"python -c '{IMPORT}'", ["-c", IMPORT]),
        "python_import_cli": ("importing all that a run takes", ["-c", CLI_IMPORTS]),
    }
    commands = {name: (label, [sys.executable, *code]) for name, (label, code) in codes.items()}
    commands["pycontainer_run"] = ("pycontainer run (whole process)", cli(stage))
    return [
        Contender(
            name=name,
            label=label,
            argv=[str(stage.spawn), "--", *command],
            env=environment(),
            batch=3,
            sparse_batch=1,
        )
        for name, (label, command) in commands.items()
    ]


def _bwrap(stage: Stage) -> list[str]:
    program = _program("bwrap", "bubblewrap")
    return [program, "--unshare-all", "--bind", str(stage.rootfs), "/", "--proc", "/proc", "--dev", "/dev", "/bin/true"]


def _oci(stage: Stage, name: str) -> list[str]:
    bundle = stage.disk / f"bundle-{name}"
    if not bundle.exists():
        write_bundle(stage, bundle.name)
    manager = ["--cgroup-manager=cgroupfs"] if name == "crun" else []
    return [_program(name, name), "--root", str(stage.memory / name), *manager, "run", "--bundle", str(bundle), name]


def _podman(stage: Stage) -> tuple[list[str], Mapping[str, str]]:
    state = stage.memory / "podman"
    state.mkdir()
    config = state / "containers.conf"
    config.write_text(
        "[containers]\ndefault_ulimits = []\n"  # the default raises a limit, which needs CAP_SYS_RESOURCE
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\nruntime = "crun"\n'
    )
    env = {**os.environ, "CONTAINERS_CONF": str(config)}
    podman = [_program("podman", "podman"), "--root", str(state / "root"), "--runroot", str(state / "run")]
    podman += ["--storage-driver", "overlay"]
    _import_image(podman, stage.rootfs, env)
    group = ["--cgroup-parent", f"/{stage.group}"]
    return [*podman, "run", "--rm", "--network", "none", "--ulimit", "host", *group, "bench", "/bin/true"], env


def _import_image(command: Sequence[str], rootfs: Path, env: Mapping[str, str] | None = None) -> None:
    with subprocess.Popen(["tar", "-C", rootfs, "-c", "."], stdout=subprocess.PIPE) as tar:
        done = subprocess.run(
            [*command, "import", "-", "bench"], stdin=tar.stdout, env=env, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise Missing(f"{command[0]} import: {done.stderr.strip()}")


@contextlib.contextmanager
def _docker(stage: Stage) -> Iterator[list[str]]:
    state = stage.memory / "docker"
    state.mkdir()
    socket, log = state / "docker.sock", state / "log"
    client = [_program("docker", "docker.io"), "--host", f"unix://{socket}"]
    options = ["--iptables=false", "--ip6tables=false", "--bridge=none", "--exec-opt", "native.cgroupdriver=cgroupfs"]
    daemon = [_program("dockerd", "docker.io"), "--host", f"unix://{socket}", "--cgroup-parent", f"/{stage.group}"]
    daemon += ["--data-root", str(state / "data"), "--exec-root", str(state / "exec"), "--pidfile", str(state / "pid")]
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", *daemon, *options], stdout=out, stderr=out
        )
    try:
        for _ in range(150):
            if process.poll() is not None or (
                socket.exists()
                and subprocess.run([*client, "version"], capture_output=True, check=False).returncode == 0
            ):
                break
            time.sleep(0.1)
        if process.poll() is not None or not socket.exists():
            raise Missing("dockerd did not start: " + (log.read_text().strip().splitlines() or ["no words"])[-1])
        _import_image(client, stage.rootfs)
        yield [*client, "run", "--rm", "--network", "none", "bench", "/bin/true"]
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def peer(stage: Stage, name: str) -> Iterator[Contender]:
    """Set up one peer for as long as the context lasts.

    Raises:
        Missing: it is not installed or does not run here.
    """
    if name == "bwrap":
        label = "bwrap --unshare-all (no cgroup, seccomp, overlay)"
        yield Contender(name=name, label=label, argv=[str(stage.spawn), "--", *_bwrap(stage)])
    elif name in {"crun", "runc"}:
        argv = _view(stage, stage.spawn, "--", *_oci(stage, name))
        label = f"{name} run, equal bundle with seccomp (no overlay)"
        yield Contender(name=name, label=label, argv=argv, batch=4, sparse_batch=2)
    elif name == "podman":
        command, env = _podman(stage)
        argv = _view(stage, stage.spawn, "--", *command)
        yield Contender(
            name=name, label="podman run --rm --network none", argv=argv, env=env, batch=2, sparse_batch=1, share=0.5
        )
    else:
        with _docker(stage) as command:
            argv = [str(stage.spawn), "--", *command]
            label = "docker run --rm --network none"
            yield Contender(name=name, label=label, argv=argv, batch=2, sparse_batch=1, share=0.5)


def _xargs(command: Sequence[str], count: int) -> float:
    numbers = "".join(f"{i}\n" for i in range(count)).encode()
    start = time.perf_counter()
    done = subprocess.run(
        ["xargs", "-P4", "-I{}", *command],
        input=numbers,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.decode(errors='replace').strip()}")
    return count / (time.perf_counter() - start)


@contextlib.contextmanager
def throughput(
    stage: Stage, *, with_ours: bool, with_bwrap: bool, count: int
) -> Iterator[list[tuple[str, Callable[[], float]]]]:
    """Return functions that give containers per second with four at a time."""
    with contextlib.ExitStack() as stack:

        def threads(name: str, argv: Sequence[str], env: Mapping[str, str] | None) -> tuple[str, Callable[[], float]]:
            worker = Worker(Contender(name=name, label=name, argv=argv, env=env))
            stack.callback(worker.close)
            worker.ask(8)
            return name, lambda: count / worker.ask(count)[1] * 1e6

        found = [threads("floor", [*floor(stage)[0].argv, "--threads", "4"], None)]
        if with_ours:
            command = [sys.executable, str(_HERE / "caller.py"), "--root", str(stage.disk / "engine"), "--threads", "4"]
            found.append(threads("ours", command, environment()))
        if with_bwrap:
            found.append(("bwrap", lambda: _xargs(_bwrap(stage), count)))
        yield found


def versions() -> dict[str, str]:
    """Return the first line of every peer's ``--version``, or that it is not installed."""
    found = {}
    for name in (*PEERS, "dockerd", "containerd"):
        try:
            program = _program(name, name)
        except Missing:
            found[name] = "not installed"
            continue
        out = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        found[name] = (out.strip().splitlines() or ["unknown"])[0]
    return found
