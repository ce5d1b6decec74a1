"""What the command line prints: templates, tables, words for sizes and ages, instructions of --change."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer import ImageConfig
from pycontainer.cli.changes import parse_changes
from pycontainer.cli.tables import age_words, align, format_rows, size_words
from pycontainer.cli.template import Template, TemplateError

DATA = {"Id": "sha256:ab", "Tags": ["a", "b"], "Config": {"Env": None, "Labels": {"x.y": "1", "a": True}}, "Size": 3}


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain", "plain"),
        ("{{.Id}}", "sha256:ab"),
        ("{{ .Config.Labels.a }}!", "true!"),
        ("{{.Tags}} {{.Config.Env}}", "[a b] <no value>"),
        ("{{.Config.Labels}}", "map[a:true x.y:1]"),
        ("{{json .Tags}}", '["a","b"]'),
        ("{{.Tags | json}}", '["a","b"]'),
        ('{{join .Tags ", "}}', "a, b"),
        ("{{index .Tags 1}}", "b"),
        ('{{index .Config.Labels "x.y"}}', "1"),
        ("{{upper .Id | lower | title}}", "Sha256:Ab"),
        ("{{len .Tags}}\\t{{.Size}}", "2\t3"),
        ("a  {{- .Size -}}  b", "a3b"),
        ("a {{ .Size -}}  b", "a 3b"),
        ("a  {{-  .Size }}  b", "a3  b"),
        ("{{println .Size}}", "3\n"),
        ("{{json `x`}}", '"x"'),
    ],
)
def test_templates(text: str, printed: str) -> None:
    assert Template(text).render(DATA) == printed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{.Nope}}", "there is no .Nope; the fields there are Id, Tags"),
        ("{{.Id.x}}", "is asked of"),
        ("{{range .Tags}}", "no function 'range'"),
        ("{{.Id", "brace is open"),
        ("{{}}", "function is missing"),
        ("{{.Id | }}", "function is missing"),
        ("{{.Id .Size}}", "function is missing"),
        ("{{index .Tags 7}}", "no 7"),
        ("{{join .Tags}}", "cannot be used like this"),
        ("{{$x}}", "cannot read"),
    ],
)
def test_templates_refused(text: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        Template(text).render(DATA)


@given(st.lists(st.sampled_from([*'{}.|-"`\\ \t', "{{", "}}", "json", "Id", "index"]), max_size=12).map("".join))
def test_any_template_is_read_or_refused(text: str) -> None:
    try:
        Template(text).render(DATA)
    except TemplateError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON)
def test_json_comes_back(value: object) -> None:
    assert json.loads(Template("{{json .}}").render(value)) == value


def test_rows() -> None:
    rows = [{"A": "one", "B": 1}, {"A": "three", "B": 3}]
    assert format_rows(rows, {"A": "FIRST"}, "table {{.A}}\t{{.B}}") == "FIRST     B\none       1\nthree     3\n"
    assert format_rows(rows, {}, "table {{.A}}\\t{{upper .B}}").splitlines()[0] == "A         B"
    assert format_rows(rows, {}, "json") == '{"A":"one","B":1}\n{"A":"three","B":3}\n'
    assert format_rows(rows, {}, "{{.B}}") == "1\n3\n"
    assert align([]) == ""


@given(st.integers(0, 1 << 60))
def test_sizes_have_three_digits(size: int) -> None:
    words = size_words(size)
    number = words.rstrip("kMGTPB")
    assert len(number.replace(".", "")) <= 4
    assert "e" not in number
    factor = 1000 ** ["B", "kB", "MB", "GB", "TB", "PB"].index(words.removeprefix(number))
    assert float(number) * factor == pytest.approx(size, rel=0.006)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (86400, "24 hours"),
        (86400 * 3, "3 days"),
        (86400 * 20, "2 weeks"),
        (86400 * 100, "3 months"),
        (86400 * 800, "2 years"),
    ],
)
def test_ages(seconds: int, words: str) -> None:
    now = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
    assert age_words(now - dt.timedelta(seconds=seconds), now) == f"{words} ago"


def test_changes() -> None:
    config = parse_changes(
        [
            'cmd ["a", "b c"]',
            "ENTRYPOINT exec thing",
            "ENV A=1 B='2 3'",
            "ENV C any text",
            "LABEL x=y",
            "EXPOSE 80 53/udp",
            'VOLUME ["/d a"]',
            "VOLUME /e /f",
            "USER app",
            "WORKDIR /srv",
            "STOPSIGNAL SIGINT",
        ]
    )
    assert config == ImageConfig(
        command=("a", "b c"),
        entrypoint=("/bin/sh", "-c", "exec thing"),
        env={"A": "1", "B": "2 3", "C": "any text"},
        labels={"x": "y"},
        exposed_ports=("80/tcp", "53/udp"),
        volumes=("/d a", "/e", "/f"),
        user="app",
        workdir="/srv",
        stop_signal="SIGINT",
    )


@pytest.mark.parametrize("line", ["RUN true", "CMD", "CMD [1]", "ENV A", "ENV =1", "EXPOSE http", "LABEL 'a=b", ""])
def test_changes_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r".{10}"):
        parse_changes([line])


@given(st.text(max_size=30))
def test_any_change_is_read_or_refused(text: str) -> None:
    for name in ("CMD", "ENV", "LABEL", "EXPOSE", "VOLUME", text):
        try:
            parse_changes([f"{name} {text}"])
        except ValueError:
            continue
