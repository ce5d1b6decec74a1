"""Many threads, many processes and forks on one root; and that the host program keeps everything that is its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# What every program below begins with; each runs in a process of its own, for it is about that process.
PREAMBLE = """
import os, resource, signal, subprocess, sys, threading, time
from pycontainer import Engine, Limits
root = sys.argv[1]
def run(engine, *command, **options):
    return engine.run("busybox:test", list(command), timeout=60, **options)
def say(*words):
    os.write(report, (" ".join(map(str, words)) + "\\n").encode())
report = os.dup(1)
"""


def program(root: Path, code: str, *, options: tuple[str, ...] = ("-X", "dev"), timeout: int = 100) -> list[str]:
    """Return the lines that a program prints; it must succeed and complain of nothing."""
    done = subprocess.run(
        [sys.executable, *options, "-c", PREAMBLE + code, str(root)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.splitlines()


# ── many at once ──


@pytest.mark.slow
def test_eight_threads_with_fifty_runs_each(stocked_root: Path) -> None:
    lines = program(
        stocked_root,
        """
wrong = []
with Engine(root) as engine:
    run(engine, "true")
    def work(number):
        for turn in range(50):
            word = f"{number}-{turn}"
            try:
                result = run(engine, "sh", "-c", f"echo {word}; cat >&2; exit {turn}", input=word.encode())
                if (result.stdout, result.stderr, result.exit_code) != (f"{word}\\n".encode(), word.encode(), turn):
                    wrong.append(result)
            except BaseException as error:
                wrong.append(repr(error))
    before = len(os.listdir("/proc/self/fd"))
    workers = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    after = len(os.listdir("/proc/self/fd"))
say(len(wrong), wrong[:2])
say(after - before <= 0)
""",
    )
    assert lines == ["0 []", "True"]


@pytest.mark.slow
def test_four_processes_on_one_root(stocked_root: Path) -> None:
    """Each opens and closes the root again and again while the others run: openers clean up only after the dead."""
    code = (
        PREAMBLE
        + """
for turn in range(12):
    with Engine(root) as engine:
        for n in range(4):
            assert run(engine, "sh", "-c", f"echo {n}; sleep 0.0{n}").stdout == f"{n}\\n".encode()
"""
    )
    programs = [
        subprocess.Popen(
            [sys.executable, "-X", "dev", "-c", code, str(stocked_root)], stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for started in programs:
        _, errors = started.communicate(timeout=100)
        assert (started.returncode, errors) == (0, "")


@pytest.mark.slow
def test_memory_and_descriptors_are_stable_over_a_thousand_runs(stocked_root: Path) -> None:
    (line,) = program(
        stocked_root,
        """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
