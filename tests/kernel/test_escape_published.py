"""The published ways out of containers, by their numbers."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pycontainer._ffi import HELPER
from pycontainer.errors import Error
from pycontainer.model import ImageConfig, Mount
from tests.kernel.attacks.jail import PRIVILEGED, Node, keep_node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycontainer import Image
    from tests.kernel.attacks.jail import Jail

# Pin the file that runs now, become another program, write over the pinned one.
TAKE_OVER = "exec 9</proc/self/exe; exec /bin/attack overwrite /proc/self/fd/9 OWNED"


@pytest.fixture
def tools(tmp_path: Path, jail: Jail) -> Path:
    """Give a directory of the host with a program in it."""
    directory = tmp_path / "tools"
    directory.mkdir()
    shutil.copy(jail.tree / "bin/busybox", directory / "busybox")
    return directory


@pytest.fixture
def held(tools: Path) -> Iterator[int]:
    """Give a descriptor of that directory, which the calling program holds and forgot to mark close-on-exec."""
    fd = os.open(tools, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)


# ── CVE-2019-5736: the program that starts containers is reached by /proc/self/exe and overwritten ────────────────────


def test_cve_2019_5736_works_on_a_program_of_the_host_that_is_run_inside(jail: Jail, tmp_path: Path) -> None:
    """The control of the next tests: a writable program of the host, run as it is."""
    shutil.copy(jail.tree / "bin/busybox", tmp_path / "busybox")
    shown = Mount.bind(str(tmp_path), "/host")
    assert jail.sh(f"/host/busybox sh -c '{TAKE_OVER}'", mounts=[shown]) == "0"
    assert (tmp_path / "busybox").read_bytes().startswith(b"OWNED")


def test_cve_2019_5736_the_init_cannot_be_overwritten(jail: Jail) -> None:
    before = hashlib.sha256(HELPER.read_bytes()).digest()
    code, _ = jail.told("overwrite", "/proc/1/exe", "OWNED", init=True)
    assert code in (errno.ETXTBSY, errno.EPERM, errno.EROFS)
    # Run it again as a program of its own, whose end does not end the container.
    again = jail.run("/bin/sh", "-c", "exec 9</proc/1/exe; exec /bin/attack overwrite /proc/self/fd/9 OWNED", init=True)
    assert again.stdout.strip() in (b"26", b"1", b"30")
    assert hashlib.sha256(HELPER.read_bytes()).digest() == before


def test_cve_2019_5736_what_runs_as_init_is_a_copy_that_nobody_can_change(jail: Jail) -> None:
    change = "chmod 4777 /proc/1/exe 2>/dev/null || echo no; chown 5 /proc/1/exe 2>/dev/null || echo no"
    assert jail.sh(change, init=True).split() == ["no", "no"]
    digest = hashlib.sha256(HELPER.read_bytes()).hexdigest()
    assert jail.sh("cat /proc/1/exe | sha256sum", init=True).startswith(digest)


@pytest.mark.parametrize("damage", ["chmod 0", "chown 4242", "chmod 4777"])
def test_cve_2019_5736_the_init_of_later_containers_is_not_damaged_either(
    damage: str, tmp_path: Path, busybox_rootfs: Path
) -> None:
    """They run the same copy: what can be done to the file behind it is done to all. In a program of its own."""
    from pycontainer import Engine

    with Engine(tmp_path / "engine") as engine:
        engine.images.import_rootfs(busybox_rootfs, reference="busybox:test")
    run = (
        "import sys; from pycontainer import Engine\n"
        "with Engine(sys.argv[1]) as engine:\n"
        "    for script in sys.argv[2:]:\n"
        "        result = engine.run('busybox:test', ['sh', '-c', script], init=True, timeout=20)\n"
        "print(result.stdout.decode())\n"
    )
    scripts = (f"{damage} /proc/1/exe", "stat -Lc %a:%u /proc/1/exe")
    assert said_by([sys.executable, "-c", run, str(tmp_path / "engine"), *scripts]) == "555:0"


@pytest.fixture(scope="module")
def with_python(built_jail: Jail) -> Image:
    """Give an image in which the interpreter of this program would find its libraries."""
    interpreter = Path("/proc/self/exe").resolve()
    listed = subprocess.run(["ldd", interpreter], capture_output=True, text=True, check=True).stdout

    def change(tree: Path) -> None:
        for word in listed.split():
            if word.startswith("/"):
                place = tree / word.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, place)
        for name, interpreter in {"one": "/proc/self/exe", "two": "/one", "thread": "/proc/thread-self/exe"}.items():
            (tree / name).write_text(f"#!{interpreter} --version\n")
            (tree / name).chmod(0o755)
        (tree / "link").symlink_to("/proc/self/exe")

    image = built_jail.variant("with-python", change)
    built_jail.run("/bin/true", image=image)  # its mount lasts
    return image


@pytest.mark.parametrize("init", [False, True], ids=["", "with-init"])
@pytest.mark.parametrize(
    "command",
    [
        ("/proc/self/exe", "--version"),
        ("/proc/1/exe", "--version"),
        ("/proc/thread-self/exe", "--version"),
        ("/link", "--version"),
        ("/one",),
        ("/two",),
        ("/thread",),
        ("exe", "--version"),
    ],
    ids=lambda command: command[0].strip("/").replace("/", "-"),
)
def test_cve_2019_5736_the_callers_interpreter_is_not_run_inside(
    jail: Jail, with_python: Image, command: tuple[str, ...], init: bool
) -> None:
    said = b""
    with contextlib.suppress(Error):
        result = jail.run(*command, image=with_python, init=init, env={"PATH": "/proc/self:/bin"})
        said = result.stdout + result.stderr
    assert b"Python" not in said


# ── CVE-2024-21626: descriptors of the host that are still there when the container starts ──────────────────────────


def test_cve_2024_21626_no_descriptor_of_the_caller_is_inherited(jail: Jail, held: int) -> None:
    """The descriptor has no close-on-exec flag, as those of many libraries have not."""
    assert jail.attack("fds") == errno.EBADF
    assert jail.attack("fds", init=True) == errno.EBADF
    assert jail.attack("fds", tty=False, user="app") == errno.EBADF
    assert jail.outside("fds", pass_fds=(held,)) == 0


def test_cve_2024_21626_no_descriptor_is_inherited_with_a_terminal(jail: Jail, held: int) -> None:
    del held
    result = jail.run("/bin/attack", "fds", tty=True)
    assert result.stdout.split() == [b"9"]


@pytest.mark.parametrize("up", ["", "/..", "/../../../../../../../.."])
def test_cve_2024_21626_the_working_directory_is_not_one_of_the_host(jail: Jail, held: int, up: str) -> None:
    with pytest.raises(Error, match="working directory"):
        jail.run("/bin/busybox", "ls", workdir=f"/proc/self/fd/{held}{up}")


def test_cve_2024_21626_not_by_the_configuration_of_an_image_either(jail: Jail, held: int) -> None:
    def link(tree: Path) -> None:
        (tree / "job").symlink_to(f"/proc/self/fd/{held}")

    for number, workdir in enumerate((f"/proc/self/fd/{held}", "/job", "/job/..")):
        image = jail.variant(f"workdir-{number}", link, config=ImageConfig(workdir=workdir))
        with pytest.raises(Error, match="working directory"):
            jail.run("/bin/busybox", "ls", image=image)


@pytest.mark.parametrize("init", [False, True], ids=["", "with-init"])
@pytest.mark.parametrize("way", ["path", "link", "script", "search"])
def test_cve_2024_21626_no_program_of_the_host_is_run(jail: Jail, tools: Path, held: int, way: str, init: bool) -> None:
    path = f"/proc/self/fd/{held}/busybox"

    def change(tree: Path) -> None:
        (tree / "link").symlink_to(f"/proc/self/fd/{held}")
        (tree / "script").write_text(f"#!{path} sh\n{TAKE_OVER}\n")
        (tree / "script").chmod(0o755)
        (tree / "bin/busybox").rename(tree / "bin/sh.real")
        (tree / "bin/sh").unlink()
        (tree / "bin/sh").symlink_to("sh.real")

    image = jail.variant(f"held-{way}-{init}", change)
    program = {"path": path, "link": "/link/busybox", "script": "/script", "search": "busybox"}[way]
    arguments = [] if way == "script" else ["sh", "-c", TAKE_OVER]
    with contextlib.suppress(Error):  # not to start is safe
        result = jail.run(program, *arguments, image=image, init=init, env={"PATH": f"/proc/self/fd/{held}"})
        assert result.stdout != b"0\n"
    assert not (tools / "busybox").read_bytes().startswith(b"OWNED")


@pytest.mark.parametrize("init", [False, True], ids=["", "with-init"])
def test_cve_2024_21626_no_number_leads_to_a_directory(jail: Jail, init: bool) -> None:
    """Whatever the engine itself holds, whatever its number: neither as a program nor as a working directory."""
    for number in range(3, 20):
        for up in ("", "/..", "/../.."):
            with pytest.raises(Error):
                jail.run(f"/proc/self/fd/{number}{up}/bin/busybox", "true", init=init, check=True)
            with pytest.raises(Error):
                jail.run("/bin/true", workdir=f"/proc/self/fd/{number}{up}", init=init)


# ── the standard streams are the host's ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("fd", "streams"), [(0, {}), (1, {"stdout": "discard"}), (2, {"stderr": "discard"})])
@pytest.mark.parametrize("attack", ["fchmod", "fchown"])
def test_the_null_device_of_the_host_cannot_be_changed_through_a_stream(
    jail: Jail, attack: str, fd: int, streams: dict[str, Any]
) -> None:
    for before in keep_node("/dev/null"):
        jail.run("/bin/attack", attack, str(fd), "0676", **streams)
        assert Node.of("/dev/null") == before


@pytest.mark.parametrize("attack", ["fchmod", "fchown"])
def test_a_file_that_is_given_as_a_stream_can_be_changed_through_it(jail: Jail, tmp_path: Path, attack: str) -> None:
    """The control: root inside is root to whatever it is given."""
    file = tmp_path / "input"
    file.touch()
    before = Node.of(str(file))
    with file.open("rb") as stream:
        assert jail.attack(attack, 0, "0676", stdin=stream) == 0
    assert Node.of(str(file)) != before


# ── CVE-2021-30465: the target of a mount becomes a symbolic link while others are mounted on it ─────────────────────


@pytest.fixture
def arena(tmp_path: Path) -> Path:
    """Give a shared volume in which ``a`` is a directory and ``b`` a link to what is outside of it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "payload").mkdir()
    volume = tmp_path / "volume"
    (volume / "a").mkdir(parents=True)
    (volume / "b").symlink_to(tmp_path / "outside")
    return tmp_path


