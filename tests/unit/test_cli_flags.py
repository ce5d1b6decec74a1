"""The texts that flags take: docker's grammar, and a sentence for everything else."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer import Device, IdMap, Mount, Rlimit
from pycontainer.cli import flags, options
from pycontainer.cli.run import run_command

PARSERS = (
    flags.parse_volume,
    flags.parse_mount,
    flags.parse_tmpfs,
    flags.parse_ulimit,
    flags.parse_device,
    lambda text: flags.parse_userns([text]),
    lambda text: flags.parse_hosts([text]),
    lambda text: flags.parse_pairs([text], "sysctl"),
    lambda text: flags.parse_security([text]),
    lambda text: flags.parse_env([text], {}),
    lambda text: flags.parse_env_file(text, {}),
    lambda text: flags.parse_limits(memory=text),
)
# Texts made of what the grammars are made of go deeper than any text does.
NEARLY = st.lists(
    st.one_of(
        st.sampled_from(
            [*":=,/\"'#.-[]~", "\n", "type", "bind", "tmpfs", "source", "target", "ro", "size", "mode", "=1m"]
        ),
        st.text(max_size=4),
    ),
    max_size=12,
).map("".join)
PATHS = st.lists(
    st.text(string.ascii_letters + string.digits + "._- é", min_size=1, max_size=8), min_size=1, max_size=4
).map(lambda parts: "/" + "/".join(part if part not in (".", "..") else "x" for part in parts))
NAMES = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=12)
VALUES = st.text(st.characters(blacklist_characters="\n\r\0", blacklist_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize("parse", PARSERS, ids=range(len(PARSERS)))
@given(text=NEARLY)
def test_any_text_is_read_or_refused_with_a_sentence(parse: object, text: str) -> None:
    assert callable(parse)
    said = "a value was made of it"
    try:
        parse(text)
    except ValueError as error:
        said = str(error)
    assert len(said) > 10


@given(source=PATHS, target=PATHS, read_only=st.booleans(), propagation=st.sampled_from(flags._PROPAGATIONS))
def test_volume_and_mount_say_the_same(source: str, target: str, read_only: bool, propagation: str) -> None:
    wanted = Mount.bind(source, target, read_only=read_only, propagation=propagation)  # type: ignore[arg-type]
    words = ["ro" if read_only else "rw", propagation]
    assert flags.parse_volume(f"{source}:{target}:{','.join(words)}") == wanted
    mode = "readonly" if read_only else "readonly=false"
    text = f"type=bind,source={source},dst={target},{mode},bind-propagation={propagation}"
    assert flags.parse_mount(text) == wanted


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_an_env_file_gives_back_what_was_written(variables: dict[str, str]) -> None:
    text = "# a comment\n\n" + "".join(f"{name}={value}\r\n" for name, value in variables.items())
    assert flags.parse_env_file(text, {}) == variables


@given(st.sampled_from(["nofile", "core", "nproc"]), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_ulimits(name: str, one: int, other: int) -> None:
    soft, hard = sorted((one, other))
    assert flags.parse_ulimit(f"{name}={soft}:{hard}") == Rlimit(name, soft, hard)
    assert flags.parse_ulimit(f"{name}={soft}") == Rlimit(name, soft, soft)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data:/data", "named and anonymous volumes"),
        ("/data", "anonymous volume"),
        ("/a:/b:/c:/d", "SOURCE:TARGET"),
        ("/a:b", "absolute path in the container"),
        ("/a:/b:rx", "unknown option 'rx'"),
        (":/b", "SOURCE:TARGET"),
        ("~/a:/b", "the shell expands ~"),
    ],
)
def test_volumes_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        flags.parse_volume(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source=/a,target=/b", "volumes come with a later version"),
        ("type=npipe,source=/a,target=/b", "bind or tmpfs"),
        ("type=bind,target=/b", "source is missing"),
        ("type=bind,source=/a", "target is missing"),
        ("type=bind,source=/a,target=/b,readonly=maybe", "true or false"),
        ("type=bind,source=/a,target=/b,tmpfs-size=1", "not for type=bind"),
        ("type=bind,source=/a,target=/b,bind-propagation=up", "bind-propagation"),
        ("type=bind,source=/a,source=/c,target=/b", "given twice"),
        ("type=tmpfs,target=/b,tmpfs-mode=9", "octal"),
        ("type=tmpfs,source=/a,target=/b", "no source"),
        ('type=bind,"source=/a', "parted by commas"),
        ("type=bind,source,target=/b", "needs a value"),
    ],
)
def test_mounts_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        flags.parse_mount(text)


def test_mount_fields_may_be_quoted() -> None:
    assert flags.parse_mount('type=bind,"source=/a,b",target=/c').source == "/a,b"


def test_a_relative_source_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    assert flags.parse_volume("./lib:/lib").source == "/usr/lib"
    assert flags.parse_volume(".:/lib").source == "/usr"
    assert flags.parse_mount("type=bind,src=lib,dst=/lib").source == "/usr/lib"


def test_tmpfs() -> None:
    assert flags.parse_tmpfs("/t") == Mount.tmpfs("/t", options=("noexec", "nosuid", "nodev"))
    assert flags.parse_tmpfs("/t:size=1m,mode=700,exec,ro") == Mount.tmpfs(
        "/t", size="1m", mode=0o700, options=("nosuid", "nodev", "exec", "ro")
    )
    mount = flags.parse_mount("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=0750,ro")
    assert (mount.size, mount.mode, mount.options[0]) == (64 << 20, 0o750, "ro")


def test_devices() -> None:
    assert flags.parse_device("/dev/fuse") == Device("/dev/fuse")
    assert flags.parse_device("/dev/fuse:r") == Device("/dev/fuse", "/dev/fuse", "r")
    assert flags.parse_device("/dev/fuse:/dev/x:rw") == Device("/dev/fuse", "/dev/x", "rw")
    for text in ("fuse", "/dev/fuse:/dev/x:q", "/a:/b:r:w", "/dev/fuse:x"):
        with pytest.raises(ValueError, match="SOURCE"):
            flags.parse_device(text)


def test_environment_of_the_caller() -> None:
    assert flags.parse_env(["A", "B=", "C=x=y", "GONE"], {"A": "1"}) == {"A": "1", "B": "", "C": "x=y"}
    with pytest.raises(ValueError, match="line 2"):
        flags.parse_env_file("A=1\nB C=2", {}, "file")
    assert flags.parse_env_file("\ufeffA=1\n  B=2 \nC", {"C": "3"}) == {"A": "1", "B": "2 ", "C": "3"}


def test_ranges_of_ids() -> None:
    assert flags.parse_userns([]) == flags.parse_userns(["host"]) == ()
    assert flags.parse_userns(["0:100000:65536", "65536:0:1"])[1] == IdMap(65536, 0, 1)
    with pytest.raises(ValueError, match="INSIDE:OUTSIDE:COUNT"):
        flags.parse_userns(["host", "0:1:2"])


def test_hosts() -> None:
    assert flags.parse_hosts(["a:10.0.0.1", "b=::1", "c:[fe80::1]"]) == {"a": "10.0.0.1", "b": "::1", "c": "fe80::1"}
    with pytest.raises(ValueError, match="gateway"):
        flags.parse_hosts(["up:host-gateway"])


def test_security_options() -> None:
    assert flags.parse_security(["no-new-privileges:false"]) == {"no_new_privileges": False}
    assert flags.parse_security(["no-new-privileges=true", "seccomp:/p.json", "apparmor=unconfined"]) == {
        "no_new_privileges": True,
        "seccomp": "/p.json",
    }
    assert flags.parse_security(["systempaths=unconfined"]) == {"masked_paths": (), "readonly_paths": ()}
    for text in ("apparmor=profile", "seccomp", "label=type:x"):
        with pytest.raises(ValueError, match="unknown"):
            flags.parse_security([text])


def test_zero_is_no_limit() -> None:
    assert flags.parse_limits(memory="0", cpus=0.0, pids=None) == flags.parse_limits()
    assert flags.parse_limits(memory="1g", memory_swap=flags.swap_limit("-1")).memory_swap == -1


WORDS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "-i",
                "-t",
                "-it",
                "-eA=1",
                "-e",
                "A=1",
                "--env=B",
                "--rm",
                "--no-sig-proxy",
                "--timeout",
                "2.5",
                "--cpus=1",
            ]
        ),
        st.sampled_from(
            ["-m1g", "-m", "1g", "--", "-", "image", "--pids-limit", "-1", "--help", "-x", "-ti", "--tty=1"]
        ),
        st.sampled_from(
            ["--user=", "", "-v", "/a:/b", "-iv/a:/b", "--oom-score-adj", "5000", "-i-", "--root", "-h", "é"]
        ),
    ),
    max_size=8,
)


@given(WORDS)
def test_the_quick_reader_and_click_understand_the_same(words: list[str]) -> None:
    """What the quick one leaves to click may be right or wrong; what it reads, click reads alike."""
    quick = options.read(words, options.RUN)
    if quick is None or not quick[1]:
        return
    context = run_command.make_context("run", list(words), resilient_parsing=False)
    image, *command = quick[1]
    assert context.params == {**quick[0], "image": image, "command": tuple(command)}


def test_short_flags_may_have_an_equals_sign() -> None:
    given_, _ = options.read(["-m=1g", "image"], options.RUN) or ({}, [])
    assert given_["memory"] == "1g"
