"""engine.run: where standard input comes from and output goes to, terminals, timeouts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pycontainer import Engine, ExitError, OutOfMemory, Running, TimeoutExpired
from pycontainer.model import Limits

MIB = 1 << 20


# ── standard input ──


def test_five_megabytes_through_a_container(stocked: Engine) -> None:
    data = os.urandom(5 * MIB)
    assert stocked.run("busybox:test", ["cat"], input=data, timeout=60).stdout == data


def test_input_of_no_bytes_is_an_end(stocked: Engine) -> None:
    assert stocked.run("busybox:test", ["wc", "-c"], input=b"", timeout=20).stdout == b"0\n"


def test_without_input_there_is_an_end_at_once(stocked: Engine) -> None:
    assert stocked.run("busybox:test", ["wc", "-c"], timeout=20).stdout == b"0\n"


def test_a_program_that_never_reads(stocked: Engine) -> None:
    result = stocked.run("busybox:test", ["sh", "-c", "echo done"], input=bytes(5 * MIB), timeout=20)
    assert (result.exit_code, result.stdout) == (0, b"done\n")


def test_a_program_that_closes_its_input_and_goes_on(stocked: Engine) -> None:
    script = "head -c 10 | wc -c; exec <&-; sleep 0.1; echo on"
    result = stocked.run("busybox:test", ["sh", "-c", script], input=bytes(5 * MIB), timeout=20)
    assert result.stdout == b"10\non\n"


def test_input_from_a_file_and_a_descriptor(stocked: Engine, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"from a file")
    with path.open("rb") as file:
        assert stocked.run("busybox:test", ["cat"], stdin=file).stdout == b"from a file"
    fd = os.open(path, os.O_RDONLY)
    try:
        assert stocked.run("busybox:test", ["cat"], stdin=fd).stdout == b"from a file"
        os.fstat(fd)  # it is still the caller's
    finally:
        os.close(fd)


# ── output ──


def test_streams_are_kept_apart(stocked: Engine) -> None:
    result = stocked.run("busybox:test", ["sh", "-c", "echo out; echo err >&2; printf no-newline"])
    assert (result.stdout, result.stderr) == (b"out\nno-newline", b"err\n")


def test_both_streams_full_at_once_do_not_deadlock(stocked: Engine) -> None:
    script = "head -c 3000000 /dev/zero >&2 & head -c 3000000 /dev/zero; wait"
    result = stocked.run("busybox:test", ["sh", "-c", script], timeout=60)
    assert (len(result.stdout), len(result.stderr)) == (3000000, 3000000)


def test_pieces_arrive_while_it_runs(stocked: Engine) -> None:
    running: list[Running] = []
    pieces: list[bytes] = []

    def piece(data: bytes) -> None:
        pieces.append(data)
        running[0].kill(signal.SIGKILL)  # so this only ends when the first piece came while it ran

    result = stocked.run(
        "busybox:test", ["sh", "-c", "echo first; sleep 60"], stdout=piece, on_start=running.append, timeout=30
    )
    assert pieces == [b"first\n"]
    assert (result.signal, result.stdout) == (signal.SIGKILL, b"")


def test_output_to_files(stocked: Engine, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        script = ["sh", "-c", "echo out; echo err >&2"]
        result = stocked.run("busybox:test", script, stdout=out, stderr=err.fileno())
    assert (result.stdout, result.stderr) == (b"", b"")
    assert (tmp_path / "out").read_bytes() == b"out\n"
    assert (tmp_path / "err").read_bytes() == b"err\n"


def test_discarded_output(stocked: Engine) -> None:
    result = stocked.run(
        "busybox:test", ["sh", "-c", "echo out; x=$(readlink /proc/1/fd/1); echo $x >&2"], stdout="discard"
    )
    assert (result.stdout, result.stderr) == (b"", b"/dev/null\n")


def test_inherited_output(stocked: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    result = stocked.run(
        "busybox:test", ["sh", "-c", "echo out; echo err >&2"], stdout="inherit", stderr="inherit", stdin="inherit"
    )
    assert (result.stdout, result.stderr) == (b"", b"")
    assert capfd.readouterr() == ("out\n", "err\n")


def test_one_stream_for_both(stocked: Engine) -> None:
    reader, writer = os.pipe()
    try:
        stocked.run("busybox:test", ["sh", "-c", "echo out; echo err >&2"], stdout=writer, stderr=writer)
    finally:
        os.close(writer)
    with open(reader, "rb") as file:  # noqa: PTH123 - a descriptor
        assert file.read() == b"out\nerr\n"


@pytest.mark.parametrize("limit", [0, 1, 1000, "64k"])
def test_output_limit(stocked: Engine, limit: int | str) -> None:
    size = 65536 if limit == "64k" else int(limit)
    script = "head -c 200000 /dev/zero; head -c 500 /dev/zero >&2; echo $? >&2"
    result = stocked.run("busybox:test", ["sh", "-c", script], output_limit=limit, timeout=30)
    assert len(result.stdout) == size
    assert len(result.stderr) == min(size, 502)
    assert result.truncated
    assert result.exit_code == 0


def test_output_below_the_limit_is_not_truncated(stocked: Engine) -> None:
    result = stocked.run("busybox:test", ["echo", "x"], output_limit=2)
    assert (result.stdout, result.truncated) == (b"x\n", False)


def test_wrong_streams_are_refused(stocked: Engine) -> None:
    with pytest.raises(ValueError, match="stdout"):
        stocked.run("busybox:test", ["true"], stdout="captured")  # type: ignore[arg-type]


def test_exception_in_a_callback_ends_the_container(stocked: Engine) -> None:
    running: list[Running] = []

    def piece(_data: bytes) -> None:
        raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        stocked.run("busybox:test", ["sh", "-c", "echo x; sleep 100"], stdout=piece, on_start=running.append)
    assert not Path(f"/proc/{running[0].pid}").exists()


def test_exception_in_on_start_ends_the_container(stocked: Engine) -> None:
    pids: list[int] = []

    def started(running: Running) -> None:
        pids.append(running.pid)
        raise LookupError("the caller's own")

    with pytest.raises(LookupError):
        stocked.run("busybox:test", ["sleep", "100"], on_start=started)
    assert not Path(f"/proc/{pids[0]}").exists()


# ── terminal ──


def test_terminal(stocked: Engine) -> None:
    script = "tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo err >&2; ls -l /dev/console | cut -c1"
    result = stocked.run("busybox:test", ["sh", "-c", script], tty=True, timeout=20)
    assert result.stdout.replace(b"\r\n", b"\n") == b"/dev/pts/0\nall\nerr\nc\n"
    assert result.stderr == b""


def test_terminal_reads_input(stocked: Engine) -> None:
    result = stocked.run(
        "busybox:test", ["sh", "-c", "read line; echo got $line; cat"], tty=True, input=b"word\n", timeout=20
    )
    assert b"got word" in result.stdout


def test_terminal_is_resized(stocked: Engine) -> None:
    def started(running: Running) -> None:
        running.resize(33, 101)

    script = "for i in 1 2 3 4 5 6 7 8 9 10; do stty size; sleep 0.02; done"
    result = stocked.run("busybox:test", ["sh", "-c", script], tty=True, input=b"", on_start=started, timeout=20)
    assert b"33 101" in result.stdout


def test_resizing_signals_the_program(stocked: Engine) -> None:
    running: list[Running] = []

    def piece(data: bytes) -> None:
        seen.append(data)
        if b"up" in data:
            running[0].resize(44, 99)

    seen: list[bytes] = []
    script = "trap 'echo resized; exit 0' WINCH; echo up; while :; do sleep 0.02; done"
    stocked.run("busybox:test", ["sh", "-c", script], tty=True, stdout=piece, on_start=running.append, timeout=20)
    assert b"resized" in b"".join(seen)


def test_control_c_typed_into_the_terminal(stocked: Engine) -> None:
    result = stocked.run(
        "busybox:test", ["sh", "-c", "trap 'exit 9' INT; read -t 20 x"], tty=True, input=b"\x03", init=True, timeout=20
    )
    assert result.exit_code in {9, 130}


def test_the_terminal_belongs_to_the_user(stocked: Engine) -> None:
    result = stocked.run("busybox:test", ["sh", "-c", "stat -c %u $(tty)"], tty=True, user="app", timeout=20)
    assert result.stdout.strip() == b"1000"


# ── timeout ──


def alive(marker: str) -> list[str]:
    """Return the processes of the host whose command line has a word."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue  # it ended meanwhile
    return found