with Engine(root) as engine:
    for _ in range(200): run(engine, "true")
    memory, descriptors = resident(), len(os.listdir("/proc/self/fd"))
    for _ in range(800): run(engine, "true")
    say(len(os.listdir("/proc/self/fd")) - descriptors, (resident() - memory) // 1024)
""",
        options=(),
    )
    descriptors, kibibytes = map(int, line.split())
    assert descriptors <= 0
    assert kibibytes < 2048


# ── forks ──


def test_both_sides_of_a_fork_go_on(stocked_root: Path) -> None:
    lines = program(
        stocked_root,
        """
engine = Engine(root)
run(engine, "true")
pid = os.fork()
if pid == 0:
    say("child", run(engine, "echo", "c").stdout)
    engine.close()
    os._exit(0)
say("parent", run(engine, "echo", "p").stdout)
os.waitpid(pid, 0)
say("later", run(engine, "echo", "l").stdout)
engine.close()
""",
    )
    assert sorted(lines) == ["child b'c\\n'", "later b'l\\n'", "parent b'p\\n'"]


def test_a_child_that_ends_does_not_touch_what_its_parent_runs(stocked_root: Path) -> None:
    lines = program(
        stocked_root,
        """
parent = os.getpid()
engine = Engine(root)
def started(_):
    if os.fork() == 0:
        raise SystemExit(0)  # through run() and its clean-up, in the child
    os.wait()
try:
    result = run(engine, "sh", "-c", "sleep 0.2; echo lived", on_start=started)
    say(result.stdout)
    say(run(engine, "echo", "next").stdout)
    engine.close()
finally:
    if os.getpid() != parent:
        os._exit(0)
""",
    )
    assert lines == ["b'lived\\n'", "b'next\\n'"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(stocked_root: Path, tmp_path: Path, method: str) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        f"""
import multiprocessing, sys
from pycontainer import Engine
def work(number):
    with Engine(sys.argv[1]) as engine:
        return engine.run("busybox:test", ["echo", str(number)]).stdout
if __name__ == "__main__":
    with Engine(sys.argv[1]) as engine:
        engine.run("busybox:test", ["true"])
        with multiprocessing.get_context({method!r}).Pool(3) as pool:
            print(pool.map(work, range(6)))
            pool.close()
            pool.join()
        print(engine.run("busybox:test", ["echo", "mine"]).stdout)
"""
    )
    done = subprocess.run(
        [sys.executable, str(path), str(stocked_root)], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [str([f"{n}\n".encode() for n in range(6)]), "b'mine\\n'"]


# ── the host program's own children ──


def test_waiting_for_any_child_never_gets_a_container(stocked_root: Path) -> None:
    lines = program(
        stocked_root,
        """
found, stop = [], threading.Event()
def reap():
    while not stop.is_set():
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid: found.append(pid)
        except ChildProcessError:
            time.sleep(0.0005)
watcher = threading.Thread(target=reap)
watcher.start()
with Engine(root) as engine:
    ends = [run(engine, "sh", "-c", "exit 7").exit_code for _ in range(30)]
    ends += [run(engine, "sh", "-c", "exit 7", init=True).exit_code for _ in range(5)]
    own = os.posix_spawn("/bin/true", ["true"], {})
    while own not in found: time.sleep(0.001)
stop.set()
watcher.join()
say(set(ends), found == [own])
""",
    )
    assert lines == ["{7} True"]


@pytest.mark.parametrize("disposition", ["signal.SIG_IGN", "lambda *_: calls.append(1)"])
def test_the_childrens_signal_is_the_programs_own(stocked_root: Path, disposition: str) -> None:
    lines = program(
        stocked_root,
        f"""
calls = []
signal.signal(signal.SIGCHLD, {disposition})
before = signal.getsignal(signal.SIGCHLD)
with Engine(root) as engine:
    say([run(engine, "sh", "-c", "exit 5").exit_code for _ in range(3)])
say(calls, signal.getsignal(signal.SIGCHLD) is before)
""",
    )
    assert lines == ["[5, 5, 5]", "[] True"]


def test_asyncio_subprocesses_and_containers_side_by_side(stocked_root: Path) -> None:
    lines = program(
        stocked_root,
        """
import asyncio
async def main():
    async def own(n):
        process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {n}")
        return await process.wait()
    def ours(n):
        return run(engine, "sh", "-c", f"exit {n}").exit_code
    loop = asyncio.get_running_loop()
    return await asyncio.gather(*(own(n) for n in range(10)), *(loop.run_in_executor(None, ours, n) for n in range(10)))
with Engine(root) as engine:
    say(asyncio.run(main()) == [*range(10), *range(10)])
""",
    )
    assert lines == ["True"]


# ── manners ──

STATE = """
def state():
    status = {}
    for line in open("/proc/self/status"):
        name, _, value = line.partition(":")
        if name in ("Umask", "SigBlk", "SigIgn", "SigCgt", "CapEff", "Cpus_allowed", "NoNewPrivs", "Seccomp", "Groups"):
            status[name] = value.strip()
    return (
        status, os.getcwd(), dict(os.environ), [signal.getsignal(n) for n in range(1, 32)],
        [resource.getrlimit(n) for n in range(16)], os.getsid(0), os.getpgid(0), os.uname(),
        sorted((name, os.readlink("/proc/self/ns/" + name)) for name in os.listdir("/proc/self/ns")),
        open("/proc/self/oom_score_adj").read(), sys.getswitchinterval(), threading.active_count(),
    )
"""


def test_nothing_of_the_program_is_changed(stocked_root: Path) -> None:
    lines = program(
        stocked_root,
        STATE
        + """
import warnings
warnings.simplefilter("ignore", ResourceWarning)
os.umask(0o027)
os.chdir("/usr")
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
signal.signal(signal.SIGUSR2, lambda *_: None)
before = state()
engine = Engine(root)
run(engine, "true")
run(engine, "sh", "-c", "kill -9 $$", init=True, tty=True)
run(engine, "true", timens={"monotonic": 100.0}, pid="host", network="host", hostname="x")
try:
    run(engine, "absent")
except Exception:
    pass
during = state()
engine.close()
say(before == during == state())
""",
    )
    assert lines == ["True"]


@pytest.mark.parametrize("umask", ["0o077", "0o777", "0"])
def test_the_programs_umask_does_not_reach_in(stocked_root: Path, umask: str) -> None:
    lines = program(
        stocked_root,
        f"""
os.umask({umask})
with Engine(root) as engine:
    result = run(engine, "sh", "-c", "stat -c %a / /tmp /dev /dev/null /etc/hosts /new; umask", workdir="/new")
say(result.stdout.split(), result.stderr)
""",
    )
    assert lines == ["[b'755', b'1777', b'755', b'666', b'644', b'755', b'0022'] b''"]


def test_blocked_and_ignored_signals_stay_outside(stocked_root: Path) -> None:
    lines = program(
        stocked_root,
        """
signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 65)) - {9, 19, 32, 33})
for number in (1, 2, 3, 13, 15, 17):
    signal.signal(number, signal.SIG_IGN)
