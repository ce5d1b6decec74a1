"""The error tree: what catches what, codes that programs rely on, texts that say what to do."""

from __future__ import annotations

import builtins
import copy
import errno
import os
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pycontainer
from pycontainer import errors
from pycontainer.model import Result, Usage

# Stable: a change here is a change of the API.
CODES = {
    "Error": "error",
    "NotFound": "not-found",
    "CommandNotFound": "command-not-found",
    "AlreadyExists": "already-exists",
    "Conflict": "conflict",
    "InvalidReference": "invalid-reference",
    "InvalidSpec": "invalid-spec",
    "ImageError": "image",
    "DigestMismatch": "digest-mismatch",
    "RegistryError": "registry",
    "Unauthorized": "unauthorized",
    "ManifestUnknown": "manifest-unknown",
    "StoreError": "store",
    "StartError": "start",
    "ExitError": "exit",
    "OutOfMemory": "out-of-memory",
    "TimeoutExpired": "timeout",
    "Unsupported": "unsupported",
}
BASES = {
    "NotFound": {"Error"},
    "CommandNotFound": {"StartError", "NotFound"},
    "InvalidReference": {"Error", "ValueError"},
    "InvalidSpec": {"Error", "ValueError"},
    "DigestMismatch": {"ImageError"},
    "RegistryError": {"ImageError"},
    "Unauthorized": {"RegistryError"},
    "ManifestUnknown": {"RegistryError", "NotFound"},
    "OutOfMemory": {"ExitError"},
    "TimeoutExpired": {"Error", "TimeoutError"},
}


def result(**changes: object) -> Result:
    usage = Usage(
        wall_seconds=1.5,
        cpu_user_seconds=0.25,
        cpu_system_seconds=0.5,
        peak_memory=None,
        block_read=None,
        block_written=None,
        peak_pids=None,
    )
    fields: dict[str, object] = {
        "container_id": "0" * 64,
        "command": ("make", "all"),
        "exit_code": 2,
        "signal": 0,
        "stdout": b"out\n",
        "stderr": b"",
        "oom_killed": False,
        "usage": usage,
    }
    return Result(**{**fields, **changes})  # type: ignore[arg-type]


INSTANCES: list[errors.Error] = [
    errors.Error("words"),
    errors.NotFound("no image 'x'"),
    errors.CommandNotFound("execute", "sh", errno.ENOENT, "it is not in the image"),
    errors.AlreadyExists("taken"),
    errors.Conflict("in use"),
    errors.InvalidReference("not a reference: '/'"),
    errors.InvalidSpec("linux.devices[2].type", "must be a letter"),
    errors.ImageError("broken"),
    errors.DigestMismatch("layer 1", "sha256:aa", "sha256:bb"),
    errors.RegistryError("get the blob", "registry.example", "500 oops", status=500, temporary=True),
    errors.Unauthorized("log in", "registry.example", "401", status=401, registry_code="UNAUTHORIZED", hint="log in"),
    errors.ManifestUnknown("get the manifest", "registry.example", "404", status=404),
    errors.StoreError("cannot be opened"),
    errors.StartError("mount proc", "/proc", errno.EPERM, "needs a pid namespace"),
    errors.ExitError(result()),
    errors.OutOfMemory(result(oom_killed=True, signal=9, exit_code=137)),
    errors.TimeoutExpired(2.5, result(signal=9)),
    errors.Unsupported("cgroup v2 is needed"),
]
EACH = pytest.mark.parametrize("error", INSTANCES, ids=lambda error: type(error).__name__)


def test_every_class_is_told_of_here_and_in_the_public_names() -> None:
    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert found == set(CODES) == set(errors.__all__) == {type(error).__name__ for error in INSTANCES}
    for name in found:
        assert getattr(pycontainer, name) is getattr(errors, name)


def test_codes_are_stable_and_of_one_class_each() -> None:
    assert {name: getattr(errors, name).code for name in errors.__all__} == CODES
    assert len(set(CODES.values())) == len(CODES)
    for code in CODES.values():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code)


@pytest.mark.parametrize("name", errors.__all__)
def test_the_tree(name: str) -> None:
    cls = getattr(errors, name)
    assert issubclass(cls, errors.Error)
    if name in BASES:
        assert {base.__name__ for base in cls.__bases__} == BASES[name]
    for base in BASES.get(name, ()):
        assert issubclass(cls, getattr(errors, base, None) or getattr(builtins, base))


def test_the_docstring_shows_the_tree() -> None:
    for name, code in CODES.items():
        assert re.search(rf"\b{name}\b\s+{code}\b" if name != "Error" else r"Error\s+code", errors.__doc__ or "")


@EACH
def test_errors_travel_between_processes(error: errors.Error) -> None:
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301 - our own
        assert type(copied) is type(error)
        assert str(copied) == str(error)
        assert vars(copied) == vars(error)
        assert copied.code == error.code


@EACH
def test_texts_are_for_people(error: errors.Error) -> None:
    text = str(error)
    assert text
    assert not text.startswith("(")  # the arguments as a tuple are no text
    assert "object at 0x" not in text


@given(st.text(min_size=1), st.text(), st.sampled_from(sorted(errno.errorcode)) | st.just(0), st.text())
def test_a_failed_start_tells_step_path_reason_and_hint(step: str, path: str, number: int, hint: str) -> None:
    error = errors.StartError(step, path, number, hint)
    text = str(error)
    assert text.startswith(step)
    assert (f" {path}" if path else "") in text
    assert (f": {os.strerror(number)}" if number else "") in text
    assert text.endswith(f" ({hint})" if hint else "")
    assert (error.step, error.path, error.errno, error.hint) == (step, path, number, hint)


def test_a_failed_start_in_full() -> None:
    error = errors.StartError("mount proc on", "/proc", errno.EPERM, "needs a pid namespace")
    assert str(error) == "mount proc on /proc: Operation not permitted (needs a pid namespace)"
    assert str(errors.StartError("start a session")) == "start a session"


def test_a_broken_document_tells_where() -> None:
    assert str(errors.InvalidSpec("linux.devices[2].type", "is missing")) == (
        "read config.json: linux.devices[2].type: is missing"
    )
    assert str(errors.InvalidSpec("", "it is a list")) == "read config.json: it is a list"


def test_damage_tells_both_digests() -> None:
    text = str(errors.DigestMismatch("layer 1 of busybox", "sha256:aa", "sha256:bb"))
    assert text == "layer 1 of busybox is damaged or was tampered with: it should be sha256:aa, it is sha256:bb"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "'make all' exited with status 2; its last words:\nout"),
        ({"stderr": b"bad\n"}, "'make all' exited with status 2; its last words:\nbad"),
        ({"stdout": b""}, "'make all' exited with status 2"),
        ({"stdout": b" \n"}, "'make all' exited with status 2"),
        ({"signal": 15, "exit_code": 143, "stdout": b""}, "'make all' was killed by signal 15"),
        ({"stderr": b"\xff"}, "'make all' exited with status 2; its last words:\n\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_failed_program_tells_its_last_words(changes: dict[str, object], text: str) -> None:
    assert str(errors.ExitError(result(**changes))) == text


@given(st.binary(max_size=5000))
def test_last_words_are_few_whatever_they_are(data: bytes) -> None:
    error = errors.ExitError(result(stderr=data))
    assert len(str(error)) < 2100
    assert error.result.stderr == data


def test_limits_are_told_with_what_to_do() -> None:
    assert "Limits(memory=" in str(errors.OutOfMemory(result()))
    assert str(errors.TimeoutExpired(2.5, result())) == "'make all' was killed after 2.5 s"
