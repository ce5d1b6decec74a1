"""The texts that flags take, parsed as docker parses them, into the values of the public interface.

Every function raises ``ValueError`` with a sentence that says what was expected; nothing is ignored in silence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pycontainer import Device, IdMap, Limits, Mount, Rlimit

_PROPAGATIONS = ("private", "rprivate", "slave", "rslave", "shared", "rshared")
_CACHING = ("consistent", "cached", "delegated")  # words for Docker Desktop, without a meaning on Linux
_TMPFS_DEFAULTS = ("noexec", "nosuid", "nodev")
_TMPFS_OPPOSITES = {"exec": "noexec", "suid": "nosuid", "dev": "nodev"}
_ACCESS = re.compile(r"[rwm]{1,3}")
_TRUE = ("", "1", "true")
_FALSE = ("0", "false")
_LATER = "named and anonymous volumes come with a later version; bind a directory: /path/on/host:/path/in/container"


def _boolean(key: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    msg = f"{key} is true or false, not {value!r}"
    raise ValueError(msg)


# ── environment ──


def parse_env(texts: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return variables by name; a name alone takes the caller's value, if there is one.

    >>> parse_env(["A=1", "B", "C"], {"B": "2"})
    {'A': '1', 'B': '2'}
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            msg = f"not an environment variable: {text!r}; write NAME=value"
            raise ValueError(msg)
        if equals:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
    return found


def parse_env_file(text: str, environ: Mapping[str, str], path: str = "the file") -> dict[str, str]:
    r"""Return the variables of a file of ``NAME=value`` lines; ``#`` starts a comment, quotes are taken as they are.

    >>> parse_env_file("# comment\nA='1'\n\nB", {"B": "2"})
    {'A': "'1'", 'B': '2'}
    """
    lines = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.removesuffix("\r").lstrip()
        if not line or line.startswith("#"):
            continue
        name = line.partition("=")[0]
        if not name or any(character.isspace() for character in name) or "\0" in line:
            msg = f"{path}, line {number}: not an environment variable: {line!r}; write NAME=value"
            raise ValueError(msg)
        lines.append(line)
    return parse_env(lines, environ)


def read_env(files: Iterable[str], texts: Iterable[str]) -> dict[str, str]:
    """Return what ``--env-file`` and ``--env`` give together; the latter wins."""
    found = {}
    for path in files:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            msg = f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
            raise ValueError(msg) from error
        found.update(parse_env_file(text, os.environ, path))
    found.update(parse_env(texts, os.environ))
    return found


# ── mounts ──


def _host_path(text: str) -> str:
    """Return the absolute path that a source means; a word without a slash is the name of a volume, as in docker."""
    if "\0" in text:
        msg = f"not a path: {text!r}"
        raise ValueError(msg)
    if text.startswith("~"):
        msg = f"the shell expands ~, pycontainer does not: {text!r}"
        raise ValueError(msg)
    if text not in (".", "..") and not text.startswith(("/", "./", "../")):
        msg = f"{text!r} is the name of a volume: {_LATER}"
        raise ValueError(msg)
    return os.path.abspath(text)  # noqa: PTH100 - Path.absolute() would keep the dots


def _no_selinux(word: str) -> None:
    if os.path.isdir("/sys/fs/selinux/booleans"):  # noqa: PTH112 - Path is not loaded for one question
        msg = f"{word!r}: this version does not relabel for SELinux; use chcon(1) on the directory"
        raise ValueError(msg)


def parse_volume(text: str) -> Mount:
    """Return the mount that ``-v SOURCE:TARGET[:OPTIONS]`` means.

    >>> parse_volume("/srv/data:/data:ro").read_only
    True
    """
    parts = text.split(":")
    if len(parts) == 1:
        msg = f"{text!r} is an anonymous volume: {_LATER}"
        raise ValueError(msg)
    if len(parts) > 3 or not all(parts[:2]):  # noqa: PLR2004 - source, target, options
        msg = f"not SOURCE:TARGET[:OPTIONS]: {text!r}; a path with a colon needs --mount"
        raise ValueError(msg)
    read_only, propagation = False, "rprivate"
    for word in parts[2].split(",") if len(parts) > 2 else ():  # noqa: PLR2004
        if word in ("ro", "rw"):
            read_only = word == "ro"
        elif word in _PROPAGATIONS:
            propagation = word
        elif word in ("z", "Z"):
            _no_selinux(word)
        elif word not in _CACHING:
            known = ", ".join(("ro", "rw", "z", "Z", *_PROPAGATIONS))
            msg = f"unknown option {word!r} in {text!r}; there are {known}"
            raise ValueError(msg)
    return Mount.bind(
        _host_path(parts[0]),
        parts[1],
        read_only=read_only,
        propagation=propagation,  # type: ignore[arg-type] # one of _PROPAGATIONS
    )


def _fields(text: str) -> dict[str, str]:
    import csv

    try:
        (row,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError) as error:
        msg = f"not a list of KEY=VALUE parted by commas: {text!r}"
        raise ValueError(msg) from error
    names = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
    found: dict[str, str] = {}
    for field in row:
        key, equals, value = field.partition("=")
        key = names.get(key.strip().lower(), key.strip().lower())
        if not equals and key not in ("readonly", "bind-nonrecursive"):
            msg = f"{field!r} in {text!r} needs a value: {key}=…"
            raise ValueError(msg)
        if key in found:
            msg = f"{key} is given twice in {text!r}"
            raise ValueError(msg)
        found[key] = value
    return found


def parse_mount(text: str) -> Mount:
    """Return the mount that ``--mount type=bind|tmpfs,source=…,target=…,…`` means.

    >>> parse_mount("type=tmpfs,target=/scratch,tmpfs-size=64m,tmpfs-mode=700").size
    67108864
    """
    fields = _fields(text)
    kind = fields.pop("type", "volume")
    if kind == "volume":
        msg = f"{text!r}: {_LATER.partition(';')[0]}; use type=bind or type=tmpfs"
        raise ValueError(msg)
    if kind not in ("bind", "tmpfs"):
        msg = f"the type of a mount is bind or tmpfs, not {kind!r}"
        raise ValueError(msg)
    target = fields.pop("target", "")
    if not target:
        msg = f"target is missing in {text!r}"
        raise ValueError(msg)
    read_only = _boolean("readonly", fields.pop("readonly")) if "readonly" in fields else False
    if fields.get("consistency") in (*_CACHING, "default"):
        del fields["consistency"]
    mount = _bind(text, target, fields, read_only) if kind == "bind" else _tmpfs(target, fields, read_only)
    if fields:
        msg = f"unknown or not for type={kind}: {', '.join(fields)} in {text!r}"
        raise ValueError(msg)
    return mount


def _bind(text: str, target: str, fields: dict[str, str], read_only: bool) -> Mount:  # noqa: FBT001
    source = fields.pop("source", "")
    if not source:
        msg = f"source is missing in {text!r}"
        raise ValueError(msg)
    propagation = fields.pop("bind-propagation", "rprivate")
    if propagation not in _PROPAGATIONS:
        msg = f"bind-propagation is one of {', '.join(_PROPAGATIONS)}, not {propagation!r}"
        raise ValueError(msg)
    return Mount.bind(
        os.path.abspath(source),  # noqa: PTH100 - Path.absolute() would keep the dots
        target,
        read_only=read_only,
        propagation=propagation,  # type: ignore[arg-type] # checked
    )


def _tmpfs(target: str, fields: dict[str, str], read_only: bool) -> Mount:  # noqa: FBT001
    mount = Mount.tmpfs(
        target,
        size=fields.pop("tmpfs-size", None),
        mode=_mode(fields.pop("tmpfs-mode", "1777")),
        options=("ro", *_TMPFS_DEFAULTS) if read_only else _TMPFS_DEFAULTS,
    )
    if "source" in fields:
        msg = "a tmpfs has no source"
        raise ValueError(msg)
    return mount


def _mode(text: str) -> int:
    if not re.fullmatch(r"[0-7]{1,5}", text) or int(text, 8) > 0o7777:  # noqa: PLR2004
        msg = f"a mode is octal digits such as 1777, not {text!r}"
        raise ValueError(msg)
    return int(text, 8)


def parse_tmpfs(text: str) -> Mount:
    """Return the mount that ``--tmpfs TARGET[:OPTIONS]`` means; noexec, nosuid and nodev unless undone.

    >>> parse_tmpfs("/scratch:size=1m,exec").options
    ('nosuid', 'nodev', 'exec')
    """
    target, _, rest = text.partition(":")
    size, mode = None, 0o1777
    words = []
    for word in filter(None, rest.split(",")):
        key, equals, value = word.partition("=")
        if key == "size" and equals:
            size = value
        elif key == "mode" and equals:
            mode = _mode(value)
        else:
            words.append(word)
    undone = {_TMPFS_OPPOSITES.get(word) for word in words}
    defaults = [word for word in _TMPFS_DEFAULTS if word not in undone and word not in words]
    return Mount.tmpfs(target, size=size, mode=mode, options=(*defaults, *words))


# ── the rest ──


def parse_ulimit(text: str) -> Rlimit:
    """Return the limit that ``--ulimit NAME=SOFT[:HARD]`` means; ``unlimited`` and -1 are no limit.

    >>> parse_ulimit("nofile=1024:2048")
    Rlimit(type='nofile', soft=1024, hard=2048)
    """
    match = re.fullmatch(r"([a-zA-Z_]+)=(\d+|-1|unlimited)(?::(\d+|-1|unlimited))?", text)
    if match is None:
        msg = f"not NAME=SOFT[:HARD]: {text!r}; as in nofile=1024:2048"
        raise ValueError(msg)
    name, soft, hard = match.groups()
    numbers = [-1 if value == "unlimited" else int(value) for value in (soft, hard) if value is not None]
    if len(numbers) > 1 and numbers[1] != -1 and (numbers[0] == -1 or numbers[0] > numbers[1]):
        msg = f"the soft limit is above the hard one: {text!r}"
        raise ValueError(msg)
    return Rlimit(name, *numbers)


def parse_device(text: str) -> Device:
    """Return the device that ``--device SOURCE[:TARGET][:ACCESS]`` means.

    >>> parse_device("/dev/fuse:rw")
    Device(source='/dev/fuse', target='/dev/fuse', access='rw')
    """
    source, *rest = text.split(":")
    target, access = source, "rwm"
    if len(rest) == 1 and _ACCESS.fullmatch(rest[0]):
        access = rest[0]
    elif len(rest) in (1, 2):
        target, access = rest[0] or source, rest[1] if len(rest) > 1 else access
    if len(rest) > 2 or not source.startswith("/") or not target.startswith("/") or not _ACCESS.fullmatch(access):  # noqa: PLR2004
        msg = f"not SOURCE[:TARGET][:ACCESS]: {text!r}; as in /dev/fuse:/dev/fuse:rwm"
        raise ValueError(msg)
    return Device(source, target, access)


def parse_userns(texts: Iterable[str]) -> tuple[IdMap, ...]:
    """Return the id ranges that ``--userns INSIDE:OUTSIDE:COUNT`` means; ``host`` alone is none.

    >>> parse_userns(["0:100000:65536"])
    (IdMap(inside=0, outside=100000, count=65536),)
    """
    texts = list(texts)
    if texts == ["host"]:
        return ()
    ranges = []
    for text in texts:
        if not re.fullmatch(r"\d+:\d+:\d+", text):
            msg = f"not INSIDE:OUTSIDE:COUNT and not 'host': {text!r}; as in 0:100000:65536"
            raise ValueError(msg)
        ranges.append(IdMap(*map(int, text.split(":"))))
    return tuple(ranges)


def parse_hosts(texts: Iterable[str]) -> dict[str, str]:
    """Return addresses by name from ``--add-host NAME:ADDRESS`` or ``NAME=ADDRESS``.

    >>> parse_hosts(["db:10.0.0.2", "six=[fe80::1]"])
    {'db': '10.0.0.2', 'six': 'fe80::1'}
    """
    found = {}
    for text in texts:
        name, mark, address = re.fullmatch(r"([^:=]*)([:=]?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        if address.startswith("[") and address.endswith("]"):
            address = address[1:-1]
        if not name or not mark or not address:
            msg = f"not NAME:ADDRESS: {text!r}"
            raise ValueError(msg)
        if address == "host-gateway":
            msg = f"{text!r}: there is no host gateway with --network none or host"
            raise ValueError(msg)
        found[name] = address
    return found


def parse_pairs(texts: Iterable[str], what: str) -> dict[str, str]:
    """Return values by name from ``NAME=VALUE`` texts.

    >>> parse_pairs(["net.core.somaxconn=64"], "sysctl")
    {'net.core.somaxconn': '64'}
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            msg = f"not a {what}: {text!r}; write NAME=VALUE"
            raise ValueError(msg)
        found[name] = value
    return found