with Engine(root) as engine:
    for init in (False, True):
        result = run(engine, "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status", init=init)
        say(result.stdout.split())
    say(run(engine, "sh", "-c", "yes | head -n 1; echo").stdout)
""",
    )
    zero = "[b'SigBlk:', b'0000000000000000', b'SigIgn:', b'0000000000000000']"
    assert lines == [zero, zero, "b'y\\n\\n'"]


@pytest.mark.parametrize("options", ["{}", "{'tty': True}", "{'init': True}", "{'input': b'x'}", "{'timens': {}}"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_program_without_standard_streams(stocked_root: Path, options: str, when: str) -> None:
    close = "for fd in (0, 1, 2): os.close(fd)\n"
    lines = program(
        stocked_root,
        f"""
import fcntl
report = fcntl.fcntl(report, fcntl.F_DUPFD, 60)
{close if when == "before" else ""}
engine = Engine(root)
{close if when == "after" else ""}
result = run(engine, "sh", "-c", "echo out; echo err >&2", **{options})
say(result.stdout.replace(b"\\r", b""), result.stderr)
try:
    run(engine, "absent", **{options})
except Exception as error:
    say(type(error).__name__)
engine.close()
os._exit(0)
""",
        options=(),
    )
    assert lines == ["b'out\\nerr\\n' b''" if "tty" in options else "b'out\\n' b'err\\n'", "CommandNotFound"]


def test_a_program_in_a_deleted_directory(stocked_root: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    lines = program(
        stocked_root,
        f"""
os.chdir({str(gone)!r})
os.rmdir({str(gone)!r})
with Engine(root) as engine:
    say(run(engine, "pwd").stdout)
try:
    os.getcwd()
except FileNotFoundError:
    say("still gone")
""",
    )
    assert lines == ["b'/\\n'", "still gone"]


def test_a_program_that_may_open_few_files(stocked_root: Path) -> None:
    """The limit is the program's; the container has the same hard one, and its keeper is not kept from its work."""
    lines = program(
        stocked_root,
        """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with Engine(root) as engine:
    say(run(engine, "sh", "-c", "ulimit -n; ulimit -Hn").stdout.split())
""",
    )
    assert lines == ["[b'64', b'64']"]


def test_a_program_out_of_descriptors_is_told_so(stocked_root: Path) -> None:
    lines = program(
        stocked_root,
        """
with Engine(root) as engine:
    run(engine, "true")
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        while True: taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    for leave in range(12):
        try:
            run(engine, "true")
            break
        except Exception as error:
            assert getattr(error, "errno", 0) == 24 or "open files" in str(error).lower(), repr(error)
        os.close(taken.pop())
    for fd in taken: os.close(fd)
    say(leave > 0, run(engine, "echo", "again").stdout, len(os.listdir("/proc/self/fd")) < 60)
""",
    )
    assert lines == ["True b'again\\n' True"]


def test_threads_that_switch_all_the_time(stocked_root: Path) -> None:
    lines = program(
        stocked_root,
        """
sys.setswitchinterval(1e-6)
stop = False
def spin():
    while not stop: sum(range(100))
spinners = [threading.Thread(target=spin) for _ in range(3)]
for spinner in spinners: spinner.start()
out = []
with Engine(root) as engine:
    workers = [threading.Thread(target=lambda: out.append(run(engine, "echo", "x").stdout)) for _ in range(8)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
stop = True
for spinner in spinners: spinner.join()
say(out == [b"x\\n"] * 8)
""",
    )
    assert lines == ["True"]


def test_a_run_outlives_the_thread_that_was_forked_from(stocked_root: Path) -> None:
    """The parent-death signal is of a thread: containers must not die when another thread than the main one ends."""
    lines = program(
        stocked_root,
        """
with Engine(root) as engine:
    first = threading.Thread(target=lambda: run(engine, "true"))  # its thread starts the keeper, and ends
    first.start()
    first.join()
    say(run(engine, "sh", "-c", "sleep 0.2; echo lived").stdout)
""",
    )
    assert lines == ["b'lived\\n'"]
