"""Bundles made by runc, crun, umoci and podman, run by us: what their documents ask for is what the program gets."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontainer import Engine, InvalidSpec, Result
from tests.peers.podman import Podman

Document = dict[str, Any]


def tool(*command: str | Path, cwd: Path | None = None) -> str:
    """Return what a program prints; skip when it is not installed."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def change(bundle: Path, edit: Callable[[Document], object]) -> Document:
    """Change the document of a bundle as a user would with an editor; return it."""
    path = bundle / "config.json"
    document: Document = json.loads(path.read_bytes())
    edit(document)
    path.write_text(json.dumps(document))
    return document


def run(engine: Engine, bundle: Path, *command: str, **options: object) -> Result:
    """Run a command in a bundle, without a terminal."""

    def edit(document: Document) -> None:
        document["process"]["terminal"] = False
        document["process"]["args"] = list(command)

    change(bundle, edit)
    return engine.run_bundle(bundle, timeout=30, **options)  # type: ignore[arg-type]


def told(result: Result) -> list[str]:
    """Return the lines of a run that went well."""
    assert result.ok, result
    assert result.stderr == b""
    return result.stdout.decode().splitlines()


def status(engine: Engine, bundle: Path) -> dict[str, str]:
    """Return proc_pid_status(5) of a process of the bundle."""
    return dict(line.split(":\t", 1) for line in told(run(engine, bundle, "cat", "/proc/self/status")))


def mask(document: Document, kind: str) -> int:
    """Return a capability set of a document as the kernel shows it."""
    from pycontainer.runtime import capabilities

    return capabilities.to_mask(document["process"]["capabilities"].get(kind, ()))


# ── runc spec, crun spec ──

SPECS = [("runc", "spec"), ("crun", "spec")]


@pytest.fixture(params=SPECS, ids=" ".join)
def spec(request: pytest.FixtureRequest, tmp_path: Path, busybox_rootfs: Path) -> Path:
    """Give the bundle that a runtime proposes, with busybox as its root."""
    tool("cp", "-a", busybox_rootfs, tmp_path / "rootfs")
    tool(*request.param, cwd=tmp_path)
    return tmp_path


def test_a_proposed_bundle_runs(stocked: Engine, spec: Path) -> None:
    result = run(stocked, spec, "sh", "-c", "echo hello; echo $TERM $$; exit 3")
    assert result.stdout.split() == [b"hello", b"xterm", b"1"], result
    assert result.exit_code == 3


def test_a_proposed_bundle_is_what_it_says(stocked: Engine, spec: Path) -> None:
    document = json.loads((spec / "config.json").read_bytes())
    script = "hostname; id -u; id -G; pwd; ulimit -n; ulimit -Hn; touch /x 2>/dev/null || echo read-only; echo $PATH"
    limit = document["process"]["rlimits"][0]
    path = next(text[5:] for text in document["process"]["env"] if text.startswith("PATH="))
    assert told(run(stocked, spec, "sh", "-c", script)) == [
        *(document["hostname"], "0", "0", "/", str(limit["soft"]), str(limit["hard"])),
        *("read-only", path),
    ]
    assert not (spec / "rootfs/x").exists()


def test_a_proposed_bundle_has_its_privileges(stocked: Engine, spec: Path) -> None:
    document = json.loads((spec / "config.json").read_bytes())
    found = status(stocked, spec)
    for kind, name in (("bounding", "CapBnd"), ("effective", "CapEff"), ("permitted", "CapPrm")):
        assert int(found[name], 16) == mask(document, kind), kind
    # Ambient ones must be inheritable (capabilities(7)), whatever the document lists.
    inheritable = mask(document, "inheritable")
    assert int(found["CapInh"], 16) == inheritable
    assert int(found["CapAmb"], 16) == mask(document, "ambient") & inheritable
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "0"


def test_a_proposed_bundle_has_its_mounts(stocked: Engine, spec: Path) -> None:
    document = json.loads((spec / "config.json").read_bytes())
    lines = told(run(stocked, spec, "cat", "/proc/mounts"))
    table = {fields[1]: (fields[2], set(fields[3].split(","))) for fields in map(str.split, lines)}
    for mount in document["mounts"]:
        kind, options = table[mount["destination"]]
        if mount["type"] != "cgroup":
            assert kind == mount["type"]
        flags = {"ro", "nosuid", "noexec", "nodev"} & set(mount.get("options", ()))
        assert flags <= options, mount["destination"]
    for path in document["linux"]["maskedPaths"]:
        assert path in table or not Path(path).exists(), path
    for path in document["linux"]["readonlyPaths"]:
        assert not Path(path).exists() or "ro" in table[path][1], path