def parse_security(texts: Iterable[str]) -> dict[str, object]:
    """Return the arguments of ``Engine.run`` that ``--security-opt`` texts mean.

    >>> parse_security(["no-new-privileges", "seccomp=unconfined"])
    {'no_new_privileges': True, 'seccomp': 'unconfined'}
    """
    found: dict[str, object] = {}
    for text in texts:
        key, value = re.fullmatch(r"([^:=]*)[:=]?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        if key == "seccomp" and value:
            found["seccomp"] = {"builtin": "default"}.get(value, value)
        elif key == "no-new-privileges":
            found["no_new_privileges"] = _boolean(key, value)
        elif key == "systempaths" and value == "unconfined":
            found["masked_paths"] = found["readonly_paths"] = ()
        elif (key, value) not in (("apparmor", "unconfined"), ("label", "disable")):  # these two are so anyway
            msg = (
                f"unknown: {text!r}; there are seccomp=FILE, seccomp=unconfined, no-new-privileges and "
                "systempaths=unconfined"
            )
            raise ValueError(msg)
    return found


def swap_limit(text: str | None) -> str | int | None:
    """Return the value of ``--memory-swap``, where -1 is no limit."""
    return -1 if text is not None and text.strip() == "-1" else text


def parse_limits(**given: str | float | None) -> Limits:
    """Return the limits that the flags mean; 0 is no limit, as in docker."""
    return Limits(**{name: value for name, value in given.items() if value not in (None, 0, "0")})  # type: ignore[arg-type]
