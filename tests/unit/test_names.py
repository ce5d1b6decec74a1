"""The grammars of names: against the words of the distribution project's reference grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer.errors import InvalidReference
from pycontainer.names import (
    Reference,
    check_container_name,
    check_digest,
    is_container_id,
    is_digest,
    is_id_prefix,
    matches,
    new_container_id,
    new_reference,
    parse_reference,
)

SHA = "sha256:" + "0123456789abcdef" * 4

label = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,8}[a-zA-Z0-9])?", fullmatch=True)
host = st.one_of(
    st.lists(label, min_size=2, max_size=4).map(".".join),
    st.just("localhost"),
    st.sampled_from(["[::1]", "[2001:db8::1]"]).map(lambda text: text + ":5000"),
)
port = st.one_of(st.just(""), st.integers(0, 65535).map(lambda number: f":{number}"))
component = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}", fullmatch=True)
repository = st.lists(component, min_size=1, max_size=4).map("/".join)
# Docker takes a first word with a dot for a registry, whatever follows.
plain = repository.filter(lambda name: "/" not in name or "." not in name.partition("/")[0])
tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
digest = st.binary(min_size=32, max_size=32).map(lambda data: "sha256:" + data.hex())


@st.composite
def references(draw: st.DrawFn) -> Reference:
    name = draw(host)
    registry = name + (draw(port) if not name.startswith("[") else "")
    chosen_tag = draw(st.none() | tag)
    return Reference(registry, draw(repository), chosen_tag, draw(digest if chosen_tag is None else st.none() | digest))


@given(references())
def test_what_is_written_is_read(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


@given(references() | plain.filter(lambda name: not name.startswith("localhost/")).map(parse_reference))
def test_the_familiar_form_means_the_same(reference: Reference) -> None:
    assert parse_reference(reference.familiar) == reference
    assert len(reference.familiar) <= len(str(reference))


@given(plain, tag)
def test_defaults_are_filled_in(name: str, version: str) -> None:
    reference = parse_reference(f"{name}:{version}")
    assert reference.tag == version
    if "/" not in name:
        assert str(reference) == f"docker.io/library/{name}:{version}"


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_an_error_that_shows_it(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidReference as error:
        assert not text or repr(text) in str(error)  # noqa: PT017 - the happy end is as good
    else:
        assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/debian", "docker.io/library/debian:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("host.example/a/b/c:x", "host.example/a/b/c:x"),
        ("[2001:db8::1]:5000/app:1", "[2001:db8::1]:5000/app:1"),
        ("Host/app", "Host/app:latest"),
        ("a__b.c--d", "docker.io/library/a__b.c--d:latest"),
        (f"debian@{SHA}", f"docker.io/library/debian@{SHA}"),
        (f"debian:12@{SHA}", f"docker.io/library/debian:12@{SHA}"),
        ("debian:_x.y-Z", "docker.io/library/debian:_x.y-Z"),
        ("1234:5000", "docker.io/library/1234:5000"),
    ],
)
def test_examples(text: str, whole: str) -> None:
    assert str(parse_reference(text)) == whole


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":latest",
        "debian:",
        "debian@",
        "debian@sha256:12",
        f"debian@{SHA.upper()}",
        "Debian",
        "a/Debian",
        "-a",
        "a-",
        "a//b",
        "/a",
        "a/",
        "a..b",
        "a___b",
        "a:.x",
        "a:" + "x" * 129,
        "host.example:port/a",
        "a b",
        "a\n",
        "a:b\n",
        "x" * 256,
        "[::1]",
        "ä",
        "a:b:c",
        "a@b@c",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_reference(text)


def test_upper_case_gets_advice() -> None:
    with pytest.raises(InvalidReference, match="did you mean 'debian:latest'"):
        parse_reference("Debian:Latest".replace("L", "l"))


def test_a_wrong_reference_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="not a tag"):
        Reference("docker.io", "library/a", "not a tag")


def test_digests() -> None:
    assert is_digest(SHA)
    assert is_digest("sha512:" + "0" * 128)
    assert is_digest("multihash+base58:" + "0" * 40)
    for wrong in ("", "sha256", "sha256:", "sha256:" + "0" * 63, "sha256:" + "A" * 64, "sha256:" + "0" * 64 + "\n"):
        assert not is_digest(wrong)
    with pytest.raises(InvalidReference, match="not a digest"):
        check_digest("sha256:../../etc")


def test_container_ids() -> None:
    found = {new_container_id() for _ in range(200)}
    assert len(found) == 200
    assert all(is_container_id(identity) and not identity[:12].isdecimal() for identity in found)
    assert [is_id_prefix(text) for text in ("0", "", "0" * 65, "x")] == [True, False, False, False]


@pytest.mark.parametrize("name", ["ab", "web-1", "a.b_c", "A1", "x" * 255])
def test_container_names(name: str) -> None:
    assert check_container_name(name) == name


@pytest.mark.parametrize("name", ["", "a", "-a", "_a", ".a", "a/b", "a b", "ab\n", "ä1", "x" * 256])
def test_what_is_no_container_name(name: str) -> None:
    with pytest.raises(InvalidReference, match="not a container name"):
        check_container_name(name)


# ── patterns ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("debian", "debian:12", True),
        ("debian:12", "debian:12", True),
        ("debian:1?", "debian:12", True),
        ("deb*", "debian:12", True),
        ("deb*:*", "debian:12", True),
        ("*", "team/app:1", False),
        ("*/*", "team/app:1", True),
        ("*/app", "localhost:5000/app:1", True),
        ("*/app", "localhost:5000/team/app:1", False),
        ("[a-d]ebian", "debian:12", True),
        ("[^a-c]ebian", "debian:12", True),
        ("[^a-d]ebian", "debian:12", False),
        ("debia\\n", "debian:12", True),
        ("library/debian", "debian:12", False),
        ("docker.io/library/deb*", "debian:12", True),
        ("debian.12", "debian:12", False),
        ("", "debian:12", False),
    ],
)
def test_patterns(pattern: str, name: str, found: bool) -> None:
    assert matches(pattern, parse_reference(name)) is found


@pytest.mark.parametrize("pattern", ["[", "[]", "a[b", "\\", "[z-a]", "[\\"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match="not a pattern"):
        matches(pattern, parse_reference("debian:12"))


@given(st.text(alphabet="ab*?[]^-\\&|~![/:.", max_size=12), references())
def test_any_pattern_fits_or_not_or_is_none(pattern: str, reference: Reference) -> None:
    try:
        matches(pattern, reference)
    except ValueError:
        return


@given(references())
def test_a_name_fits_itself(reference: Reference) -> None:
    assert matches(reference.familiar, reference)
    assert matches(str(reference), reference)


def test_what_can_be_taken_for_an_id_is_no_new_name() -> None:
    with pytest.raises(InvalidReference, match="64 hexadecimal digits"):
        new_reference("a" * 64)
    with pytest.raises(ValueError, match="not a digest"):
        new_reference(f"debian@{SHA}")
