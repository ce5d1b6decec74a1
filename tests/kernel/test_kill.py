"""The calling program is killed at any moment, alone or with its keeper: after the next open nothing is left."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontainer import Engine, Running
from pycontainer.runtime.cgroups import Cgroups


def helpers_of(program: int) -> dict[str, int]:
    """Return the numbers of the keeper and the cleaner of a program: they hold the other ends of its pipes."""

    def pipes(pid: int | str) -> set[str]:
        found = set()
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
                try:
                    found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))  # noqa: PTH115
                except OSError:
                    continue  # it was closed meanwhile
        except OSError:
            pass  # it ended meanwhile
        return {link for link in found if link.startswith("pipe:")}

    def name_of(pid: int | str) -> str:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
                return file.read().split(b"\0")[0].decode(errors="replace")
        except OSError:
            return ""  # it ended meanwhile

    def parent_of(pid: str) -> str:
        try:
            with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
                return file.read().rpartition(")")[2].split()[1]
        except OSError:
            return "0"

    ours = pipes(program)
    found = {}
    for pid in os.listdir("/proc"):  # noqa: PTH208
        name = name_of(pid) if pid.isdigit() else ""
        ours_too = name in {"pycontainer-keep", "pycontainer-clean"} and bool(ours & pipes(pid))
        if ours_too and name_of(parent_of(pid)) != name:  # what the keeper bears ahead has its name until execve
            found[name.removeprefix("pycontainer-")] = int(pid)
    return found


# Forks programs that start containers of many kinds, some long, from three threads, and kills them and their helpers.
KILLER = (
    """
import os, random, signal, sys, threading, time
from pycontainer import CommandNotFound, Engine, Limits, Mount
"""
    + inspect.getsource(helpers_of)
    + """
seed, root, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
chooser = random.Random(seed)
SIZE = "32M"

def work(engine, number, out):
    kinds = [
        lambda: engine.run("busybox:test", ["true"]),
        lambda: engine.run("busybox:test", ["sh", "-c", "dd if=/dev/zero of=/f bs=64k count=16; sleep 60"]),
        lambda: engine.run("busybox:test", ["sh", "-c", "(setsid sleep 60 &) ; mkdir -p /a/b; sleep 60"], init=True),
        lambda: engine.run("busybox:test", ["sleep", "60"], tty=True, limits=Limits(memory=SIZE, pids=9, cpus=1)),
        lambda: engine.run("busybox:test", ["sleep", "60"], pid="host", mounts=[Mount.tmpfs("/t")]),
        lambda: engine.run("busybox:test", ["sh", "-c", "exit 1"], input=b"x" * 100000),
        lambda: engine.run("busybox:test", ["no-such-program"]),
    ]
    mine = random.Random(number)
    while True:
        os.write(out, b"r")
        if mine.random() < 0.6:
            engine.run("busybox:test", ["true"])
            continue
        try:
            mine.choice(kinds)()
        except CommandNotFound:
            pass

def live(number, out):
    engine = Engine(root)
    for thread in range(3):
        threading.Thread(target=work, args=(engine, 3 * number + thread, out)).start()

runs = 0
for number in range(count):
    inner, outer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(inner)
        try:
            live(seed * 1000 + number, outer)
            threading.Event().wait()
        finally:
            os._exit(1)
    os.close(outer)
    started = os.read(inner, 1)
    time.sleep(chooser.random() ** 2 * 0.2)
    victims = chooser.choice([(), (), ("keep",), ("clean",), ("keep", "clean")])
    pids = [pid]
    if victims:
        helpers = helpers_of(pid)
        pids += [helpers[name] for name in victims if name in helpers]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # none may act between the kills
        for victim in chooser.sample(pids, len(pids)):
            try:
                os.kill(victim, number)
            except ProcessLookupError:
                assert victim != pid
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == 9, status
    while piece := os.read(inner, 1000):
        started += piece
    os.close(inner)
    runs += len(started)
