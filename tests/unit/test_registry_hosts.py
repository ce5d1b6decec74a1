"""Where registries are: docker.io's names, loopback, mirrors, insecure hosts, certificates, proxies, configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycontainer.distribution.hosts import Registries, bypasses_proxy, is_loopback, split_port

BOTH = ("https", "http")


@pytest.mark.parametrize(
    ("registry", "host", "schemes"),
    [
        ("docker.io", "registry-1.docker.io", ("https",)),
        ("registry.example", "registry.example", ("https",)),
        ("registry.example:5000", "registry.example:5000", ("https",)),
        ("localhost:5000", "localhost:5000", BOTH),
        ("127.1.2.3", "127.1.2.3", BOTH),
        ("[::1]:5000", "[::1]:5000", BOTH),
        ("[fe80::1]:5000", "[fe80::1]:5000", ("https",)),
        ("10.0.0.1:5000", "10.0.0.1:5000", ("https",)),
    ],
)
def test_a_registry_is_where_its_name_says(registry: str, host: str, schemes: tuple[str, ...]) -> None:
    (endpoint,) = Registries().endpoints(registry)
    assert (endpoint.host, endpoint.schemes, endpoint.verify, endpoint.mirror) == (host, schemes, True, False)


@pytest.mark.parametrize(
    ("entry", "insecure"),
    [
        ("registry.lan:5000", True),
        ("REGISTRY.lan", True),
        ("registry.lan:5001", False),
        ("lan", False),
        ("10.0.0.0/8", False),
    ],
)
def test_who_is_listed_may_be_plain_and_unchecked(entry: str, insecure: bool) -> None:
    endpoint = Registries(insecure=[entry]).origin("registry.lan:5000")
    assert (endpoint.schemes, endpoint.verify) == ((BOTH, False) if insecure else (("https",), True))


def test_networks_and_schemes_are_listed_too() -> None:
    registries = Registries(insecure=["10.0.0.0/8", "fd00::/8", "http://plain.lan:5000"])
    assert not registries.origin("10.9.8.7:5000").verify
    assert not registries.origin("[fd00::1]").verify
    assert registries.origin("11.0.0.1").verify
    assert registries.origin("plain.lan:5000").schemes == ("http",)


def test_mirrors_come_first_and_have_prefixes() -> None:
    registries = Registries(mirrors={"index.docker.io": ["http://cache.lan:5000", "mirror.example/hub/"]})
    first, second, last = registries.endpoints("docker.io")
    assert (first.host, first.schemes, first.prefix, first.mirror) == ("cache.lan:5000", ("http",), "", True)
    assert (second.host, second.schemes, second.prefix) == ("mirror.example", ("https",), "hub/")
    assert last == registries.origin("docker.io")
    assert registries.endpoints("quay.io") == (registries.origin("quay.io"),)


@pytest.mark.parametrize("place", ["ftp://mirror", "https://", "mirror/UPPER", "user@mirror", "mir ror"])
def test_a_mirror_is_a_place(place: str) -> None:
    with pytest.raises(ValueError, match=r"not a mirror of quay\.io"):
        Registries(mirrors={"quay.io": [place]}).endpoints("quay.io")


def test_certificates_are_found_by_host_and_port(tmp_path: Path) -> None:
    directory = tmp_path / "registry.example:5000"
    directory.mkdir()
    for name in ("ca.crt", "client.cert", "client.key", "README"):
        (directory / name).touch()
    registries = Registries(certs=[tmp_path / "other", tmp_path])
    found = registries.certificates("registry.example:5000")
    assert found.authorities == (directory / "ca.crt",)
    assert found.clients == ((directory / "client.cert", directory / "client.key"),)
    assert registries.certificates("registry.example").authorities == ()
    (directory / "client.key").unlink()
    with pytest.raises(ValueError, match=r"client\.cert has no client\.key beside it"):
        registries.certificates("registry.example:5000")


def test_configuration_is_read_field_by_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("pycontainer.distribution.hosts._SYSTEM_FILE", tmp_path / "absent/registries.toml")
    system = tmp_path / "system.toml"
    system.write_text('insecure = ["a.lan"]\nproxy = "http://proxy:3128"\n')
    user = tmp_path / "pycontainer/registries.toml"
    user.parent.mkdir()
    user.write_text('insecure = ["b.lan"]\n[mirrors]\n"docker.io" = ["localhost:5000"]\n')
    both = Registries.from_files(system, user)
    assert (both.insecure, both.proxy, dict(both.mirrors)) == (
        ("b.lan",),
        "http://proxy:3128",
        {"docker.io": ("localhost:5000",)},
    )
    assert Registries.from_files().insecure == ("b.lan",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("insecure = 'a'", "'insecure' holds 'a'"),
        ("insecure = [1]", "'insecure' holds"),
        ("mirrors = {x = 'y'}", "'mirrors' holds"),
        ("mirror = {}", "no field 'mirror'; there are auth_file, certs"),
        ("proxy = 1", "'proxy' holds 1"),
        ("a = ", "Invalid value"),
        ("\xff", "invalid|Invalid"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "registries.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        Registries.from_files(path)


@pytest.mark.parametrize(
    ("host", "no_proxy", "bypasses"),
    [
        ("localhost:5000", "", True),
        ("127.0.0.1", "", True),
        ("registry.example", "", False),
        ("registry.example", "*", True),
        ("registry.example", "example", True),
        ("registry.example", ".example", True),
        ("registry.example", "*.example", True),
        ("registry.example:5000", "registry.example:5000", True),
        ("registry.example:5000", "registry.example:5001", False),
        ("notexample", "example", False),
        ("10.1.2.3", "192.168.0.0/16, 10.0.0.0/8", True),
        ("[fd00::1]:5000", "fd00::1", True),
        ("registry.example", "a,,:x, ::1", False),
    ],
)
def test_no_proxy_is_read_as_others_do(host: str, no_proxy: str, bypasses: bool) -> None:
    assert bypasses_proxy(host, no_proxy) is bypasses


def test_hosts_have_ports() -> None:
    assert split_port("localhost") == ("localhost", None)
    assert split_port("[::1]") == ("::1", None)
    assert split_port("[::1]:443") == ("::1", 443)
    assert is_loopback("LOCALHOST")
    assert not is_loopback("localhost.example")
