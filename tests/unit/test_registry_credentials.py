"""Credentials as docker, podman and skopeo keep them: files, helpers, and what is wrong with them."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontainer.distribution.credentials import Credential, CredentialFiles
from pycontainer.errors import RegistryError


def auth(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def written(path: Path, document: Any) -> CredentialFiles:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return CredentialFiles(path)


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("registry.example:5000", "registry.example:5000"),
        ("https://registry.example", "registry.example"),
        ("https://registry.example/v2/", "registry.example"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
    ],
)
def test_a_registry_is_found_by_old_and_new_keys(tmp_path: Path, key: str, registry: str) -> None:
    files = written(tmp_path / "config.json", {"auths": {key: {"auth": auth("me", "a:b")}}})
    assert files.find(registry) == Credential("me", "a:b")
    assert files.find("other.example") is None


def test_the_longest_name_wins(tmp_path: Path) -> None:
    entries = {name: {"auth": auth(name, "x")} for name in ("quay.io", "quay.io/team", "quay.io/team/app")}
    files = written(tmp_path / "auth.json", {"auths": entries})
    found = {path: files.find("quay.io", path) for path in ("team/app", "team/other", "else", "team/app/deep", "")}
    assert {path: item.username for path, item in found.items() if item} == {
        "team/app": "quay.io/team/app",
        "team/other": "quay.io/team",
        "else": "quay.io",
        "team/app/deep": "quay.io/team/app",
        "": "quay.io",
    }


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"username": "u", "password": "p"}, Credential("u", "p")),
        ({"auth": auth("u", "p"), "identitytoken": "t"}, Credential("u", "p", "t")),
        ({"registrytoken": "r"}, Credential("", "", "", "r")),
        ({"auth": base64.b64encode(b"u:p\0\0").decode()}, Credential("u", "p")),
        ({"auth": ""}, None),
        ({}, None),
    ],
)
def test_entries(tmp_path: Path, entry: dict[str, str], found: Credential | None) -> None:
    assert written(tmp_path / "config.json", {"auths": {"r.example": entry}}).find("r.example") == found


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "should be an object"),
        ({"auths": [1]}, "'auths' should be an object"),
        ({"auths": {"r.example": 1}}, "should be an object"),
        ({"auths": {"r.example": {"auth": 1}}}, "'auth' should be a string"),
        ({"auths": {"r.example": {"auth": "c2VjcmV0"}}}, "not base64 of USER:PASSWORD"),
        ({"auths": {"r.example": {"auth": "s3cr3t!"}}}, "not base64 of USER:PASSWORD"),
        ("[" * 100000, "nested"),
    ],
)
def test_a_broken_file_is_named_and_keeps_its_secrets(tmp_path: Path, document: Any, words: str) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(RegistryError, match=words) as caught:
        written(path, document).find("r.example")
    assert str(path) in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_the_usual_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for place, user in (
        ("docker/config.json", "d"),
        ("run/containers/auth.json", "r"),
        ("config/containers/auth.json", "c"),
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        written(
            path, {"auths": {f"{user}.example": {"auth": auth(user, "x")}, "all.example": {"auth": auth(user, "x")}}}
        )
    files = CredentialFiles()
    assert files.path == tmp_path / "docker/config.json"
    names = ("d.example", "r.example", "c.example", "all.example")
    assert [item.username for name in names if (item := files.find(name))] == ["d", "r", "c", "d"]
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "config/containers/auth.json"))
    assert CredentialFiles().find("d.example") is None


def test_storing_keeps_all_else_and_is_private(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.json"
    before = {
        "auths": {"https://index.docker.io/v1/": {"auth": "x"}},
        "HttpHeaders": {"X": "\N{SNOWMAN}"},
        "psFormat": "t",
    }
    files = written(real, before)
    real.chmod(0o644)
    link = tmp_path / "config.json"
    link.symlink_to(real)
    files = CredentialFiles(link)
    assert files.store("docker.io", Credential("me", "pw")) == str(link)
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    document = json.loads(real.read_text())
    assert document == {**before, "auths": {"https://index.docker.io/v1/": {"auth": auth("me", "pw")}}}
    files.store("r.example:5000", Credential("me", "", "token"))
    assert files.find("r.example:5000") == Credential("me", "", "token")
    assert files.erase("docker.io")
    assert not files.erase("docker.io")
    assert files.find("docker.io") is None
    assert json.loads(real.read_text())["HttpHeaders"] == {"X": "\N{SNOWMAN}"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


HELPER = """#!/bin/sh
echo "$1" >>"$0.calls"
case $1 in
get) read -r url; [ "$url" = missing.example ] && { echo "credentials not found in native keychain"; exit 1; }
  [ "$url" = broken.example ] && { echo "no bus"; exit 1; }
  [ "$url" = odd.example ] && { echo '{"Username": 1}'; exit 0; }
  [ "$url" = token.example ] && { echo '{"Username":"<token>","Secret":"t"}'; exit 0; }
  echo "{\\"ServerURL\\":\\"$url\\",\\"Username\\":\\"helped\\",\\"Secret\\":\\"pw\\"}" ;;
