"""Who handles images and how each is told to: this engine, podman, docker, containerd, umoci."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from benchmarks.contenders import Missing, environment, view

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["ARGUMENT", "CHANGES", "GROUP", "IMAGE", "TOOLS", "Timed", "Tool", "opened", "timed"]

TOOLS = ("ours", "podman", "docker", "ctr", "umoci")
IMAGE = "docker.io/library/image:latest"
ARGUMENT = "<argument>"
CHANGES = 10_000
# Half of the changes are lines added to files of the image, which are copied up; half are new files.
_CHANGE = (
    f"find /app -name '*.js' | sort | head -n {CHANGES // 2} | while read -r f; do echo '// changed' >> $f; done; "
    f"mkdir /srv/new; cd /srv/new; i=0; while [ $i -lt {CHANGES // 2} ]; do echo $i > $i; i=$((i + 1)); done"
)
_TIMEOUT = 300
_TIMER = Path(__file__).parent / "images_timer.py"
GROUP = f"pycontainer-bench-{os.getpid()}"  # the parent of all control groups of peers


@attrs.frozen(kw_only=True)
class Timed:
    """What one command took.

    Attributes:
        seconds: from its start to its end.
        synced: the same, until what it wrote is on the disk.
        processor: seconds of processors that the command itself used, not its daemon.
        memory: the most memory that it, or the daemon that it asked, had resident, in bytes.
        lines: how many lines it wrote.
    """

    seconds: float
    synced: float
    processor: float
    memory: int
    lines: int


@attrs.frozen(kw_only=True)
class Tool:
    """A tool on a store of its own; what it has no command for is empty. In a command, ``@`` below is :data:`ARGUMENT`.

    Attributes:
        name: key in the results.
        version: as it tells.
        env: its environment.
        daemons: processes that do the work for it.
        takes_layout: it loads a directory, not an archive.
        load: loads the archive ``@`` with the image :data:`IMAGE`.
        pull: pulls the reference ``@``.
        save: saves :data:`IMAGE` to the file ``@``.
        remove: removes the image ``@``.
        identity: prints the id of the image ``@``.
        container: makes a stopped container ``changed`` of an image with :data:`CHANGES` changed files.
        diff: prints what is changed in ``changed``.
        commit: makes the image ``committed`` of it.
        discard: removes ``changed``.
    """

    name: str
    version: str
    env: Mapping[str, str] | None = None
    daemons: Sequence[int] = ()
    takes_layout: bool = False
    load: Sequence[str] = ()
    pull: Sequence[str] = ()
    save: Sequence[str] = ()
    remove: Sequence[str] = ()
    identity: Sequence[str] = ()
    container: Sequence[str] = ()
    diff: Sequence[str] = ()
    commit: Sequence[str] = ()
    discard: Sequence[str] = ()


def timed(tool: Tool, command: Sequence[str], argument: str | Path, disk: Path) -> Timed:
    """Run a command of a tool and wait until its work is on the disk.

    Args:
        tool: whose command it is.
        command: what to run.
        argument: stands for :data:`ARGUMENT` in it.
        disk: where its store is.

    Raises:
        RuntimeError: it failed; carries its words.
    """
    subprocess.run(["sync", "-f", disk], check=True)
    for pid in tool.daemons:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM, see proc_pid_clear_refs(5)
    words = [word.replace(ARGUMENT, str(argument)) for word in command]
    out = disk / f"{tool.name}.out"
    helper = [sys.executable, "-I", "-S", str(_TIMER), str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*helper, *words], env=tool.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        answer, _ = process.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{' '.join(words[:6])}: not done within {_TIMEOUT} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    waited = time.perf_counter() - start
    subprocess.run(["sync", "-f", disk], check=True)
    result = json.loads(answer)
    synced = result["seconds"] + time.perf_counter() - start - waited
    if result["status"]:
        lines = out.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"{' '.join(words[:6])}: {' | '.join(lines[-3:]) or 'status ' + str(result['status'])}")
    count = out.read_bytes().count(b"\n")
    out.unlink()
    peaks = [_peak(pid) for pid in tool.daemons]
    return Timed(
        seconds=result["seconds"],
        synced=synced,
        processor=result["processor"],
        memory=max([result["memory"], *peaks]),
        lines=count,
    )


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no VmHWM of process {pid}")


@contextlib.contextmanager
def opened(name: str, disk: Path, memory: Path) -> Iterator[Tool]:
    """Set a tool up for as long as the context lasts; its store is ``disk/NAME`` and is removed.

    Args:
        name: one of :data:`TOOLS`.
        disk: the file system that is measured on.
        memory: a tmpfs for sockets and the like.

    Raises:
        Missing: it is not installed or does not run here.
    """
    home, run = disk / name, memory / name
    home.mkdir()
    run.mkdir()
    try:
        with _OPENERS[name](home, run) as tool:
            yield tool
    finally:
        shutil.rmtree(home)
        shutil.rmtree(run)


def _program(name: str, package: str) -> str:
    path = shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin:" + os.environ.get("PATH", ""))
    if path is None:
        raise Missing(f"{name} is not installed: apt-get install {package}")
    return path


def _version(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or [done.stderr.strip()])[0]


@contextlib.contextmanager
def _ours(home: Path, _run: Path) -> Iterator[Tool]:
    start = [sys.executable, "-m", "pycontainer", f"--root={home}"]
    yield Tool(
        name="ours",
        version=_version(sys.executable, "-m", "pycontainer", "--version"),
        env=environment(),
        load=[*start, "load", "--quiet", "--input", ARGUMENT],
        pull=[*start, "pull", "--quiet", ARGUMENT],
        save=[*start, "save", IMAGE, "--output", ARGUMENT],
        remove=[*start, "rmi", ARGUMENT],
        identity=[*start, "image", "inspect", "--format", "{{.Id}}", ARGUMENT],
        container=[*start, "run", "--name", "changed", "--network", "none", IMAGE, "sh", "-c", _CHANGE],
        diff=[*start, "diff", "changed"],
        commit=[*start, "commit", "changed", "committed"],
        discard=[*start, "rm", "changed"],
    )


@contextlib.contextmanager
def _podman(home: Path, run: Path) -> Iterator[Tool]:
    config = run / "containers.conf"
    config.write_text(
        "[containers]\ndefault_ulimits = []\n"  # the default raises a limit, which needs CAP_SYS_RESOURCE
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\nruntime = "crun"\n'
    )
    start = [_program("podman", "podman"), f"--root={home}", f"--runroot={run}/run", "--storage-driver=overlay"]
    group = f"--cgroup-parent=/{GROUP}"
    made = ["run", "--name", "changed", "--network", "none", "--ulimit", "host", group, IMAGE, "sh", "-c", _CHANGE]
    yield Tool(
        name="podman",
        version=_version("podman", "--version"),
        env={**os.environ, "CONTAINERS_CONF": str(config)},
        load=[*start, "load", "--quiet", "--input", ARGUMENT],
        pull=[*start, "pull", "--quiet", "--tls-verify=false", ARGUMENT],
        save=[*start, "save", "--quiet", IMAGE, "--output", ARGUMENT],
        remove=[*start, "rmi", ARGUMENT],
        identity=[*start, "image", "inspect", "--format", "sha256:{{.Id}}", ARGUMENT],
        container=view(run / "view", *start, *made),
        diff=[*start, "diff", "changed"],
        commit=[*start, "commit", "--quiet", "changed", "committed"],
        discard=[*start, "rm", "changed"],
    )


@contextlib.contextmanager
def _daemon(command: Sequence[str], ready: Sequence[str], log: Path) -> Iterator[int]:
    """Run a daemon until the end of the context; it is ready when a command succeeds."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        for _ in range(200):
            if process.poll() is not None:
                raise Missing(f"{command[0]} ended: " + (log.read_text().strip().splitlines() or ["no words"])[-1])
            if subprocess.run(ready, capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            raise Missing(f"{command[0]} does not answer")
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def _docker(home: Path, run: Path) -> Iterator[Tool]:
    client = [_program("docker", "docker.io"), f"--host=unix://{run}/docker.sock"]
    daemon = [_program("dockerd", "docker.io"), f"--host=unix://{run}/docker.sock", f"--cgroup-parent=/{GROUP}"]
    daemon += [f"--data-root={home}", f"--exec-root={run}/exec", f"--pidfile={run}/pid", "--bridge=none"]
    daemon += ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    daemon += ["--exec-opt=native.cgroupdriver=cgroupfs", "--storage-driver=overlay2"]
    with _daemon(daemon, [*client, "version"], run / "log") as pid:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        run_c = ["run", "--name", "changed", "--network", "none", IMAGE, "sh", "-c", _CHANGE]
        yield Tool(
            name="docker",
            version=_version(*client, "version", "--format", "daemon {{.Server.Version}}, client {{.Client.Version}}"),
            daemons=[pid, *map(int, children)],
            load=[*client, "load", "--quiet", "--input", ARGUMENT],
            pull=[*client, "pull", "--quiet", ARGUMENT],
            save=[*client, "save", IMAGE, "--output", ARGUMENT],
            remove=[*client, "rmi", ARGUMENT],
            identity=[*client, "image", "inspect", "--format", "{{.Id}}", ARGUMENT],
            container=[*client, *run_c],
            diff=[*client, "diff", "changed"],
            commit=[*client, "commit", "changed", "committed"],
            discard=[*client, "rm", "changed"],
        )


@contextlib.contextmanager
def _ctr(home: Path, run: Path) -> Iterator[Tool]:
    config = run / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{home}"\nstate = "{run}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{run}/sock"\n'
    )
    client = [_program("ctr", "containerd"), f"--address={run}/sock"]
    daemon = [_program("containerd", "containerd"), f"--config={config}"]
    with _daemon(daemon, [*client, "version"], run / "log") as pid:
        yield Tool(
            name="ctr",
            version="containerd " + _version(*daemon[:1], "--version").split()[2],
            daemons=[pid],
            load=[*client, "images", "import", ARGUMENT],
            pull=[*client, "images", "pull", "--plain-http", ARGUMENT],
            remove=[*client, "images", "rm", "--sync", ARGUMENT],
        )


@contextlib.contextmanager
def _umoci(home: Path, _run: Path) -> Iterator[Tool]:
    program = _program("umoci", "umoci")
    yield Tool(
        name="umoci",
        version=_version(program, "--version"),
        takes_layout=True,
        load=[program, "unpack", "--image", f"{ARGUMENT}:image", str(home / "bundle")],
        remove=["rm", "-rf", str(home / "bundle")],
    )


_OPENERS = {"ours": _ours, "podman": _podman, "docker": _docker, "ctr": _ctr, "umoci": _umoci}
