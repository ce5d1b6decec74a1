"""The command ``pycontainer`` as a program: exit statuses, streams, signals, terminals, images."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

COMMAND = (sys.executable, "-m", "pycontainer")
PATIENCE = 20.0


@pytest.fixture
def root(stocked_root: Path) -> Path:
    return stocked_root


def cli(root: Path, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": 60, **options}
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([*COMMAND, "--root", str(root), *map(str, arguments)], check=False, **options)


@contextlib.contextmanager
def started(root: Path, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Give the running command; killed at the end if it still runs."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    with subprocess.Popen([*COMMAND, "--root", str(root), *arguments], **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
    assert ready, "nothing was printed"
    return process.stdout.readline()


# ── exit statuses and errors ──


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["busybox:test", "true"], 0, ""),
        (["busybox:test", "sh", "-c", "exit 42"], 42, ""),
        (["busybox:test", "sh", "-c", "kill -9 $$; kill -TERM -1; sleep 9"], 137, ""),
        (["busybox:test", "nosuch"], 127, "command not found in image: nosuch, PATH was"),
        (["busybox:test", "/etc/passwd"], 126, "execute /etc/passwd: Permission denied"),
        (["nosuch:1", "true"], 125, "no image 'nosuch:1'"),
        (["--frobnicate", "busybox:test"], 125, "No such option '--frobnicate'"),
        (["-u", "stranger", "busybox:test", "id"], 125, "stranger"),
        (["-v", "data:/data", "busybox:test", "true"], 125, "volumes come with a later version"),
        (["-v", "/nonexistent/x:/data", "busybox:test", "true"], 125, "must exist on the host"),
        (["--network", "bridge", "busybox:test", "true"], 125, "network must be 'none' or 'host'"),
        (["-m", "lots", "busybox:test", "true"], 125, "not a size"),
        (["--timeout", "0.3", "busybox:test", "sleep", "60"], 124, "was killed after 0.3 s"),
        (["-it", "busybox:test", "true"], 125, "the input is not a terminal"),
        (["busybox:test"], 125, "nothing to run"),
        ([], 125, "Missing argument 'IMAGE'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_exit_statuses(root: Path, arguments: list[str], code: int, words: str) -> None:
    if "kill -9 $$; kill -TERM -1; sleep 9" in arguments:
        arguments = ["--init", *arguments]  # PID 1 is immune to its own SIGKILL
    done = cli(root, "run", "--rm", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    if words:
        assert done.stderr.startswith("pycontainer: ")
        assert "Traceback" not in done.stderr
    else:
        assert done.stderr == ""


def test_debug_shows_where(root: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--debug", "--root", str(root), "run", "--rm", "nosuch:1"], capture_output=True, check=False
    )
    assert done.returncode == 125
    assert b"Traceback" in done.stderr


def test_the_root_may_come_from_the_environment(root: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "images", "-q"],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, "PYCONTAINER_ROOT": str(root)},
    )
    assert len(done.stdout.split()) >= 2


def test_memory_is_told(root: Path) -> None:
    done = cli(
        root, "run", "--rm", "-m", "16m", "busybox:test", "sh", "-c", "x=$(head -c 60000000 /dev/zero | tr '\\0' x)"
    )
    assert done.returncode == 137
    assert "memory limit" in done.stderr


# ── what the flags do ──


def test_environment_user_and_place(root: Path, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=file\nB=file\n#C=no\n")
    script = "id -u; id -G; pwd; hostname; echo $A $B $D; cat /etc/hosts | grep db; cat /etc/resolv.conf; ulimit -n"
    done = cli(
        root,
        *("run", "--rm", "-u", "app", "--group-add", "777", "-w", "/tmp", "-h", "box", "--env-file", tmp_path / "env"),
        *("-e", "B=flag", "-e", "D", "--add-host", "db:10.0.0.9", "--dns", "10.0.0.53", "--ulimit", "nofile=99:100"),
        *("busybox:test", "sh", "-c", script),
        env={**os.environ, "D": "handed on"},
    )
    assert done.stderr == ""
    assert done.stdout.split("\n") == [
        "1000",
        "1000 29 50 777",
        "/tmp",
        "box",
        "file flag handed on",
        "10.0.0.9\tdb",
        "nameserver 10.0.0.53",
        "99",
        "",
    ]


def test_mounts(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content\n")
    script = "cat /a/file; touch /a/new || echo read-only; touch /b/new; df -m /t | tail -1; touch /x || echo sealed"
    done = cli(
        root,
        *("run", "--rm", "--read-only", "-v", f"{tmp_path}:/a:ro", "--mount", f"type=bind,src={tmp_path},dst=/b"),
        *("--tmpfs", "/t:size=5m", "busybox:test", "sh", "-c", script),
    )
    assert done.stdout.splitlines()[:2] == ["content", "read-only"]
    assert " 5 " in done.stdout
    assert done.stdout.endswith("sealed\n")
    assert (tmp_path / "new").exists()


def test_entrypoint(root: Path) -> None:
    assert cli(root, "run", "--rm", "--entrypoint", "echo", "busybox:test", "-n", "x").stdout == "x"
    assert cli(root, "run", "--rm", "--entrypoint", "", "busybox:test", "echo", "y").stdout == "y\n"


def test_host_programs(root: Path) -> None:
    assert cli(root, "run", "--rm", "host", "sh", "-c", "echo $((6*7))").stdout == "42\n"


# ── streams ──


def test_input_only_when_asked(root: Path) -> None:
    assert cli(root, "run", "--rm", "busybox:test", "cat", input="text").stdout == ""
    assert cli(root, "run", "--rm", "-i", "busybox:test", "cat", input="text").stdout == "text"


def test_output_goes_where_ours_goes(root: Path, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        script = "echo out; echo err >&2; test -t 1 || echo no terminal"
        subprocess.run(
            [*COMMAND, "--root", str(root), "run", "--rm", "busybox:test", "sh", "-c", script],
            stdout=out,
            stderr=err,
            check=True,
        )
    assert (tmp_path / "out").read_text() == "out\nno terminal\n"
    assert (tmp_path / "err").read_text() == "err\n"


def test_closed_streams_do_not_become_files_of_ours(root: Path) -> None:
    script = 'x=$(for fd in /proc/$$/fd/*; do readlink $fd; done); echo "$x" >&2; exit 3'
    program = f"exec \"$@\" --root {root} run busybox:test sh -c '{script}' 0<&- 1>&-"
    done = subprocess.run(["sh", "-c", program, "sh", *COMMAND], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    lines = done.stderr.splitlines()
    assert lines[:2] == ["/dev/null"] * 2
    assert lines[2].startswith("pipe:")
    assert not any("state.db" in text for text in lines)


def test_a_reader_that_leaves_is_no_mistake(root: Path) -> None:
    program = f"{' '.join(COMMAND)} --root {root} images --format json | true"
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# ── signals ──

TRAPS = 'for s in HUP INT TERM USR1 USR2 QUIT; do trap "echo $s" $s; done; echo ready; while :; do sleep 0.05; done'


def test_signals_are_handed_on(root: Path) -> None:
    with started(root, "run", "--rm", "busybox:test", "sh", "-c", TRAPS) as process:
        assert line(process) == b"ready\n"
        for name in ("HUP", "INT", "TERM", "USR1", "USR2", "QUIT"):
            process.send_signal(getattr(signal, f"SIG{name}"))
            assert line(process) == name.encode() + b"\n"


def test_the_first_process_may_end_itself_by_a_signal(root: Path) -> None:
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    with started(root, "run", "--rm", "busybox:test", "sh", "-c", script) as process:
        line(process)
        process.terminate()
        assert process.wait(PATIENCE) == 7


def test_with_init_a_signal_ends_a_program_that_has_no_handler(root: Path) -> None:
    with started(root, "run", "--rm", "--init", "busybox:test", "sh", "-c", "echo ready; exec sleep 60") as process:
        line(process)
        process.terminate()
        assert process.wait(PATIENCE) == 143


def test_without_a_handler_the_third_interrupt_kills(root: Path) -> None:
    with started(root, "run", "--rm", "busybox:test", "sh", "-c", "echo ready; exec sleep 60") as process:
        line(process)
        time.sleep(0.1)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 137


def test_signals_stay_here_when_told(root: Path) -> None:
    with started(root, "run", "--rm", "--no-sig-proxy", "busybox:test", "sh", "-c", TRAPS) as process:
        line(process)
        process.terminate()
        assert process.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("how", [[], ["--init"], ["-m", "64m", "--pids-limit", "9"]], ids=" ".join)
def test_kill_9_leaves_nothing(root: Path, how: Sequence[str]) -> None:
    """The leak check after the test looks for what is left."""
    with started(root, "run", "--rm", *how, "busybox:test", "sh", "-c", "sleep 60 & echo ready; sleep 60") as process:
        line(process)
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL


# ── a terminal ──


class Terminal:
    """A pseudoterminal with the command on its other side."""

    def __init__(self, root: Path, *arguments: str, rows: int = 30, columns: int = 100) -> None:
        self.master, self.slave = os.openpty()
        termios.tcsetwinsize(self.slave, (rows, columns))
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            [*COMMAND, "--root", str(root), *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one system call
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        for fd in {self.master, self.slave} - {-1}:
            os.close(fd)
        self.master = self.slave = -1

    def until(self, done: bytes | Callable[[bytes], bool]) -> bytes:
        """Read until something was printed; return all since the last call."""
        deadline = time.monotonic() + PATIENCE
        found = (lambda seen: done in seen) if isinstance(done, bytes) else done
        while not found(self.seen):
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{done!r} did not come: {self.seen!r}"
            self.seen += os.read(self.master, 4096)
        seen, self.seen = self.seen, b""
        return seen

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


def test_a_shell_in_a_terminal(root: Path) -> None:
    with Terminal(root, "run", "--rm", "-it", "busybox:test", "sh") as terminal:
        terminal.until(b"# ")
        terminal.type("tty; stty size; echo $((6*7))$TERM\n")
        seen = terminal.until(b"42xterm")
        assert b"/dev/pts/0" in seen or b"/dev/console" in seen
        assert b"30 100" in seen
        assert termios.tcgetattr(terminal.slave)[3] & (termios.ICANON | termios.ECHO) == 0
        termios.tcsetwinsize(terminal.slave, (50, 132))
        terminal.process.send_signal(signal.SIGWINCH)
        time.sleep(0.1)
        terminal.type("stty size\n")
        terminal.until(b"50 132")
        terminal.type("sleep 60\n")
        time.sleep(0.2)
        terminal.type("\x03")  # goes through as a key and is a signal inside
        terminal.type("echo sta''tus $?\n")
        terminal.until(b"status 130")
        terminal.type("exit 5\n")
        assert terminal.process.wait(PATIENCE) == 5
        assert termios.tcgetattr(terminal.slave) == terminal.before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-it", "busybox:test", "nosuch"], 127),
        (["-it", "--timeout", "0.3", "busybox:test", "sleep", "60"], 124),
        (["-it", "nosuch:1"], 125),
    ],
)
def test_the_terminal_is_as_before_after_errors(root: Path, arguments: list[str], code: int) -> None:
    with Terminal(root, "run", "--rm", *arguments) as terminal:
        terminal.until(b"pycontainer: ")
        assert terminal.process.wait(PATIENCE) == code
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_a_terminal_for_output_alone(root: Path) -> None:
    with Terminal(root, "run", "--rm", "-t", "busybox:test", "sh", "-c", "tty; echo done; sleep 60") as terminal:
        terminal.until(b"done")
        assert termios.tcgetattr(terminal.slave) == terminal.before
        terminal.process.send_signal(signal.SIGKILL)


def test_without_t_the_program_never_holds_our_terminal(root: Path) -> None:
    """Whoever holds it could read what is typed, also as an output."""
    script = "for fd in 0 1 2; do test -t $fd && echo holds $fd; done; read text; echo got $text; exit 3"
    with Terminal(root, "run", "--rm", "-i", "busybox:test", "sh", "-c", script) as terminal:
        time.sleep(0.2)
        terminal.type("hello\n")
        seen = terminal.until(b"got hello")
        assert b"holds" not in seen
        assert terminal.process.wait(PATIENCE) == 3


def test_kill_9_of_a_command_in_a_terminal_leaves_nothing(root: Path) -> None:
    with Terminal(root, "run", "--rm", "-it", "busybox:test", "sh") as terminal:
        terminal.until(b"# ")
        terminal.process.kill()


def test_a_terminal_that_is_hung_up_ends_it_all(root: Path) -> None:
    """A first process without a handler would not notice; nobody could ever end it."""
    with Terminal(root, "run", "--rm", "-it", "busybox:test", "sh", "-c", "echo ready; exec sleep 60") as terminal:
        terminal.until(b"ready")
        time.sleep(0.2)
        terminal.hang_up()
        assert terminal.process.wait(PATIENCE) == 137


# ── images ──


@pytest.fixture
def own(tmp_path: Path, busybox_rootfs: Path) -> Path:
    """Give a root of its own with one image, to change."""
    root = tmp_path / "engine"
    done = cli(root, "import", "-c", 'CMD ["echo", "hi"]', "-c", "ENV A=1", "-c", "USER app", busybox_rootfs, "box:1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sha256:")
    return root


def test_import_and_run(own: Path) -> None:
    assert cli(own, "run", "--rm", "box:1").stdout == "hi\n"
    assert cli(own, "run", "--rm", "box:1", "sh", "-c", "echo $A; id -un").stdout == "1\napp\n"


def test_images_are_listed(own: Path) -> None:
    whole = cli(own, "images", "-q", "--no-trunc").stdout.strip()
    head, row = cli(own, "images").stdout.splitlines()
    assert head.split("  ")[0] == "REPOSITORY"
    assert [cell for cell in head.split("  ") if cell][2].strip() == "IMAGE ID"
    assert row.split()[:3] == ["box", "1", whole.removeprefix("sha256:")[:12]]
    (document,) = map(json.loads, cli(own, "image", "ls", "--format", "json").stdout.splitlines())
    assert (document["Repository"], document["Tag"]) == ("box", "1")
    assert cli(own, "images", "--format", "{{.Repository}}:{{.Tag}}").stdout == "box:1\n"
    assert cli(own, "images", "--format", "table {{.Tag}}\\t{{.ID}}").stdout.splitlines()[0] == "TAG       IMAGE ID"
    assert cli(own, "images", "other").stdout.split() == head.split()
    assert len(cli(own, "images", "-q", "-f", "reference=b*:1").stdout.split()) == 1
    refused = cli(own, "images", "--format", "{{.Nope}}")
    assert refused.returncode == 1
    assert "there is no .Nope" in refused.stderr


def test_inspect(own: Path) -> None:
    (document,) = json.loads(cli(own, "inspect", "box:1").stdout)
    assert document["RepoTags"] == ["box:1"]
    assert document["Config"]["Cmd"] == ["echo", "hi"]
    assert document["Config"]["Env"] == ["A=1"]
    assert document["RootFS"]["Type"] == "layers"
    assert cli(own, "inspect", "-f", "{{.Config.User}} {{json .Config.Cmd}}", "box:1").stdout == 'app ["echo","hi"]\n'
    missing = cli(own, "image", "inspect", "nosuch")
    assert (missing.returncode, missing.stdout) == (1, "[]\n")


def test_names_come_and_go(own: Path) -> None:
    assert cli(own, "tag", "box:1", "other/name").returncode == 0
    identity = cli(own, "images", "-q", "--no-trunc", "box").stdout.strip()
    refused = cli(own, "rmi", identity)
    assert refused.returncode == 1
    assert "several names" in refused.stderr
    assert cli(own, "rmi", "box:1").stdout == "Untagged: box:1\n"
    last = cli(own, "rmi", "nosuch", "other/name")
    assert last.returncode == 1
    assert last.stdout == f"Untagged: other/name:latest\nDeleted: {identity}\n"
    assert "no image 'nosuch'" in last.stderr
    assert cli(own, "rmi", "-f", "nosuch").returncode == 0


def test_a_tar_from_the_input(own: Path, busybox_rootfs: Path, tmp_path: Path) -> None:
    tar = tmp_path / "root.tar"
    subprocess.run(["tar", "-C", str(busybox_rootfs), "-cf", str(tar), "."], check=True)
    with tar.open("rb") as file:
        done = cli(own, "import", "-m", "by hand", "--platform", "linux/x86_64", "-", "piped:1", stdin=file)
    assert done.returncode == 0, done.stderr
    assert cli(own, "run", "--rm", "piped:1", "echo", "x").stdout == "x\n"


def test_a_store_loads_as_the_layout_it_is(own: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        ["tar", "-C", str(own), "-c", "oci-layout", "index.json", "blobs"], stdout=subprocess.PIPE
    ) as archive:
        done = cli(tmp_path / "second", "load", stdin=archive.stdout)
    assert done.returncode == 0, done.stderr
    assert "Loaded image: box:1" in done.stdout


def test_an_archive_to_the_output_and_to_a_file(own: Path, tmp_path: Path) -> None:
    with (tmp_path / "piped.tar").open("wb") as file:
        assert cli(own, "save", "box:1", stdout=file, stderr=subprocess.PIPE, capture_output=False).stderr == ""
    assert cli(own, "image", "save", "-q", "-o", tmp_path / "named.tar", "box").stdout == ""
    assert (tmp_path / "named.tar").read_bytes() == (tmp_path / "piped.tar").read_bytes()
    done = cli(tmp_path / "second", "load", "-i", tmp_path / "named.tar")
    assert done.stdout == "Loaded image: box:1\n"
    missing = cli(own, "save", "-o", tmp_path / "missing.tar", "nosuch")
    assert (missing.returncode, "no image 'nosuch'" in missing.stderr) == (1, True)
    assert not (tmp_path / "missing.tar").exists()
    assert "name it with -o" in cli(own, "save", "--format", "oci-dir", "box").stderr
    primary, terminal = os.openpty()
    try:
        refused = cli(own, "save", "box", stdout=terminal, stderr=subprocess.PIPE, capture_output=False)
    finally:
        os.close(terminal)
        os.close(primary)
    assert (refused.returncode, "not for a terminal" in refused.stderr) == (1, True)


def test_versions_and_information(root: Path) -> None:
    assert cli(root, "--version").stdout.startswith("pycontainer version ")
    assert "Kernel" in cli(root, "version").stdout
    known = json.loads(cli(root, "info", "--json").stdout)
    assert known["store"]["root"] == str(root)
    assert known["images"] >= 2
    shown = cli(root, "info").stdout
    assert str(root) in shown
    assert "kernel.pid_max" in shown
    assert cli(root, "info", "-f", "{{.kernel}} {{.store.filesystem}}").stdout.split()[0] == os.uname().release


def test_the_doctor_examines(root: Path) -> None:
    done = cli(root, "doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    assert {"kernel", "overlay", "clone3"} <= {check["name"] for check in report["checks"]}
    shown = cli(root, "doctor")
    assert shown.returncode == done.returncode
    assert "Containers can" in shown.stdout
    for check in report["checks"]:
        assert check["remedy"].split("\n")[0] in shown.stdout


def test_the_doctor_finds_what_is_missing(root: Path) -> None:
    """Without the right to mount, nothing can be run, and the status says so."""
    bare = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run([*bare, *COMMAND, "--root", str(root), "doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "Containers cannot be run" in done.stdout
    assert "costs: " in done.stdout


# ── a bundle ──


def test_a_bundle(root: Path, busybox_rootfs: Path, tmp_path: Path) -> None:
    document = {
        "ociVersion": "1.0.2",
        "process": {
            "cwd": "/",
            "args": ["sh", "-c", "echo $X; exit 9"],
            "env": ["X=1", "PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
        },
        "root": {"path": str(busybox_rootfs), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network")]},
    }
    (tmp_path / "config.json").write_text(json.dumps(document))
    done = cli(root, "run-bundle", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (9, "1\n", "")
    (tmp_path / "config.json").write_text("{}")
    refused = cli(root, "run-bundle", tmp_path)
    assert refused.returncode == 125
    assert "config.json" in refused.stderr


def test_every_command_has_help(root: Path) -> None:
    listed = cli(root, "--help").stdout.split("Commands:")[1].split("\n")
    names = [entry.split()[0] for entry in listed if entry.strip()]
    assert {"run", "images", "load", "import", "rmi", "tag", "inspect", "run-bundle", "info"} <= set(names)
    for name in names:
        done = cli(root, name, "--help")
        assert done.returncode == 0, name
        assert "Usage" in done.stdout
