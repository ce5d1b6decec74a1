"""Show the main job: a command of a real image, in a fully isolated container, from Python, in milliseconds.

``make demo`` runs this. It makes a small Debian with mmdebstrap (once) and imports it into the store
that is its argument, or the default one; where it cannot be had it uses a read-only view of this host's own programs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from pycontainer import Engine, Error, Image, Limits, NotFound
from tests import rootfs

LIMITS = Limits(memory="256M", cpus=1, pids=64)
RUNS = 20

# Runs on both sides: what a process can see of the world.
PROBE = """
import json, os, pathlib, socket
read = lambda path: pathlib.Path(path).read_text()
status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
def limit(*names):
    for name in names:
        try:
            return read(f"/sys/fs/cgroup/{name}").strip()
        except OSError:
            pass
def can(action):
    try:
        action()
    except OSError as error:
        return os.strerror(error.errno)
    return "yes"
release = dict(line.split("=", 1) for line in read("/etc/os-release").splitlines() if "=" in line)
print(json.dumps({
    "system": release["PRETTY_NAME"].strip('"'),
    "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))},
    "hostname": socket.gethostname(),
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "mounts": len(read("/proc/self/mountinfo").splitlines()),
    "capabilities": bin(int(status["CapEff"], 16)).count("1"),
    "seccomp": {"0": "off", "1": "strict", "2": "filter"}[status["Seccomp"].strip()],
    "memory limit": limit("memory.max", "memory/memory.limit_in_bytes"),
    "pids limit": limit("pids.max", "pids/pids.max"),
    "devices": len(os.listdir("/dev")),
    "write /proc/sys": can(lambda: os.close(os.open("/proc/sys/kernel/hostname", os.O_WRONLY))),
}))
"""

NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user", "time")


class Clock:
    """Times steps and keeps them for the table at the end."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, float]] = []
        self._last = time.perf_counter()

    def step(self, what: str) -> float:
        """Note the seconds since the last step."""
        now = time.perf_counter()
        took, self._last = now - self._last, now
        self.steps.append((what, took))
        return took


def real_image(engine: Engine, clock: Clock, console: Console) -> tuple[Image, str]:
    """Return a Debian image and where it came from; the host image when none can be made."""
    reference = f"debian:{rootfs.host_suite()}"
    try:
        image = engine.images.get(reference)
    except NotFound:
        console.print(f"Making a small [bold]{reference}[/] with mmdebstrap: about 40 s, once")
        try:
            tar = rootfs.debian_tar()
        except rootfs.CannotBuild as reason:
            console.print(f"[yellow]{reason}[/]\nUsing this host's own programs as the image instead.")
            image = engine.images.host()
            clock.step("image of the host's programs")
            return image, "a read-only view of this host's programs"
        clock.step("make a Debian (mmdebstrap)")
        image = engine.images.import_rootfs(tar, reference=reference)
        clock.step("import it: digest, unpack")
    else:
        clock.step("find the image")
    return image, reference


def show_isolation(console: Console, inside: dict[str, Any], outside: dict[str, Any]) -> None:
    """Print what a process sees inside, beside what this one sees."""
    table = Table(title="What a process sees", title_justify="left", width=80)
    for column in ("", "in the container", "on the host"):
        table.add_column(column, overflow="fold")
    for key in ("system", "hostname", "processes", "interfaces", "mounts", "devices", "capabilities", "seccomp"):
        pair = [", ".join(value) if isinstance(value, list) else str(value) for value in (inside[key], outside[key])]
        table.add_row(key, *pair)
    for key in ("memory limit", "pids limit", "write /proc/sys"):
        table.add_row(key, readable(inside[key]), readable(outside[key]))
    console.print(table)

    own = [name for name in NAMESPACES if inside["namespaces"].get(name) != outside["namespaces"].get(name)]
    shared = [name for name in NAMESPACES if name in outside["namespaces"] and name not in own]
    console.print(f"Namespaces of its own: [green]{' '.join(own)}[/]; shared, on request only: {' '.join(shared)}\n")


def readable(limit: str | None) -> str:
    """Return a limit as people write it; the kernel's words for none are "max", nothing, or a very large number."""
    if limit is None or limit == "max" or (limit.isdigit() and int(limit) > 2**60):
        return "none"
    return f"{int(limit) // 2**20} MiB" if limit.isdigit() and int(limit) >= 2**20 else limit


def measure(engine: Engine, image: Image, pause: float) -> list[float]:
    """Return the milliseconds of each of some runs of /bin/true, everything on."""
    times = []
    for _ in range(RUNS):
        time.sleep(pause)
        begin = time.perf_counter()
        engine.run(image, ["/bin/true"], network="none", limits=LIMITS, check=True)
        times.append((time.perf_counter() - begin) * 1000)
    return times


def show_times(console: Console, clock: Clock, rows: dict[str, list[float]]) -> None:
    """Print how long everything took."""
    table = Table(title="How long it took", title_justify="left", width=80)
    table.add_column("step")
    table.add_column("ms", justify="right")
    for what, seconds in clock.steps:
        table.add_row(what, f"{seconds * 1000:,.1f}")
    for what, times in rows.items():
        table.add_row(f"{what}, median of {len(times)}", f"[bold green]{statistics.median(times):,.1f}[/]")
    console.print(table)


def main() -> None:
    """Run the main job and print what happened."""
    console = Console(width=80, highlight=False)
    clock = Clock()
    with Engine(sys.argv[1] if len(sys.argv) > 1 else None) as engine:
        clock.step("open the engine")
        image, name = real_image(engine, clock, console)
        result = engine.run(image, ["python3", "-c", PROBE], network="none", limits=LIMITS, timeout=30, check=True)
        clock.step("first run: Python starts and looks around")
        inside = json.loads(result.stdout)
        console.print(f"Image: [bold]{name}[/]")
        console.print(f"[bold]In it, /etc/os-release[/] says: {inside['system']}\n")

        show_isolation(console, inside, host_view())
        usage = result.usage
        memory = "not counted here" if usage.peak_memory is None else f"{usage.peak_memory / 2**20:.1f} MiB"
        console.print(f"That run used {usage.cpu_seconds * 1000:.0f} ms of CPU and at most {memory} of memory.\n")

        rows = {
            "run /bin/true, all isolation on": measure(engine, image, 0),
            "the same, with 100 ms between runs": measure(engine, image, 0.1),
        }
        show_times(console, clock, rows)
        begin = time.perf_counter()
    console.print(f"Closing took {(time.perf_counter() - begin) * 1000:.1f} ms; nothing is left running or mounted.")
    console.print("Next: examples/untrusted_python.py, and make bench for how this compares.")


def host_view() -> dict[str, Any]:
    """Return what the probe says in this process; it prints, so it runs as a child."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=True)
    view: dict[str, Any] = json.loads(done.stdout)
    return view


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("pycontainer starts containers as root for now: sudo make demo")
    try:
        main()
    except Error as error:
        sys.exit(f"{error.code}: {error}")