@contextlib.contextmanager
def swapping(jail: Jail, volume: Path, seconds: int = 20) -> Iterator[None]:
    swap = subprocess.Popen([jail.tool, "swap", volume / "a", volume / "b", str(seconds)], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        swap.kill()
        swap.wait()


def test_cve_2021_30465_checking_a_path_before_using_it_loses_the_race(jail: Jail, arena: Path) -> None:
    """The control: what engines did before."""
    volume, tries = arena / "volume", 0
    with swapping(jail, volume):
        end = time.monotonic() + 15
        while not list((arena / "outside").iterdir()) and time.monotonic() < end:
            tries += 1
            with contextlib.suppress(OSError):
                if os.path.realpath(volume / "a") == str(volume / "a"):
                    os.mkdir(volume / "a" / str(tries))  # noqa: PTH102
    assert list((arena / "outside").iterdir()), f"not lost in {tries} tries"


def test_cve_2021_30465_nothing_is_mounted_or_made_outside(jail: Jail, arena: Path) -> None:
    volume, outside = arena / "volume", arena / "outside"
    mounts = [
        Mount.bind(str(volume), "/volume"),
        Mount.bind(str(arena / "payload"), "/volume/a/bind"),
        Mount.tmpfs("/volume/a/memory"),
        Mount.tmpfs("/volume/b/memory"),
    ]
    started = 0
    with swapping(jail, volume):
        end = time.monotonic() + 4
        while time.monotonic() < end:
            with contextlib.suppress(Error):  # refusing to start is safe
                jail.run("/bin/true", mounts=mounts)
                started += 1
    assert started > 0
    assert list(outside.iterdir()) == []
    assert str(arena) not in Path("/proc/self/mountinfo").read_text()


# ── CVE-2025-31133, -52565, -52881: what covers, what is covered, and where writes to /proc arrive ──────────────────


def replace_null(tree: Path) -> None:
    for name in ("null", "console", "zero", "ptmx"):
        (tree / "dev" / name).symlink_to("/proc/sys/kernel/core_pattern")


def test_cve_2025_31133_the_image_does_not_choose_what_masks_a_file(jail: Jail) -> None:
    image = jail.variant("null", replace_null)
    assert jail.sh("stat -c %t:%T /proc/keys /proc/interrupts", image=image) == "1:3\n1:3"
    assert jail.attack("open", "/proc/sys/kernel/core_pattern", os.O_WRONLY, image=image) == errno.EROFS
    assert jail.sh("stat -c %F /proc/keys", image=image, masked_paths=()) == "regular empty file"


def test_cve_2025_31133_nor_does_a_volume_over_dev(jail: Jail, tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/proc/sys/kernel/core_pattern")
    with pytest.raises(Error, match=r"/dev/null|mask"):
        jail.run("/bin/true", mounts=[Mount.bind(str(tmp_path), "/dev")])


def test_cve_2025_52565_a_link_in_place_of_the_console_leads_nowhere(jail: Jail) -> None:
    image = jail.variant("console", replace_null)
    said = jail.run("/bin/sh", "-c", "stat -c %t /dev/console; stat -c %F /dev/ptmx /dev/null", image=image, tty=True)
    assert said.stdout.split(b"\r\n")[0] == b"88"  # 136, a terminal of the container's own
    assert jail.attack("open", "/proc/sys/kernel/core_pattern", os.O_WRONLY, image=image) == errno.EROFS


def test_cve_2025_52565_nor_does_one_in_a_volume_over_dev(jail: Jail, tmp_path: Path) -> None:
    """Either it does not start, or the file that the link names is as it was."""
    os.mknod(tmp_path / "null", 0o20666, os.makedev(1, 3))
    (tmp_path / "console").symlink_to("/etc/os-release")
    with contextlib.suppress(Error):
        result = jail.run("/bin/cat", "/etc/os-release", mounts=[Mount.bind(str(tmp_path), "/dev")], tty=True)
        assert b"BusyBox" in result.stdout


@pytest.mark.parametrize("place", ["/proc", "/sys", "/dev"])
def test_cve_2025_52881_a_link_in_place_of_a_file_system_is_not_followed_out(
    jail: Jail, tmp_path: Path, place: str
) -> None:
    """Either it does not start, or the file system is where it belongs; nothing is made on the host."""
    canary = tmp_path / "canary"
    canary.mkdir()

    def change(tree: Path) -> None:
        (tree / place[1:]).rmdir()
        (tree / place[1:]).symlink_to(canary)

    image = jail.variant(f"linked-{place[1:]}", change)
    with contextlib.suppress(Error):
        result = jail.run("/bin/sh", "-c", "cat /proc/mounts; cat /proc/self/status", image=image)
        assert f" {place} ".encode() in result.stdout or place == "/dev"
        assert b"Seccomp:\t2" in result.stdout
        assert jail.attack("open", "/proc/sys/kernel/core_pattern", os.O_WRONLY, image=image) == errno.EROFS
    assert list(canary.iterdir()) == []


@pytest.mark.parametrize("target", ["/proc/sys/net/ipv4", "/data"])
def test_cve_2025_52881_a_kernel_parameter_is_written_nowhere_else(jail: Jail, tmp_path: Path, target: str) -> None:
    """A volume lies over /proc/sys/net/ipv4, because an image says that /data is there, and links the file away."""
    (tmp_path / "ip_forward").symlink_to("/proc/self/oom_score_adj")

    def change(tree: Path) -> None:
        (tree / "data").symlink_to("/proc/sys/net/ipv4")

    image = jail.variant(f"sysctl-{target.strip('/').replace('/', '-')}", change)
    with contextlib.suppress(Error, ValueError):
        shown = jail.sh(
            "cat /proc/self/oom_score_adj",
            image=image,
            mounts=[Mount.bind(str(tmp_path), target)],
            sysctls={"net.ipv4.ip_forward": "77"},
        )
        assert shown == "0"


def test_cve_2025_52881_a_kernel_parameter_does_not_wait_for_a_pipe(jail: Jail, tmp_path: Path) -> None:
    """Opening a pipe that nobody reads would keep the caller for ever."""
    os.mkfifo(tmp_path / "ip_forward")
    with contextlib.suppress(Error, ValueError):
        jail.run(
            "/bin/true",
            mounts=[Mount.bind(str(tmp_path), "/proc/sys/net/ipv4")],
            sysctls={"net.ipv4.ip_forward": "1"},
        )


def test_sysctl_and_oom_score_adj_arrive_where_they_belong(jail: Jail) -> None:
    """The control of the last test."""
    before = Path("/proc/self/oom_score_adj").read_text()
    shown = jail.sh(
        "cat /proc/sys/net/ipv4/ip_default_ttl /proc/self/oom_score_adj",
        sysctls={"net.ipv4.ip_default_ttl": "77"},
        oom_score_adj=123,
    )
    assert shown.split() == ["77", "123"]
    assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() != "77\n"
    assert Path("/proc/self/oom_score_adj").read_text() == before


# ── CVE-2022-0492: release_agent of control groups of version 1 ──────────────────────────────────────────────────────


def test_cve_2022_0492_release_agent_is_not_there(jail: Jail) -> None:
    """Mounting it, also in a user namespace of its own, is refused: see the tests of system calls."""
    assert jail.sh("find /sys/fs/cgroup -name release_agent") == ""
    assert jail.sh("find /sys/fs/cgroup -name release_agent", cgroupns="host") == ""


def test_cve_2022_0492_works_when_nothing_protects(jail: Jail) -> None:
    if not Path("/sys/fs/cgroup/pids").exists():
        pytest.skip("no control groups of version 1 on this host")
    mount = "mkdir /tmp/cg; mount -t cgroup -o pids cgroup /tmp/cg; ls /tmp/cg/release_agent"
    assert jail.sh(mount, cgroupns="host", **PRIVILEGED) == "/tmp/cg/release_agent"


def test_control_groups_cannot_be_changed_from_inside(jail: Jail) -> None:
    write = (
        "for f in $(find /sys/fs/cgroup -type f -name '*limit*' -o -type f -name '*.max'); do echo $f; done | head -1"
    )
    file = jail.sh(write)
    assert file
    assert jail.attack("open", file, os.O_WRONLY) == errno.EROFS
    assert jail.attack("open", file, os.O_WRONLY, **PRIVILEGED) in (0, errno.EROFS)


# ── CVE-2014: open_by_handle_at ──────────────────────────────────────────────────────────────────────────────────────


def file_handle(path: Path) -> tuple[int, str]:
    """Return type and bytes of a file's handle, see open_by_handle_at(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(8 + 128)
    ctypes.c_uint.from_buffer(buffer).value = 128
    mount = ctypes.c_int()
    if libc.name_to_handle_at(-100, os.fsencode(path), buffer, ctypes.byref(mount), 0) != 0:
        pytest.skip(f"{path}: {os.strerror(ctypes.get_errno())}: this file system has no handles")
    size = ctypes.c_uint.from_buffer(buffer).value
    return ctypes.c_int.from_buffer(buffer, 4).value, buffer.raw[8 : 8 + size].hex()


def test_shocker_a_handle_does_not_open_what_is_outside_of_a_volume(jail: Jail, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    volume = tmp_path / "volume"
    volume.mkdir()
    kind, handle = file_handle(secret)
    shown = {"mounts": [Mount.bind(str(volume), "/volume")]}
    assert jail.told("handle", "/volume", kind, handle, **shown) == (errno.EPERM, "")
    assert jail.told("handle", "/volume", kind, handle, seccomp="unconfined", **shown) == (errno.EPERM, "")
    assert jail.told("handle", "/volume", kind, handle, **PRIVILEGED, **shown) == (0, "of the host")


# ── what a caller has and a container must not get ───────────────────────────────────────────────────────────────────

INSIDE = """
import sys
from pycontainer import Engine
with Engine(sys.argv[1]) as engine:
    result = engine.run(sys.argv[2], sys.argv[3:], seccomp="unconfined", timeout=20)
sys.stdout.write(result.stdout.decode())
"""


def caller(jail: Jail, *command: str) -> list[str]:
    """Return the command of a program of the host that runs a command in a container."""
    return [sys.executable, "-c", INSIDE, str(jail.engine.root), jail.image.id, *command]


def said_by(command: list[str], **options: Any) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_keys_of_the_callers_session_are_not_found(jail: Jail) -> None:
    plant = [str(jail.tool), "plant", "pycontainer-test-key"]
    assert said_by([*plant, str(jail.tool), "search", "pycontainer-test-key"]) == "0"
    inside = said_by([*plant, *caller(jail, "/bin/attack", "search", "pycontainer-test-key")])
    assert inside == str(errno.ENOKEY)


def test_supplementary_groups_of_the_caller_are_not_kept(jail: Jail) -> None:
    assert "4242" in said_by(["id", "-G"], extra_groups=[4242, 4343])
    assert said_by(caller(jail, "id", "-G"), extra_groups=[4242, 4343]) == "0"


def test_the_mask_of_the_caller_and_its_ignored_signals_are_not_kept(jail: Jail) -> None:
    shown = said_by(caller(jail, "grep", "-E", "Umask|SigBlk|SigIgn", "/proc/self/status"), umask=0o077)
    assert shown.split() == ["Umask:", "0022", "SigBlk:", "0" * 16, "SigIgn:", "0" * 16]