@pytest.mark.parametrize("init", [False, True])
def test_timeout_kills_the_whole_tree_and_keeps_what_there_was(stocked: Engine, init: bool) -> None:
    # Daemons made by a double fork, one in its own session, and all deaf to SIGTERM.
    marker = f"10{os.getpid()}{int(init)}"
    script = (
        f"trap '' TERM; (sleep {marker} &) ; (setsid sh -c 'trap \"\" TERM HUP; sleep {marker}' &) ;"
        f" echo before; echo oops >&2; sleep {marker}"
    )
    began = time.monotonic()
    with pytest.raises(TimeoutExpired) as caught:
        stocked.run("busybox:test", ["sh", "-c", script], timeout=0.4, init=init)
    assert time.monotonic() - began < 5
    result = caught.value.result
    assert isinstance(caught.value, TimeoutError)
    assert (result.stdout, result.stderr) == (b"before\n", b"oops\n")
    assert result.signal == signal.SIGKILL
    assert result.usage.wall_seconds >= 0.4
    assert "0.4 s" in str(caught.value)
    assert alive(marker) == []


def test_timeout_while_it_writes_without_end(stocked: Engine) -> None:
    with pytest.raises(TimeoutExpired) as caught:
        stocked.run("busybox:test", ["yes"], timeout=0.3, output_limit=1000)
    assert len(caught.value.result.stdout) == 1000