store) cat >"$0.stored" ;;
erase) cat >"$0.erased" ;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin/docker-credential-test"
    path.parent.mkdir()
    path.write_text(HELPER)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    return path


def test_helpers_are_asked(tmp_path: Path, helper: Path) -> None:
    document = {"auths": {"own.example": {}}, "credsStore": "test", "credHelpers": {"none.example": "absent"}}
    files = written(tmp_path / "config.json", document)
    assert files.find("own.example") == Credential("helped", "pw")
    assert files.find("token.example") == Credential(identity_token="t")  # noqa: S106 - of a test
    assert files.find("missing.example") is None
    for name, words in (("broken.example", "no bus"), ("odd.example", "should have 'Username'")):
        with pytest.raises(RegistryError, match=f"docker-credential-test.*{words}"):
            files.find(name)
    with pytest.raises(RegistryError, match=r"docker-credential-absent: there is no such program .*credHelpers"):
        files.find("none.example")
    assert files.store("docker.io", Credential("me", "pw")) == "docker-credential-test"
    assert json.loads(Path(f"{helper}.stored").read_text()) == {
        "ServerURL": "https://index.docker.io/v1/",
        "Username": "me",
        "Secret": "pw",
    }
    assert json.loads((tmp_path / "config.json").read_text())["auths"] == {
        "own.example": {},
        "https://index.docker.io/v1/": {},
    }
    assert files.erase("docker.io")
    assert Path(f"{helper}.erased").read_text() == "https://index.docker.io/v1/"


def test_a_helper_has_no_path(tmp_path: Path) -> None:
    files = written(tmp_path / "config.json", {"credsStore": "../../bin/sh"})
    with pytest.raises(RegistryError, match="not the name of a credential helper"):
        files.find("r.example")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "auths": _JSON
        | st.dictionaries(
            st.sampled_from(["r.example", "https://r.example/v1/", "r.example/a"]) | st.text(max_size=9),
            _JSON
            | st.fixed_dictionaries(
                {}, optional={"auth": _JSON | st.binary().map(lambda data: base64.b64encode(data).decode())}
            ),
        ),
        "credHelpers": _JSON,
        "other": _JSON,
    },
)


@settings(deadline=None)
@given(_DOCUMENTS | _JSON)
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    files = written(tmp_path_factory.mktemp("fuzz") / "config.json", document)
    try:
        found = files.find("r.example", "a")
    except RegistryError:
        return
    assert found is None or found.username or found.password or found.identity_token or found.registry_token


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda text: ":" not in text), st.text(), st.text())
def test_what_is_stored_is_found(
    tmp_path_factory: pytest.TempPathFactory, user: str, password: str, other: str
) -> None:
    try:
        (user + password + other).encode()
    except UnicodeEncodeError:
        return
    password = password.rstrip("\0")
    files = written(tmp_path_factory.mktemp("fuzz") / "config.json", {"other": other})
    files.store("r.example", Credential(user, password))
    assert files.find("r.example") == Credential(user, password)
    assert json.loads(files.path.read_text())["other"] == other
