"""Credentials for registries, where docker, podman and skopeo keep them: ``config.json``, ``auth.json``, helpers.

The files are the user's: what is not understood in them stays as it is, and a secret never appears in a message. See
docker-login(1), containers-auth.json(5) and the protocol of docker-credential-helpers.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import os
import re
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from pycontainer.errors import ImageError, RegistryError
from pycontainer.names import DEFAULT_REGISTRY
from pycontainer.oci.image import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Credential", "CredentialFiles"]

_HUB_KEY = "https://index.docker.io/v1/"
_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")
_TOKEN_USER = "<token>"  # what helpers call an identity token's user  # noqa: S105
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HELPER_SECONDS = 60.0  # it may ask the user for a passphrase
_NOT_FOUND = "credentials not found"  # the helpers' words, "... in native keychain"
_MAX_FILE = 4 << 20


@attrs.frozen
class Credential:
    """Who we are for a registry.

    Attributes:
        username: ``""`` with an identity token.
        password: of the user.
        identity_token: an OAuth 2 refresh token instead of the two.
        registry_token: a bearer token to send as it is, instead of all.
        origin: where it was found, for messages.
    """

    username: str = ""
    password: str = attrs.field(default="", repr=False)
    identity_token: str = attrs.field(default="", repr=False)
    registry_token: str = attrs.field(default="", repr=False)
    origin: str = attrs.field(default="", eq=False)


class CredentialFiles:
    """The files with credentials that this user has.

    Args:
        path: the only one to use; by default ``$REGISTRY_AUTH_FILE``, or else docker's and podman's.
    """

    def __init__(self, path: Path | None = None) -> None:
        named = path or (Path(value) if (value := os.environ.get("REGISTRY_AUTH_FILE")) else None)
        self._paths = (named,) if named else _default_paths()

    @property
    def path(self) -> Path:
        """Where new credentials go."""
        return self._paths[0]

    def find(self, registry: str, repository: str = "") -> Credential | None:
        """Return the credentials for a repository: podman's files may name parts of a registry, the longest wins.

        Args:
            registry: by the name that references carry.
            repository: of it, or ``""``.

        Raises:
            RegistryError: a file is damaged, or a helper fails.
        """
        for path in self._paths:
            found = _find(path, registry, repository)
            if found is not None:
                return found
        return None

    def store(self, registry: str, credential: Credential) -> str:
        """Keep credentials, in a helper where the file names one.

        Returns:
            Where they are now, for people.

        Raises:
            RegistryError: the file or the helper cannot be used.
        """
        key = _key(registry)
        with _changing(self.path) as document:
            helper = _helper(document, registry)
            entry: dict[str, str] = {}
            if helper:
                user = _TOKEN_USER if credential.identity_token else credential.username
                request = {
                    "ServerURL": key,
                    "Username": user,
                    "Secret": credential.identity_token or credential.password,
                }
                _call(helper, "store", json.dumps(request))
            else:
                pair = f"{credential.username}:{credential.password if not credential.identity_token else ''}"
                entry["auth"] = base64.b64encode(pair.encode()).decode()
                if credential.identity_token:
                    entry["identitytoken"] = credential.identity_token
            auths = _object(document.setdefault("auths", {}), self.path, "auths")
            for other in _names(registry):
                auths.pop(other, None)
            auths[key] = entry
        return f"docker-credential-{helper}" if helper else str(self.path)

    def erase(self, registry: str) -> bool:
        """Forget the credentials of a registry, in every file and in their helpers.

        Returns:
            Whether there were any.
        """
        found = False
        for path in self._paths:
            if not path.exists() or not _mentions(_read(path), registry):
                continue
            found = True
            with _changing(path) as document:
                helper = _helper(document, registry)
                if helper:
                    _call(helper, "erase", _key(registry))
                auths = _object(document.get("auths", {}), path, "auths")
                for key in list(auths):
                    if _normal(key) in _names(registry):
                        del auths[key]
        return found


def _default_paths() -> tuple[Path, ...]:
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - stays "~" where there is no home; Path.home raises
    docker = Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}"
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return (docker, Path(runtime) / "containers/auth.json", config / "containers/auth.json")


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _broken(path: Path, reason: str) -> RegistryError:
    return RegistryError("read credentials", str(path), reason, hint="repair the file, or log in again")


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _broken(path, os.strerror(error.errno or 0)) from error
    if not data.strip():
        return {}
    try:
        return _object(parse_json(data, str(path), limit=_MAX_FILE), path, "it")
    except RegistryError:
        raise
    except ImageError as error:
        raise _broken(path, str(error)) from None


def _object(value: object, path: Path, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _broken(path, f"{what} should be an object")
    return value


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Any]]:
    """Give the document of a file, and write it back whole: other users see the old one or the new one."""
    target = Path(os.path.realpath(path))  # people keep their configuration elsewhere, behind a link
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _broken(path, f"{target.parent}: {os.strerror(error.errno or 0)}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        document = _read(target)
        yield document
        _replace(target, document)
    finally:
        os.close(lock)


def _replace(target: Path, document: dict[str, Any]) -> None:
    data = json.dumps(document, indent="\t", ensure_ascii=False).encode("utf-8", "surrogatepass")
    temporary = ""
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)  # mode 0600
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)  # noqa: PTH105 - of a text
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RegistryError("keep credentials", str(target), os.strerror(error.errno or 0)) from error
        raise


# ── entries ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _key(registry: str) -> str:
    return _HUB_KEY if registry == DEFAULT_REGISTRY else registry


def _names(registry: str) -> tuple[str, ...]:
    return _HUB_NAMES if registry in _HUB_NAMES else (registry,)


def _normal(key: str) -> str:
    """Return the host of an old key, which was a URL, and what was appended to it: ``https://host/v1/``."""
    rest = key.rpartition("://")[2]
    for end in ("/v1/", "/v2/", "/v1", "/v2", "/"):
        rest = rest.removesuffix(end)
    return rest


