"""The commands for registries: login, logout, search, pull, push, and run of an image that is not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontainer import Engine, NotFound, Registries
from tests.registry import PASSWORD, USER, Registry

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry.basic(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def call(tmp_path: Path) -> Call:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "DOCKER_"))},
        "HOME": str(tmp_path),
        "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json"),
        "PYCONTAINER_ROOT": str(tmp_path / "root"),
    }

    def run(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pycontainer", *map(str, words)]
        return subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True, check=False)

    return run


def test_the_whole_way(call: Call, registry: Registry, busybox_rootfs: Path, tmp_path: Path) -> None:
    name = f"{registry.host}/tools/busybox:1"
    assert call("import", busybox_rootfs, name).returncode == 0
    refused = call("push", name)
    assert refused.returncode == 1
    assert f"pycontainer login {registry.host}" in refused.stderr

    wrong = call("login", "-u", USER, "--password-stdin", registry.host, stdin="wrong\n")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert not (tmp_path / "auth.json").exists()
    done = call("login", "-u", USER, "--password-stdin", registry.host, stdin=f"{PASSWORD}\n")
    assert (done.returncode, done.stdout) == (0, "Login Succeeded\n")
    assert registry.host in json.loads((tmp_path / "auth.json").read_text())["auths"]

    pushed = call("push", name)
    assert pushed.returncode == 0, pushed.stderr
    assert f"{name}: digest: sha256:" in pushed.stdout
    assert ": Complete\n" in pushed.stdout
    quietly = call("push", "-q", name)
    assert quietly.stdout.startswith(f"{registry.host}/tools/busybox@sha256:")
    assert call("push", "--all-tags", f"{registry.host}/tools/busybox").returncode == 0

    found = call("search", f"{registry.host}/busy")
    assert found.stdout.splitlines()[1].split()[0] == f"{registry.host}/tools/busybox"
    assert call("search", "--format", "{{.Name}}", f"{registry.host}/nothing").stdout == ""

    up_to_date = call("pull", name)
    assert f"Status: Image is up to date for {name}\n" in up_to_date.stdout
    assert call("rmi", name).returncode == 0

    never = call("run", "--pull", "never", name, "true")
    assert (never.returncode, "no image" in never.stderr) == (125, True)
    ran = call("run", "--rm", name, "echo", "hello")
    assert (ran.returncode, ran.stdout) == (0, "hello\n")
    assert "pulling it" in ran.stderr
    assert ": Complete\n" in ran.stderr
    assert call("run", "--rm", "--pull=always", name, "echo", "x").stdout == "x\n"
    assert call("rmi", name).returncode == 0

    fresh = call("pull", f"{registry.host}/tools/busybox:1")
    assert f"Status: Downloaded newer image for {name}\n" in fresh.stdout
    assert call("pull", "-q", "-a", f"{registry.host}/tools/busybox").stdout == f"{name}\n"

    assert call("logout", registry.host).stdout == f"Removing login credentials for {registry.host}\n"
    assert call("logout", registry.host).stdout == f"Not logged in to {registry.host}\n"
    assert call("pull", name).returncode == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("login", "-p", "x", "--password-stdin"), "exclude each other"),
        (("login", "--password-stdin"), "needs --username"),
        (("login", "-u", "x"), "no terminal to ask on"),
        (("search", "--filter", "x=1", "y"), "no filter 'x=1'"),
        (("push", "-a", "a", "b"), "takes no target"),
        (("push", "absent:1"), "no image 'absent:1'"),
        (("pull", "UPPER"), "not an image reference"),
        (("pull", "--platform", "a/b/c/d", "x"), "not a platform"),
        (("pull", "-a", "x:1"), "names one of them"),
        (("run", "--pull=sometimes", "x"), "none of missing, always and never"),
    ],
)
def test_what_is_wrong_is_said(call: Call, words: tuple[str, ...], said: str) -> None:
    done = call(*words)
    assert done.returncode in (1, 125)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_image_tells_both(tmp_path: Path, registry: Registry) -> None:
    registries = Registries(auth_file=tmp_path / "none", credentials={registry.host: (USER, PASSWORD)})
    with Engine(tmp_path / "root", registries=registries) as engine:
        with pytest.raises(NotFound, match=r"no image 'localhost:.*absent.*; nor can it be pulled: .*MANIFEST_UNKNOWN"):
            engine.run(f"{registry.host}/absent", ["true"])
        with pytest.raises(NotFound, match="no image 'sha256:1234'"):
            engine.run("sha256:1234", ["true"])
        with pytest.raises(ValueError, match="pulled when missing, always or never"):
            engine.run("x", ["true"], pull="maybe")  # type: ignore[arg-type]
        assert list(registries.search("nowhere", registry=registry.host)) == []