print(runs)
"""
)


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, bufsize=1
    )


def leftovers(root: Path) -> list[str]:
    """Return what containers of an engine root left: run directories, groups, mounts, processes in the groups."""
    runs = root / "runs"
    found = [str(path) for path in runs.iterdir() if path.name != "lock"] if runs.exists() else []
    cgroups = Cgroups()
    try:
        for hierarchy in cgroups.hierarchies:
            found += [str(path) for path in Path(hierarchy.path, "pycontainer").iterdir() if path.is_dir()]
    finally:
        cgroups.close()
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line]
    found += [str(path) for path in (root / "tmp").iterdir()]
    return found


def wait_until(check: Callable[[], object], patience: float = 20.0) -> bool:
    """Wait for something that another process does; False when it does not happen."""
    deadline = time.monotonic() + patience
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def root(stocked_root: Path) -> Iterator[Path]:
    """Give the stocked root, and see that nothing more is in it or beside it afterwards."""
    before = set(leftovers(stocked_root))
    yield stocked_root
    Engine(stocked_root).close()
    # What comes after the first look belongs to other programs that use the engine on this host.
    left = set(leftovers(stocked_root)) - before

    def clean() -> bool:
        left.intersection_update(leftovers(stocked_root))
        return not left

    assert wait_until(clean), left


def reap(program: subprocess.Popen[str]) -> None:
    assert program.stdout is not None
    program.stdout.close()
    program.wait(timeout=30)


@pytest.mark.slow
def test_killed_at_random_moments(root: Path) -> None:
    """Hundreds of runs in eighty programs, four at a time, killed with and without their keeper and cleaner."""
    killers = [start(KILLER, seed, root, 20) for seed in range(4)]
    outputs = [killer.communicate(timeout=100)[0] for killer in killers]
    assert [killer.returncode for killer in killers] == [0] * 4
    assert sum(map(int, outputs)) >= 200


def test_killed_caller_takes_a_deaf_container_along(root: Path) -> None:
    """A container that switches off its parent-death signal ends with its caller all the same, and at once."""
    code = """
import sys
from pycontainer import Engine
script = '''
import ctypes, signal, time
for number in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(number, signal.SIG_IGN)
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
print("up", flush=True)
time.sleep(100)
'''
def started(running):
    print(running.pid, flush=True)
with Engine(sys.argv[1]) as engine:
    engine.run("debian:test", ["python3", "-c", script], on_start=started, stdout=lambda d: print("up", flush=True))
"""
    program = start(code, root)
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    assert program.stdout.readline() == "up\n"
    pidfd = os.pidfd_open(pid)
    try:
        program.kill()
        reap(program)
        assert wait_until(lambda: not Path(f"/proc/{pid}").exists(), 2)
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("name", ["keep", "clean"])
def test_killed_helper_costs_a_run_at_most(root: Path, name: str) -> None:
    """What the keeper bore ends with it, and is told as killed; the next run has new helpers."""
    with Engine(root) as engine:
        engine.run("busybox:test", ["true"])
        first = helpers_of(os.getpid())
        os.kill(first[name], signal.SIGKILL)
        assert wait_until(lambda: name not in helpers_of(os.getpid()))
        assert engine.run("busybox:test", ["echo", "on"]).stdout == b"on\n"

        def started(_: Running) -> None:
            if name in helpers_of(os.getpid()):  # a cleaner that is missing is done without
                os.kill(helpers_of(os.getpid())[name], signal.SIGKILL)

        result = engine.run("busybox:test", ["sh", "-c", "sleep 0.3; echo lived"], on_start=started)
        if name == "keep":
            assert (result.signal, result.stdout) == (signal.SIGKILL, b"")
        else:
            assert (result.signal, result.stdout) == (0, b"lived\n")
        assert engine.run("busybox:test", ["echo", "on"]).stdout == b"on\n"


@pytest.mark.slow
def test_interrupted_at_random_moments(root: Path) -> None:
    """Control-C at any point of a run raises KeyboardInterrupt and leaves nothing, neither here nor on disk."""
    code = """
import os, random, signal, sys, threading, time
from pycontainer import Engine
chooser = random.Random(7)
engine = Engine(sys.argv[1])
engine.run("busybox:test", ["true"])
import gc
def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
before = descriptors()
main = threading.main_thread().ident
interrupted = 0
for number in range(60):
    delay = chooser.random() * 0.02
    timer = threading.Thread(target=lambda: (time.sleep(delay), signal.pthread_kill(main, signal.SIGINT)))
    try:
        timer.start()
        engine.run("busybox:test", ["sleep", "10"])
        raise SystemExit("it was not interrupted")
    except KeyboardInterrupt:
        interrupted += 1
    timer.join()
assert engine.run("busybox:test", ["echo", "fine"]).stdout == b"fine\\n"
after = descriptors()
engine.images.get("busybox:test")
engine.close()
print(interrupted, after - before)
"""
    program = start(code, root)
    output, _ = program.communicate(timeout=60)
    assert program.returncode == 0
    interrupted, grown = map(int, output.split())
    assert interrupted == 60
    assert grown <= 3  # an interrupt between two instructions can cost a descriptor until it is collected


def test_engine_closed_while_threads_run_containers(root: Path) -> None:
    code = """
import sys, threading
from pycontainer import Engine, StartError
engine = Engine(sys.argv[1])
ends, ready = [], threading.Semaphore(0)
def work():
    try:
        result = engine.run("busybox:test", ["sleep", "100"], on_start=lambda _: ready.release())
        ends.append(result.signal)
    except (StartError, ValueError):
        ends.append("closed")