def _mentions(document: dict[str, Any], registry: str) -> bool:
    auths, helpers = document.get("auths"), document.get("credHelpers")
    keys = [*(auths if isinstance(auths, dict) else ()), *(helpers if isinstance(helpers, dict) else ())]
    return any(_normal(key) in _names(registry) for key in keys)


def _find(path: Path, registry: str, repository: str) -> Credential | None:
    document = _read(path)
    if not document:
        return None
    auths = _object(document.get("auths") or {}, path, "'auths'")
    by_name = {_normal(key): (key, entry) for key, entry in auths.items()}
    helper = _helper(document, registry)
    parts = repository.split("/") if repository else []
    below = ["/" + "/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    for name in (host + path_ for path_ in [*below, ""] for host in _names(registry)):
        if name not in by_name:
            continue
        key, entry = by_name[name]
        credential = _entry(_object(entry, path, f"'auths': {key!r}"), path, key)
        if credential is not None:
            return credential
    return _ask(helper, registry) if helper else None


def _entry(entry: dict[str, Any], path: Path, key: str) -> Credential | None:
    texts = {name: entry.get(name) or "" for name in ("auth", "username", "password", "identitytoken", "registrytoken")}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise _broken(path, f"'auths': {key!r}: {name!r} should be a string")
    username, password = texts["username"], texts["password"]
    if texts["auth"]:
        try:
            pair = base64.b64decode(texts["auth"], validate=True).decode()
        except (binascii.Error, ValueError):
            raise _broken(path, f"'auths': {key!r}: 'auth' is not base64 of USER:PASSWORD") from None
        username, colon, password = pair.partition(":")
        if not colon:
            raise _broken(path, f"'auths': {key!r}: 'auth' is not base64 of USER:PASSWORD")
        password = password.rstrip("\0")  # old docker padded it
    if not (username or password or texts["identitytoken"] or texts["registrytoken"]):
        return None
    return Credential(username, password, texts["identitytoken"], texts["registrytoken"], str(path))


# ── helpers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _helper(document: dict[str, Any], registry: str) -> str:
    helpers = document.get("credHelpers")
    if isinstance(helpers, dict):
        for key, name in helpers.items():
            if _normal(key) in _names(registry):
                return str(name)
    store = document.get("credsStore")
    return store if isinstance(store, str) else ""


def _ask(helper: str, registry: str) -> Credential | None:
    text = _call(helper, "get", _key(registry))
    if text is None:
        return None
    what = f"docker-credential-{helper}"
    try:
        answer = parse_json(text.encode("utf-8", "replace"), what)
    except ImageError as error:
        raise RegistryError("get credentials", what, str(error)) from None
    user, secret = (answer.get("Username"), answer.get("Secret")) if isinstance(answer, dict) else (None, None)
    if not isinstance(user, str) or not isinstance(secret, str):
        raise RegistryError("get credentials", what, "its answer should have 'Username' and 'Secret'")
    if not user and not secret:
        return None
    if user == _TOKEN_USER:
        return Credential(identity_token=secret, origin=what)
    return Credential(user, secret, origin=what)


def _call(helper: str, verb: str, request: str) -> str | None:
    """Run a helper; None when it has no such credentials."""
    program = f"docker-credential-{helper}"
    if not _HELPER_NAME.fullmatch(helper):
        raise RegistryError(f"{verb} credentials", program, "not the name of a credential helper")
    try:
        done = subprocess.run(
            [program, verb], input=request.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
    except FileNotFoundError:
        hint = "install it, or take it out of config.json's credsStore and credHelpers"
        raise RegistryError(f"{verb} credentials", program, "there is no such program in PATH", hint=hint) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else f"no end after {_HELPER_SECONDS:g} s"
        raise RegistryError(f"{verb} credentials", program, reason) from error
    text = done.stdout.decode(errors="replace")
    if done.returncode == 0:
        return text
    said = (text.strip() or done.stderr.decode(errors="replace").strip())[-500:]
    if verb != "store" and _NOT_FOUND in said.lower():
        return None
    raise RegistryError(f"{verb} credentials", program, f"exit status {done.returncode}: {said or 'it said nothing'}")
