"""Headers from registries: challenges, links, places to go; whatever is sent ends in a value or a clear error."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer.distribution.auth import parse_challenges
from pycontainer.distribution.paging import next_page
from pycontainer.distribution.wire import origin_of, resolve
from pycontainer.errors import RegistryError


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("", []),
        ("Basic", [("basic", {})]),
        ('Basic realm="Registry Realm"', [("basic", {"realm": "Registry Realm"})]),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"',
            [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"})],
        ),
        ('BEARER Realm=plain , Error = "a\\"b"', [("bearer", {"realm": "plain", "error": 'a"b'})]),
        (
            'Negotiate dG9rZW4=, Basic realm="x", charset=UTF-8, Bearer realm="y"',
            [("negotiate", {}), ("basic", {"realm": "x", "charset": "UTF-8"}), ("bearer", {"realm": "y"})],
        ),
        ('Basic realm="x", realm="y"', [("basic", {"realm": "x"})]),
        ('realm="x"', []),
        ('Basic realm="open', [("basic", {})]),
        ('Basic realm="x"junk, Bearer realm="y"', [("basic", {})]),
    ],
)
def test_challenges(header: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert [(item.scheme, item.parameters) for item in parse_challenges(header)] == found


_WORDS = st.text(st.sampled_from('abBearer Basic="\\,; \t=<>\x00\xe9'), max_size=200)


@given(_WORDS | st.text(max_size=100))
def test_any_challenge_ends(header: str) -> None:
    for item in parse_challenges(header):
        assert item.scheme == item.scheme.lower() != ""


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(max_size=20), max_size=4))
def test_quoted_parameters_come_back(parameters: dict[str, str]) -> None:
    quoted = [name + '="' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for name, value in parameters.items()]
    (challenge,) = parse_challenges("Bearer " + ", ".join(quoted))
    assert challenge.parameters == parameters


@pytest.mark.parametrize("piece", ["a", 'a="', "a=\\", ", ", "a ", "a=b,", '"', "\\", "a=b ", "Basic a==,"])
def test_long_headers_take_no_time(piece: str) -> None:
    began = time.perf_counter()
    parse_challenges("Bearer " + piece * (200000 // len(piece)))
    next_page("<" + piece * (200000 // len(piece)))
    next_page("<x>" + f";{piece}" * (200000 // len(piece)))
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ("", ""),
        ("</v2/x?n=1&last=a>; rel=next", "/v2/x?n=1&last=a"),
        ('<https://r.example/v2/x>; title="a, b"; rel="next"', "https://r.example/v2/x"),
        ('</first>; rel="first", </second>; rel="prev NEXT"', "/second"),
        ('</first>; rel="prev"', ""),
        ("</first>", ""),
        ("/first; rel=next", ""),
        ('</first>; rel="next', "/first"),
    ],
)
def test_links(header: str, target: str) -> None:
    assert next_page(header) in (target, "" if header.endswith('"next') else target)


@given(_WORDS | st.text(max_size=100))
def test_any_link_ends(header: str) -> None:
    assert next_page(header) in header


@pytest.mark.parametrize(
    ("base", "target", "url"),
    [
        ("https://r.example/v2/a", "/v2/b?x=1", "https://r.example/v2/b?x=1"),
        ("https://r.example/v2/a", "https://s3.example/b", "https://s3.example/b"),
        ("https://r.example/v2/a", "//s3.example/b", "https://s3.example/b"),
        ("http://r.example/v2/a", "http://s3.example/b", "http://s3.example/b"),
        ("http://r.example/v2/a", "https://s3.example/b", "https://s3.example/b"),
    ],
)
def test_where_a_server_sends_us(base: str, target: str, url: str) -> None:
    assert resolve(base, target, "pull", "the redirect") == url


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://r.example/b", "not encrypted although the registry is"),
        ("ftp://r.example/b", "no URL of http"),
        ("file:///etc/passwd", "no URL of http"),
        ("https://user:pw@r.example/", "carries a user"),
        ("https://[::1/", "no URL"),
        ("https://r.example:99999/", "no URL"),
        ("/a b", "no URL"),
        ("/a\r\nX: y", "no URL"),
        ("", "no URL"),
        ("/" * 20000, "no URL"),
        ("javascript:alert(1)", "no URL of http"),
    ],
)
def test_where_we_do_not_go(target: str, words: str) -> None:
    with pytest.raises(RegistryError, match=words) as caught:
        resolve("https://r.example/v2/", target, "pull", "the redirect")
    assert "\r" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_target_is_a_url_or_refused(target: str) -> None:
    try:
        url = resolve("https://r.example/v2/", target, "pull", "the redirect")
    except RegistryError:
        return
    assert origin_of(url)[0] == "https"