@pytest.mark.parametrize("timeout", [0, 0.0001])
def test_timeout_of_next_to_nothing(stocked: Engine, timeout: float) -> None:
    with pytest.raises(TimeoutExpired):
        stocked.run("busybox:test", ["sleep", "50"], timeout=timeout)


def test_timeout_without_a_pid_namespace_of_its_own(stocked: Engine) -> None:
    marker = f"20{os.getpid()}"
    with pytest.raises(TimeoutExpired):
        stocked.run("busybox:test", ["sh", "-c", f"(sleep {marker} &) ; sleep {marker}"], pid="host", timeout=0.3)
    assert alive(marker) == []


def test_end_without_a_pid_namespace_of_its_own(stocked: Engine) -> None:
    marker = f"30{os.getpid()}"
    stocked.run("busybox:test", ["sh", "-c", f"sleep {marker} & exit 0"], pid="host", timeout=20)
    assert alive(marker) == []


# ── check ──


def test_check_raises_with_the_result(stocked: Engine) -> None:
    with pytest.raises(ExitError) as caught:
        stocked.run("busybox:test", ["sh", "-c", "echo out; echo bad luck >&2; exit 3"], check=True)
    assert not isinstance(caught.value, OutOfMemory)
    assert (caught.value.result.exit_code, caught.value.result.stdout) == (3, b"out\n")
    assert "status 3" in str(caught.value)
    assert "bad luck" in str(caught.value)


def test_check_raises_for_a_signal(stocked: Engine) -> None:
    def started(running: Running) -> None:
        running.kill()

    with pytest.raises(ExitError, match="signal 9") as caught:
        stocked.run("busybox:test", ["sleep", "60"], check=True, on_start=started)
    assert not isinstance(caught.value, OutOfMemory)
    assert not caught.value.result.oom_killed


def test_check_lets_success_pass(stocked: Engine) -> None:
    assert stocked.run("busybox:test", ["true"], check=True).ok


def test_out_of_memory_is_told_apart(stocked: Engine) -> None:
    eat = ["python3", "-c", "x = bytearray(200 << 20); x[::4096] = b'x' * len(x[::4096])"]
    with pytest.raises(OutOfMemory) as caught:
        stocked.run("debian:test", eat, limits=Limits(memory="40M", memory_swap="40M"), check=True, timeout=60)
    result = caught.value.result
    assert result.oom_killed
    assert result.signal == signal.SIGKILL
    assert "memory limit" in str(caught.value)