workers = [threading.Thread(target=work) for _ in range(8)]
for worker in workers: worker.start()
for _ in workers: ready.acquire()
engine.close()
for worker in workers: worker.join()
print(sorted(map(str, ends)))
try:
    engine.run("busybox:test", ["true"])
except Exception as error:
    print(error)
engine.close()
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, str(root)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert set(first.strip("[]").replace("'", "").split(", ")) <= {"9", "closed"}
    assert "closed" in second


def test_forgotten_engine_warns_and_leaves_nothing(root: Path) -> None:
    code = """
import sys
from pycontainer import Engine
engine = Engine(sys.argv[1])
engine.run("busybox:test", ["true"])
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, str(root)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert "ResourceWarning" in done.stderr
    assert "unclosed Engine" in done.stderr
    assert "Traceback" not in done.stderr


def test_exit_in_the_middle_of_a_run(root: Path) -> None:
    """Some thread is in a run when the interpreter exits: the container goes with it."""
    code = """
import os, sys, threading
from pycontainer import Engine
engine = Engine(sys.argv[1])
up = threading.Event()
def started(running):
    print(running.pid, flush=True)
    up.set()
threading.Thread(target=lambda: engine.run("busybox:test", ["sleep", "100"], on_start=started), daemon=True).start()
up.wait()
"""
    program = start(code, root)
    output, _ = program.communicate(timeout=60)
    pid = int(output)
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists(), 5)


def test_bundles_of_a_killed_caller_go_too(root: Path, tmp_path: Path, busybox_rootfs: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    subprocess.run(["cp", "-a", str(busybox_rootfs), str(bundle / "rootfs")], check=True)
    (bundle / "config.json").write_text(
        '{"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": {"args": ["sleep", "100"], "cwd": "/",'
        ' "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}, "linux": {"namespaces": [{"type": "mount"}]}}'
    )
    code = """
import sys
from pycontainer import Engine
with Engine(sys.argv[1]) as engine:
    engine.run_bundle(sys.argv[2], on_start=lambda running: print(running.pid, flush=True))
"""
    for also_the_keeper in (False, True):
        program = start(code, root, bundle)
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        if also_the_keeper:
            os.kill(program.pid, signal.SIGSTOP)
            for helper in helpers_of(program.pid).values():
                os.kill(helper, signal.SIGKILL)
        program.kill()
        reap(program)
        if also_the_keeper:
            Engine(root).close()
        assert wait_until(lambda: not Path(f"/proc/{pid}").exists(), 5)  # noqa: B023


# ── what containers write ──


def test_a_tree_of_thousands_of_levels_is_removed(root: Path) -> None:
    script = (
        "import os\nfor n in range(4000):\n    os.mkdir('d'); open('file', 'w').close(); os.chdir('d')\nprint('made')\n"
    )
    with Engine(root) as engine:
        result = engine.run("debian:test", ["python3", "-c", script], workdir="/deep", timeout=100)
        assert result.stdout == b"made\n", result


def test_junk_that_looks_immovable_is_removed(root: Path) -> None:
    script = (
        "import fcntl, os, struct\n"
        "os.makedirs('/j/a/b'); open('/j/a/b/f', 'w').close(); open('/j/a/plus', 'w').close()\n"
        "os.mkfifo('/j/fifo')\n"
        "os.symlink('/', '/j/root'); os.link('/j/a/b/f', '/j/hard')\n"
        "for name in ('-rf', ' ', '\\n', '*', '\\udcff', 'x' * 255): open('/j/' + name, 'w').close()\n"
        "for n in range(2000): open(f'/j/a/many{n}', 'w').close()\n"
        "for path, flags in (('/j/a/b/f', 0x10), ('/j/a/plus', 0x20), ('/j/a/b', 0x10), ('/j/a', 0x20)):\n"
        "    fd = os.open(path, os.O_RDONLY)\n"
        "    try:\n"
        "        fcntl.ioctl(fd, 0x40086602, struct.pack('l', flags))\n"
        "    except OSError as error:\n"
        "        print(error.errno)\n"
        "os.chmod('/j', 0)\n"
        "print('made')\n"
    )
    with Engine(root) as engine:
        result = engine.run("debian:test", ["python3", "-c", script], cap_add=["LINUX_IMMUTABLE"], timeout=60)
        assert result.stdout.endswith(b"made\n"), result.stderr


def test_a_user_namespace_of_a_killed_caller(root: Path) -> None:
    code = """
import sys
from pycontainer import Engine, IdMap
with Engine(sys.argv[1]) as engine:
    engine.run("busybox:test", ["sleep", "100"], userns=[IdMap(0, 100000, 65536)],
        on_start=lambda running: print(running.pid, flush=True))
"""
    program = start(code, root)
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    program.kill()
    reap(program)
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists(), 5)
