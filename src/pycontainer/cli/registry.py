"""``login``, ``logout``, ``search``, ``pull`` and ``push``: registries, as docker's commands of these names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import click

from pycontainer import Engine, Image, NotFound, Registries, SearchResult
from pycontainer.cli import Settings, tell
from pycontainer.cli.images import split_reference
from pycontainer.cli.progress import shown
from pycontainer.cli.tables import format_rows

_PASS = click.make_pass_decorator(Settings)
_HUB = "docker.io"
_SHORT = 45  # characters of a description
_SEARCH = "table {{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}"
_TITLES = {"StarCount": "STARS", "IsOfficial": "OFFICIAL"}

# ── login, logout ──


@click.command("login", short_help="Log in to a registry.")
@click.argument("server", default=_HUB)
@click.option("-u", "--username", help="The user; asked for when not given.")
@click.option(
    "-p", "--password", help="The password; other users of this machine can see it, --password-stdin is better."
)
@click.option("--password-stdin", "from_stdin", is_flag=True, help="Read the password from the standard input.")
def login_command(server: str, username: str | None, password: str | None, from_stdin: bool) -> None:  # noqa: FBT001
    """Have SERVER (docker.io) verify a user and a password, and keep them where docker and podman find them."""
    if from_stdin:
        if password is not None:
            msg = "--password and --password-stdin exclude each other"
            raise ValueError(msg)
        if username is None:
            msg = "--password-stdin needs --username"
            raise ValueError(msg)
        password = sys.stdin.readline().rstrip("\r\n")
    elif not sys.stdin.isatty() and None in (username, password):
        msg = "there is no terminal to ask on; give --username and --password-stdin"
        raise ValueError(msg)
    if username is None:
        username = click.prompt("Username", err=True)
    if password is None:
        password = click.prompt("Password", hide_input=True, err=True)
    place = Registries.from_files().login(server, str(username), str(password))
    tell(f"the credentials are kept in {place}")
    click.echo("Login Succeeded")


@click.command("logout", short_help="Log out from a registry.")
@click.argument("server", default=_HUB)
def logout_command(server: str) -> None:
    """Forget the user and the password for SERVER (docker.io)."""
    known = Registries.from_files().logout(server)
    click.echo(f"Removing login credentials for {server}" if known else f"Not logged in to {server}")


# ── search ──


@click.command("search", short_help="Search a registry for repositories.")
@click.argument("term")
@click.option(
    "-f", "--filter", "filters", multiple=True, metavar="NAME=VALUE", help="stars=N or is-official=true|false."
)
@click.option("--format", "layout", metavar="FORMAT", help="table, json, 'table TEMPLATE' or a Go template.")
@click.option("--limit", type=click.IntRange(1, 100), default=25, help="At most so many (25).")
@click.option("--no-trunc", is_flag=True, help="Show whole descriptions.")
def search_command(term: str, filters: Sequence[str], layout: str | None, limit: int, no_trunc: bool) -> None:  # noqa: FBT001
    """Find repositories by TERM on docker.io, or by HOST/TERM on another registry."""
    first, slash, rest = term.partition("/")
    elsewhere = slash and ("." in first or ":" in first or first == "localhost")
    registry, word = (first, rest) if elsewhere else (_HUB, term)
    conditions = [_condition(text) for text in filters]
    found = Registries.from_files().search(word, registry=registry, limit=limit)
    rows = [
        {
            "Name": item.name,
            "Description": item.description if no_trunc else _shortened(item.description),
            "StarCount": item.stars,
            "IsOfficial": "[OK]" if item.official else "",
        }
        for item in found
        if all(condition(item) for condition in conditions)
    ]
    click.echo(format_rows(rows, _TITLES, _SEARCH if layout in (None, "table") else str(layout)), nl=False)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _condition(text: str) -> Callable[[SearchResult], bool]:
    name, _, value = text.partition("=")
    if name == "stars" and value.isdecimal():
        return lambda item: item.stars >= int(value)
    if name == "is-official" and value in ("true", "false"):
        return lambda item: item.official is (value == "true")
    msg = f"no filter {text!r}; there are stars=N, is-official=true and is-official=false"
    raise ValueError(msg)


# ── pull, push ──


@click.command("pull", short_help="Pull an image from a registry.")
@click.argument("name")
@click.option("-a", "--all-tags", is_flag=True, help="Pull every tag of the repository.")
@click.option("--platform", metavar="OS/ARCHITECTURE", help="Which of an image for several platforms.")
@click.option("-q", "--quiet", is_flag=True, help="Show the name only.")
@_PASS
def pull_command(settings: Settings, name: str, all_tags: bool, platform: str | None, quiet: bool) -> None:  # noqa: FBT001
    """Bring an image from its registry; only what is missing is fetched."""
    with Engine(settings.root) as engine, shown(quiet=quiet, lines=sys.stdout) as progress:
        if all_tags:
            for image in engine.images.pull_all(name, platform=platform, progress=progress):
                click.echo(str(image) if quiet else f"Digest: {_digest(image)}\n{image}")
            return
        try:
            before = engine.images.get(name).id
        except NotFound:
            before = ""
        if not quiet and "@" not in name and ":" not in name.rpartition("/")[2]:
            click.echo("Using default tag: latest")
        image = engine.images.pull(name, platform=platform, progress=progress)
    if not quiet:
        click.echo(f"Digest: {_digest(image)}")
        newer = "Downloaded newer image" if image.id != before else "Image is up to date"
        click.echo(f"Status: {newer} for {name}")
    click.echo(name)


def _digest(image: Image) -> str:
    """Return the digest of the index that an image came by, else of its manifest."""
    digests = [text.rpartition("@")[2] for text in image.repo_digests]
    return next((digest for digest in digests if digest != image.digest), image.digest)


@click.command("push", short_help="Push an image to a registry.")
@click.argument("name")
@click.argument("target", required=False)
@click.option("-a", "--all-tags", is_flag=True, help="Push every tag of the repository.")
@click.option("-q", "--quiet", is_flag=True, help="Show the name and digest only.")
@_PASS
def push_command(settings: Settings, name: str, target: str | None, all_tags: bool, quiet: bool) -> None:  # noqa: FBT001
    """Bring an image to the registry that its name says, or as TARGET; only what is missing there is sent."""
    with Engine(settings.root) as engine, shown(quiet=quiet, lines=sys.stdout) as progress:
        names = [name]
        if all_tags:
            if target is not None:
                msg = "--all-tags pushes each tag under its own name: it takes no target"
                raise ValueError(msg)
            names = [text for image in engine.images.list() for text in image.references if _is_of(text, name)]
            if not names:
                msg = f"no image of the repository {name} in {engine.root}"
                raise NotFound(msg)
        for each in names:
            pinned = engine.images.push(each, target, progress=progress)
            click.echo(pinned if quiet else f"{target or each}: digest: {pinned.rpartition('@')[2]}")


def _is_of(reference: str, repository: str) -> bool:
    return split_reference(reference)[0] == repository