def test_a_proposed_bundle_is_alone(stocked: Engine, spec: Path) -> None:
    kinds = {"network": "net", "mount": "mnt"}
    document = json.loads((spec / "config.json").read_bytes())
    own = [kinds.get(namespace["type"], namespace["type"]) for namespace in document["linux"]["namespaces"]]
    assert {"pid", "net", "ipc", "uts", "mnt"} <= set(own)
    links = told(run(stocked, spec, "sh", "-c", f"for n in {' '.join(own)}; do readlink /proc/self/ns/$n; done; ps"))
    for name, link in zip(own, links, strict=False):
        assert link != str(Path(f"/proc/self/ns/{name}").readlink())
    assert len(links) - len(own) <= 3  # the head line of ps, the shell, ps


def test_a_proposed_bundle_with_a_terminal(stocked: Engine, spec: Path) -> None:
    change(spec, lambda document: document["process"].update(args=["sh", "-c", "tty; test -t 0 && echo terminal"]))
    result = stocked.run_bundle(spec, input=b"", timeout=30)
    assert result.stdout.split() == [b"/dev/pts/0", b"terminal"], result


@pytest.fixture
def rootless(request: pytest.FixtureRequest, tmp_path: Path, busybox_rootfs: Path) -> Path:
    """Give the bundle that a runtime proposes for a user namespace."""
    tool("cp", "-a", busybox_rootfs, tmp_path / "rootfs")
    tool(request.param, "spec", "--rootless", cwd=tmp_path)
    return tmp_path


@pytest.mark.parametrize("rootless", ["runc"], indirect=True)
def test_a_proposed_rootless_bundle(stocked: Engine, rootless: Path) -> None:
    result = run(stocked, rootless, "sh", "-c", "id -u; cat /proc/self/uid_map /proc/self/gid_map")
    uid, *maps = told(result)
    assert uid == "0"
    assert [line.split() for line in maps] == [["0", "0", "1"], ["0", "0", "1"]]  # root of the host runs the test


@pytest.mark.parametrize("rootless", ["crun"], indirect=True)
def test_a_proposed_rootless_bundle_without_maps_is_refused(stocked: Engine, rootless: Path) -> None:
    """Leaving them out means whatever its author does then; here they have to be said."""
    document = json.loads((rootless / "config.json").read_bytes())
    if "uidMappings" in document["linux"]:
        pytest.skip("this version of crun proposes id mappings")
    with pytest.raises(InvalidSpec, match="uidMappings"):
        run(stocked, rootless, "true")


# ── umoci ──


