"""engine.run: what is executed and as whom, from the image's configuration and from the caller's arguments."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pycontainer import CommandNotFound, Engine, ImageConfig, NotFound, Result, Rlimit, Running, StartError

CONFIG = ImageConfig(
    entrypoint=("/bin/echo", "entry"),
    command=("default", "words"),
    env={"FROM_IMAGE": "yes", "PATH": "/bin:/usr/bin", "BOTH": "image"},
    workdir="/home/app",
    user="app",
    stop_signal="SIGQUIT",
)


@pytest.fixture(scope="module")
def configured(stocked_root: Path, busybox_rootfs: Path) -> str:
    """Give the name of an image in the stocked root that has a value for every field of its configuration."""
    with Engine(stocked_root) as engine:
        engine.images.import_rootfs(busybox_rootfs, reference="configured:test", config=CONFIG)
    return "configured:test"


def sh(engine: Engine, script: str, image: str = "busybox:test", **options: object) -> Result:
    """Return the result of a shell script that must succeed."""
    result = engine.run(image, ["/bin/sh", "-c", script], timeout=30, **options)  # type: ignore[arg-type]
    assert result.exit_code == 0, result
    return result


def words(engine: Engine, script: str, image: str = "busybox:test", **options: object) -> list[str]:
    return sh(engine, script, image, **options).stdout.decode().split()


# ── command ──


def test_image_gives_entrypoint_and_command(stocked: Engine, configured: str) -> None:
    assert stocked.run(configured).stdout == b"entry default words\n"


def test_command_replaces_the_images_command_only(stocked: Engine, configured: str) -> None:
    assert stocked.run(configured, ["other"]).stdout == b"entry other\n"


def test_empty_command_leaves_the_entrypoint_alone(stocked: Engine, configured: str) -> None:
    assert stocked.run(configured, []).stdout == b"entry\n"


def test_new_entrypoint_drops_the_images_command(stocked: Engine, configured: str) -> None:
    assert stocked.run(configured, entrypoint="/bin/echo").stdout == b"\n"
    assert stocked.run(configured, ["x"], entrypoint=["/bin/echo", "mine"]).stdout == b"mine x\n"


def test_empty_entrypoint_takes_the_images_away(stocked: Engine, configured: str) -> None:
    assert stocked.run(configured, ["echo", "plain"], entrypoint=[]).stdout == b"plain\n"


def test_one_text_is_one_program(stocked: Engine) -> None:
    assert stocked.run("busybox:test", "true").exit_code == 0
    with pytest.raises(CommandNotFound, match="echo two words"):
        stocked.run("busybox:test", "echo two words")


def test_nothing_to_run(stocked: Engine) -> None:
    with pytest.raises(ValueError, match="neither entrypoint nor command"):
        stocked.run("busybox:test")


def test_arguments_arrive_byte_for_byte(stocked: Engine) -> None:
    odd = ["", " two  spaces ", "$HOME", "a\nb", "ünïcode", b"\xff\xfe".decode(errors="surrogateescape"), "x" * 100_000]
    result = stocked.run("busybox:test", ["printf", "%s|", *odd])
    assert result.stdout == b"".join(word.encode(errors="surrogateescape") + b"|" for word in odd)


def test_two_thousand_arguments_and_variables(stocked: Engine) -> None:
    arguments = [str(number) for number in range(2000)]
    env = {f"V{number}": str(number) for number in range(2000)}
    script = "echo $#; env | grep -c '^V[0-9]'"
    assert stocked.run("busybox:test", ["sh", "-c", script, "-", *arguments], env=env).stdout == b"2000\n2000\n"


@pytest.mark.parametrize("bad", ["nul\0byte"])
def test_nul_bytes_are_refused(stocked: Engine, bad: str) -> None:
    with pytest.raises(ValueError, match="NUL"):
        stocked.run("busybox:test", ["echo", bad])
    with pytest.raises(ValueError, match="NUL"):
        stocked.run("busybox:test", ["true"], env={"A": bad})


def test_program_is_looked_for_along_the_containers_path(stocked: Engine) -> None:
    assert stocked.run("busybox:test", ["env"], env={"PATH": "/nowhere:/usr/bin"}).exit_code == 0
    with pytest.raises(CommandNotFound) as caught:
        stocked.run("busybox:test", ["ls"], env={"PATH": "/nowhere:/usr/bin"})
    assert "ls" in str(caught.value)
    assert "/nowhere:/usr/bin" in str(caught.value)


def test_relative_program_is_taken_from_the_working_directory(stocked: Engine) -> None:
    assert stocked.run("busybox:test", ["./busybox", "echo", "here"], workdir="/bin").stdout == b"here\n"


# ── environment ──


def environment(result: Result) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in result.stdout.decode().splitlines())


def test_environment_is_defaults_then_image_then_caller(stocked: Engine, configured: str) -> None:
    result = stocked.run(configured, ["/bin/env"], entrypoint=[], env={"BOTH": "caller", "NEW": "a=b", "EMPTY": ""})
    assert environment(result) == {
        "PATH": "/bin:/usr/bin",
        "HOSTNAME": result.container_id[:12],
        "FROM_IMAGE": "yes",
        "BOTH": "caller",
        "NEW": "a=b",
        "EMPTY": "",
        "HOME": "/home/app",
    }


def test_nothing_of_the_callers_environment_arrives(stocked: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "1")
    result = stocked.run("busybox:test", ["env"])
    assert set(environment(result)) == {"PATH", "HOSTNAME", "HOME"}


def test_terminal_has_a_term(stocked: Engine) -> None:
    assert "TERM=xterm" in stocked.run("busybox:test", ["env"], tty=True).stdout.decode()


@pytest.mark.parametrize("name", ["", "A=B"])
def test_names_of_variables_are_checked(stocked: Engine, name: str) -> None:
    with pytest.raises(ValueError, match="environment variable"):
        stocked.run("busybox:test", ["true"], env={name: "x"})


# ── user ──


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups"),
    [
        ("", 0, 0, [0]),
        ("root", 0, 0, [0]),
        ("0", 0, 0, [0]),
        ("app", 1000, 1000, [29, 50, 1000]),
        ("1000", 1000, 1000, [29, 50, 1000]),
        ("app:daemon", 1000, 1, [1]),
        ("app:29", 1000, 29, [29]),
        ("daemon", 1, 1, [1, 50]),
        ("4321", 4321, 0, [0]),
        ("4321:8765", 4321, 8765, [8765]),
        ("4294967294", 4294967294, 0, [0]),
        (":staff", 0, 50, [50]),
    ],
)
def test_user_as_docker_takes_it(stocked: Engine, user: str, uid: int, gid: int, groups: list[int]) -> None:
    script = "grep -E '^(Uid|Gid|Groups)' /proc/self/status"
    lines = {
        name: [int(n) for n in rest.split()]
        for name, _, rest in (
            line.partition(":") for line in sh(stocked, script, user=user).stdout.decode().splitlines()
        )
    }
    assert lines["Uid"] == [uid] * 4
    assert lines["Gid"] == [gid] * 4
    assert sorted({*lines["Groups"], gid}) == groups


def test_groups_beside_the_users_own(stocked: Engine) -> None:
    result = sh(stocked, "grep Groups /proc/self/status", user="app", groups=["daemon", "7777"])
    assert {int(word) for word in result.stdout.split()[1:]} == {1, 29, 50, 7777}


def test_image_gives_the_user(stocked: Engine, configured: str) -> None:
    assert words(stocked, "id -u; id -g; echo $HOME; pwd", configured, entrypoint=[]) == [
        "1000",
        "1000",
        "/home/app",
        "/home/app",
    ]
    assert words(stocked, "id -u; echo $HOME", configured, entrypoint=[], user="0") == ["0", "/root"]


@pytest.mark.parametrize(("user", "file"), [("nobody-here", "/etc/passwd"), ("app:no-group", "/etc/group")])
def test_unknown_names_are_told_with_their_file(stocked: Engine, user: str, file: str) -> None:
    with pytest.raises(NotFound) as caught:
        stocked.run("busybox:test", ["true"], user=user)
    assert user.rpartition(":")[2] in str(caught.value)
    assert file in str(caught.value)


def test_unknown_extra_group(stocked: Engine) -> None:
    with pytest.raises(NotFound, match="no-group"):
        stocked.run("busybox:test", ["true"], groups=["no-group"])


@pytest.mark.parametrize("user", ["4294967295", "99999999999"])
def test_ids_out_of_range(stocked: Engine, user: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        stocked.run("busybox:test", ["true"], user=user)


def test_a_user_that_is_not_root_has_no_capabilities(stocked: Engine) -> None:
    result = sh(stocked, "grep -E 'Cap(Prm|Eff|Inh|Amb)' /proc/self/status", user="app")
    assert {line.split()[1] for line in result.stdout.splitlines()} == {b"0" * 16}


def test_a_user_may_open_its_own_streams_again(stocked: Engine) -> None:
    result = sh(stocked, "echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin", user="app", input=b"in\n")
    assert (result.stdout, result.stderr) == (b"out\nin\n", b"err\n")


# ── working directory ──


def test_missing_working_directory_is_made(stocked: Engine) -> None:
    assert words(stocked, "pwd; stat -c %a:%u .", workdir="/made/for/it") == ["/made/for/it", "755:0"]


def test_working_directory_that_is_a_file(stocked: Engine) -> None:
    with pytest.raises(StartError) as caught:
        stocked.run("busybox:test", ["true"], workdir="/etc/passwd")
    assert caught.value.path == "/etc/passwd"
    assert "working directory" in caught.value.step


def test_working_directory_is_absolute(stocked: Engine) -> None:
    with pytest.raises(ValueError, match="absolute"):
        stocked.run("busybox:test", ["true"], workdir="relative")


def test_what_a_run_writes_is_not_in_the_next_one(stocked: Engine) -> None:
    sh(stocked, "echo new >/new; echo changed >/etc/passwd; rm /bin/ls; mkdir /opaque")
    assert words(stocked, "test ! -e /new; test ! -e /opaque; ls -d /bin; head -c 4 /etc/passwd") == ["/bin", "root"]


# ── limits of the process ──


def test_resource_limits(stocked: Engine) -> None:
    limits = [Rlimit("nofile", 123, 456), Rlimit("RLIMIT_CORE", 0), Rlimit("stack", -1)]
    text = sh(stocked, "cat /proc/self/limits", rlimits=limits).stdout.decode()
    table = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()}
    assert table["Max open files"] == ["123", "456"]
    assert table["Max core file size"] == ["0", "0"]
    assert table["Max stack size"] == ["unlimited", "unlimited"]


def test_unknown_resource_limit(stocked: Engine) -> None:
    with pytest.raises(ValueError, match="nofiles"):
        stocked.run("busybox:test", ["true"], rlimits=[Rlimit("nofiles", 1)])


def test_oom_score(stocked: Engine) -> None:
    assert words(stocked, "cat /proc/self/oom_score_adj", oom_score_adj=321) == ["321"]


def test_umask_is_022_whatever_the_callers(stocked: Engine) -> None:
    assert words(stocked, "umask; touch /f; stat -c %a /f") == ["0022", "644"]


# ── the end ──


@pytest.mark.parametrize("code", [0, 1, 42, 125, 255])
def test_exit_status(stocked: Engine, code: int) -> None:
    result = stocked.run("busybox:test", ["sh", "-c", f"exit {code}"])
    assert (result.exit_code, result.signal, result.ok) == (code, 0, code == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_signal_from_outside(stocked: Engine, number: signal.Signals) -> None:
    # A program as PID 1 with handlers in place: without one the kernel keeps all but SIGKILL from it.
    script = (
        "import signal, sys, time\n"
        "for n in (10, 11, 15): signal.signal(n, lambda n, f: sys.exit(n))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(0.05)"  # a signal just before it would not end a longer one
    )
    ready: list[int] = []
    running: list[Running] = []

    def piece(_data: bytes) -> None:
        running[0].kill(number)
        ready.append(1)

    result = stocked.run("debian:test", ["python3", "-c", script], stdout=piece, on_start=running.append, timeout=30)
    assert ready
    if number == signal.SIGKILL:
        assert (result.exit_code, result.signal) == (137, 9)
    else:
        assert (result.exit_code, result.signal) == (number, 0)


def test_kill_after_the_end_does_nothing(stocked: Engine) -> None:
    running: list[Running] = []
    stocked.run("busybox:test", ["true"], on_start=running.append)
    running[0].kill()
    running[0].resize(10, 10)


# ── init ──


def test_init_reaps_orphans(stocked: Engine) -> None:
    script = "for i in 1 2 3; do (sleep 0.01 &) ; done; sleep 0.2; ps -o stat,args | grep -c '^Z' ; echo $$"
    result = stocked.run("busybox:test", ["sh", "-c", script], init=True, timeout=20)
    zombies, pid = result.stdout.split()
    assert zombies == b"0"
    assert pid != b"1"


def test_without_init_the_program_is_pid_1(stocked: Engine) -> None:
    assert words(stocked, "echo $$") == ["1"]


@pytest.mark.parametrize(
    ("end", "code", "number"),
    [
        ("exit 7", 7, 0),
        ("exit 137", 137, 0),
        ("kill -TERM $$", 143, signal.SIGTERM),
        ("kill -KILL $$", 137, signal.SIGKILL),
        ("printf '\\017' >/proc/1/fd/5; exit 9", 9, 0),
    ],
)
def test_init_hands_the_end_on(stocked: Engine, end: str, code: int, number: int) -> None:
    result = stocked.run("busybox:test", ["sh", "-c", end], init=True, timeout=20)
    assert (result.exit_code, result.signal) == (code, number)


def test_the_inits_pipe_is_not_its_programs(stocked: Engine) -> None:
    listed = stocked.run("busybox:test", ["sh", "-c", "ls /proc/self/fd"], init=True, timeout=20)
    assert listed.stdout.split() == [b"0", b"1", b"2", b"3"]  # the last is what ls reads
    bare = stocked.run("busybox:test", ["sh", "-c", "ls /proc/1/fd"], init=True, timeout=20)
    assert bare.stdout.split() == [b"0", b"1", b"2", b"5"]


def test_init_hands_signals_on(stocked: Engine) -> None:
    running: list[Running] = []
    script = "trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.05; done"
    pieces: list[bytes] = []

    def piece(data: bytes) -> None:
        pieces.append(data)
        if data == b"up\n":
            running[0].kill(signal.SIGUSR1)

    result = stocked.run(
        "busybox:test", ["sh", "-c", script], init=True, stdout=piece, on_start=running.append, timeout=20
    )
    assert result.exit_code == 5
    assert b"".join(pieces) == b"up\ngot\n"


def test_init_kills_what_the_program_left(stocked: Engine) -> None:
    result = stocked.run("busybox:test", ["sh", "-c", "sleep 100 & echo started"], init=True, timeout=20)
    assert result.stdout == b"started\n"


def test_init_tells_a_missing_command(stocked: Engine) -> None:
    with pytest.raises(CommandNotFound, match="no-such-program"):
        stocked.run("busybox:test", ["no-such-program"], init=True)


def test_the_inits_program_file_cannot_be_written(stocked: Engine) -> None:
    result = stocked.run("busybox:test", ["sh", "-c", "echo x >/proc/1/exe"], init=True, timeout=20)
    assert result.exit_code != 0
