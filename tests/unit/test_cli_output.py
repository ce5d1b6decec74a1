"""What the command line prints: templates, tables, words for sizes and ages, instructions of --change."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontainer import ImageConfig, Progress
from pycontainer.cli.changes import parse_changes
from pycontainer.cli.filters import list_filters, parse_time, prune_filters
from pycontainer.cli.progress import Lines, live_bars
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


# ── filters ───────────────────────────────────────────────────────────────────────────────────────────────────────

NOW = dt.datetime(2024, 6, 1, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("24h", "2024-05-31T12:00:00+00:00"),
        ("1h30m", "2024-06-01T10:30:00+00:00"),
        ("1.5h", "2024-06-01T10:30:00+00:00"),
        ("90s", "2024-06-01T11:58:30+00:00"),
        ("1500ms", "2024-06-01T11:59:58.500000+00:00"),
        ("0", "1970-01-01T00:00:00+00:00"),
        ("1700000000", "2023-11-14T22:13:20+00:00"),
        ("2024-01-31T12:00:00Z", "2024-01-31T12:00:00+00:00"),
        ("2024-01-31T12:00:00+02:00", "2024-01-31T10:00:00+00:00"),
    ],
)
def test_times(text: str, moment: str) -> None:
    assert parse_time(text, NOW).isoformat() == moment


def test_a_time_without_a_zone_is_local() -> None:
    assert parse_time("2024-01-31", NOW) == dt.datetime(2024, 1, 31).astimezone(dt.UTC)


@pytest.mark.parametrize("text", ["", "yesterday", "1d", "h", "9" * 30, "9" * 30 + "h", "2024-13-01"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        parse_time(text, NOW)


def test_filters() -> None:
    texts = ["label=a", "label=b=c", "reference=x", "dangling=0", "before=i", "since=j", "until=1h"]
    assert list_filters(texts, NOW) == {
        "label": ["a", "b=c"],
        "reference": ["x"],
        "dangling": False,
        "before": "i",
        "since": "j",
        "until": NOW - dt.timedelta(hours=1),
    }
    assert prune_filters(["label!=a=b", "dangling=false"], NOW) == {"without_label": ["a=b"], "all": True}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label", "NAME=VALUE"),
        ("colour=red", "there is no filter 'colour'; there are before, dangling"),
        ("dangling=perhaps", "true or false"),
        ("until=later", "not a time"),
    ],
)
def test_filters_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list_filters([text], NOW)
    with pytest.raises(ValueError, match="given twice"):
        list_filters(["before=a", "before=b"], NOW)


# ── progress ──────────────────────────────────────────────────────────────────────────────────────────────────────

DIGESTS = [f"sha256:{number:064x}" for number in range(1 << 252, (1 << 252) + 30)]


def events() -> list[Progress]:
    found = [Progress("waiting", name, 0, 100, 0, 3000) for name in DIGESTS]
    found += [Progress("downloading", name, 50, 100, 50 * number, 3000) for number, name in enumerate(DIGESTS)]
    found += [Progress("done", name, 100, 100, 100 * number, 3000) for number, name in enumerate(DIGESTS)]
    return [*found, Progress("exists", "a/tar", 0, 0), Progress("image", DIGESTS[0], 3000, 3000, 3000, 3000)]


def test_lines_tell_each_state_once() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    for event in events() * 2:
        lines(event)
    told = stream.getvalue().splitlines()
    assert told[0] == "100000000000: Waiting"
    assert told.count("a/tar: Already exists") == 1
    assert "100000000000: Complete" in told


def test_bars_fit_on_the_terminal_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    primary, secondary = os.openpty()
    read: list[bytes] = []

    def drain() -> None:
        while True:
            try:
                data = os.read(primary, 1 << 16)
            except OSError:  # EIO: the other side is closed
                return
            read.append(data)

    reader = threading.Thread(target=drain)
    reader.start()
    with os.fdopen(secondary, "w") as stream, live_bars(stream) as report:
        for event in events()[:40]:
            report(event)
        stream.flush()
        time.sleep(0.3)  # ten pictures a second
        for event in events()[40:]:
            report(event)
    reader.join()
    os.close(primary)
    shown = b"".join(read).decode()
    assert "of 30 layers" in shown
    assert "Downloading" in shown
    pictures = shown.split("\x1b[1A")
    assert max(picture.count("\n") for picture in pictures) <= 9