@pytest.fixture
def unpacked(tmp_path: Path, busybox_rootfs: Path) -> Path:
    """Give the bundle that umoci makes of an image with a user, a directory, variables and a label."""
    image = f"{tmp_path}/image:latest"
    tool("umoci", "init", "--layout", tmp_path / "image")
    tool("umoci", "new", "--image", image)
    tool("umoci", "insert", "--image", image, busybox_rootfs, "/")
    tool(
        *("umoci", "config", "--image", image, "--config.user", "app", "--config.workingdir", "/home/app"),
        *("--config.env", "GREETING=hello there", "--config.env", "PATH=/bin", "--config.cmd", "id"),
        *("--config.label", "org.example=x"),
    )
    tool("umoci", "unpack", "--image", image, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_an_unpacked_image_runs_its_own_command(stocked: Engine, unpacked: Path) -> None:
    change(unpacked, lambda document: document["process"].update(terminal=False))
    (line,) = told(stocked.run_bundle(unpacked, timeout=30))
    assert line.startswith("uid=1000(app) gid=1000(app)")


def test_an_unpacked_image_is_configured(stocked: Engine, unpacked: Path) -> None:
    script = "pwd; echo $GREETING; echo $PATH; echo $HOME; id -u; id -G; umask"
    directory, greeting, path, home, uid, groups, umask = told(run(stocked, unpacked, "sh", "-c", script))
    assert (directory, greeting, path, home, uid) == ("/home/app", "hello there", "/bin", "/home/app", "1000")
    document = json.loads((unpacked / "config.json").read_bytes())
    user = document["process"]["user"]
    assert sorted(map(int, groups.split())) == sorted({user["gid"], *user.get("additionalGids", ())})
    assert umask == "0022"


def test_an_unpacked_image_has_no_more_rights_than_its_user(stocked: Engine, unpacked: Path) -> None:
    document = json.loads((unpacked / "config.json").read_bytes())
    found = status(stocked, unpacked)
    # A program of another user than root keeps the ambient ones over execve, see capabilities(7).
    assert int(found["CapEff"], 16) == mask(document, "ambient") & mask(document, "inheritable")
    assert int(found["CapBnd"], 16) == mask(document, "bounding")
    assert found["NoNewPrivs"] == "1"
    result = run(stocked, unpacked, "sh", "-c", "echo x >/etc/passwd")
    assert result.exit_code != 0
    assert b"ermission denied" in result.stderr


def test_writes_to_an_unpacked_image_can_be_repacked(stocked: Engine, unpacked: Path, tmp_path: Path) -> None:
    assert run(stocked, unpacked, "sh", "-c", "echo kept >note").ok
    tool("umoci", "repack", "--image", f"{tmp_path}/image:next", unpacked)
    tool("umoci", "unpack", "--image", f"{tmp_path}/image:next", tmp_path / "again")
    # Nothing of a start may be in the layer but what the program wrote and the places of mounts.
    assert told(run(stocked, tmp_path / "again", "sh", "-c", "cat note; stat -c %U note")) == ["kept", "app"]


# ── podman ──

PODMAN_OPTIONS = """
    --memory=64m --cpu-shares=512 --pids-limit=64 --read-only
    --cap-add=NET_ADMIN --cap-drop=CHOWN --tmpfs=/scratch:size=1m --volume=/usr/share:/host:ro --umask=0027
    --sysctl=net.ipv4.ip_forward=1 --device=/dev/null:/dev/zilch:r --oom-score-adj=100 --hostname=c1 --env=A=1
    --workdir=/etc --security-opt=mask=/proc/uptime
"""


@pytest.fixture
def made_by_podman(busybox_rootfs: Path, tmp_path: Path) -> Iterator[Path]:
    """Give the document that podman makes of a root and many options, as a bundle."""
    with tempfile.TemporaryDirectory(prefix="pyc-") as name:
        base = Path(name)
        tool("cp", "-a", busybox_rootfs, base / "rootfs")
        podman = Podman(base, "crun", "vfs")
        done = podman("create", *PODMAN_OPTIONS.split(), "--rootfs", base / "rootfs", "true")
        if done.returncode != 0:
            pytest.skip(f"podman create: {done.stderr.decode(errors='replace').strip()}")
        identity = done.stdout.decode().strip()
        bundle = tmp_path / "bundle"
        bundle.mkdir()
        try:
            done = podman("init", identity)  # writes the document before it asks the runtime
            found = list(base.glob(f"store/vfs-containers/{identity}/userdata/config.json"))
            if not found:
                pytest.skip(f"podman init wrote no document: {done.stderr.decode(errors='replace').strip()}")
            shutil.copy(found[0], bundle)
            change(bundle, lambda document: separate(document, base, tmp_path / "kept"))
        finally:
            podman("rm", "--force", identity)
            podman.close()
        yield bundle


def separate(document: Document, base: Path, kept: Path) -> None:
    """Make a document independent of podman's own container: its files, its namespaces and its control group."""
    kept.mkdir()
    document["root"]["path"] = f"{base}/rootfs"
    document["linux"].pop("cgroupsPath")
    document["linux"]["namespaces"] = [{"type": namespace["type"]} for namespace in document["linux"]["namespaces"]]
    document.pop("hooks", None)
    for mount in document["mounts"]:
        source = Path(mount["source"])
        if source.is_relative_to(base):
            mount["source"] = str(kept / source.name)
            if source.is_file():
                shutil.copy(source, kept)
            else:
                (kept / source.name).mkdir()


def test_a_document_of_podman_runs(stocked: Engine, made_by_podman: Path) -> None:
    script = """
        hostname; pwd; umask; echo $A; id -u
        cat /proc/sys/net/ipv4/ip_forward /proc/self/oom_score_adj
        touch /x 2>/dev/null || echo read-only
        touch /host/x 2>/dev/null || echo host is read-only
        touch /scratch/x && echo scratch
        cat /proc/uptime; cat </dev/zilch && echo readable
        grep -c . /etc/hosts >/dev/null && echo hosts
    """
    assert told(run(stocked, made_by_podman, "sh", "-c", script)) == [
        *("c1", "/etc", "0027", "1", "0", "1", "100", "read-only", "host is read-only", "scratch"),
        *("readable", "hosts"),
    ]


def test_a_document_of_podman_limits(stocked: Engine, made_by_podman: Path) -> None:
    if not Path("/sys/fs/cgroup/memory").exists():
        pytest.skip("the control groups of this host are version 2, whose files have other names")
    script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.shares"
    assert told(run(stocked, made_by_podman, "sh", "-c", script)) == [str(64 << 20), "64", "512"]


def test_a_document_of_podman_privileges(stocked: Engine, made_by_podman: Path) -> None:
    document = json.loads((made_by_podman / "config.json").read_bytes())
    found = status(stocked, made_by_podman)
    for kind, name in (("bounding", "CapBnd"), ("effective", "CapEff"), ("permitted", "CapPrm")):
        assert int(found[name], 16) == mask(document, kind), kind
    assert found["Seccomp"] == "2"
    assert not int(found["CapEff"], 16) & 1  # CHOWN was dropped
    assert int(found["CapEff"], 16) & 1 << 12  # NET_ADMIN was added


def test_a_tmpfs_of_podman_is_filled_with_what_it_covers(stocked: Engine, made_by_podman: Path) -> None:
    """A word of config.md, "Linux mount options", that podman writes for every --tmpfs."""
    mount = {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "tmpcopyup"]}
    change(made_by_podman, lambda document: document["mounts"].insert(0, mount))
    assert told(run(stocked, made_by_podman, "head", "-n1", "/etc/passwd"))[0].startswith("root:")
