"""The commands by name; the module of each is imported when it is called, so that ``run`` pays for nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from pycontainer.cli import Settings

_MODULES = {
    "commit": "containers",
    "create": "containers",
    "diff": "containers",
    "doctor": "host",
    "export": "containers",
    "history": "inspect",
    "images": "images",
    "import": "archives",
    "info": "host",
    "inspect": "inspect",
    "load": "archives",
    "login": "registry",
    "logout": "registry",
    "ps": "containers",
    "pull": "registry",
    "push": "registry",
    "rename": "containers",
    "rm": "containers",
    "rmi": "images",
    "run": "run",
    "run-bundle": "run",
    "save": "archives",
    "search": "registry",
    "start": "containers",
    "tag": "images",
    "untag": "images",
    "version": "host",
}
_IMAGE = {
    "diff": "image-diff",
    "exists": "image-exists",
    "history": "history",
    "import": "import",
    "inspect": "image-inspect",
    "load": "load",
    "ls": "images",
    "prune": "image-prune",
    "pull": "pull",
    "push": "push",
    "rm": "rmi",
    "save": "save",
    "tag": "tag",
    "untag": "untag",
}
# Only in a group.
_GROUPED = {
    "container-inspect": "containers",
    "container-prune": "containers",
    "image-diff": "inspect",
    "image-exists": "images",
    "image-inspect": "inspect",
    "image-prune": "images",
    "system-check": "system",
    "system-df": "system",
    "system-prune": "system",
}
_CONTAINER = {
    **{name: name for name in ("commit", "create", "diff", "export", "ps", "rename", "rm", "run", "start")},
    "inspect": "container-inspect",
    "ls": "ps",
    "prune": "container-prune",
}
_SYSTEM = {"check": "system-check", "df": "system-df", "info": "info", "prune": "system-prune"}


class Commands(click.Group):
    """A group whose commands are imported by name.

    Args:
        names: the function of each command, by its name here.
    """

    def __init__(self, name: str, names: dict[str, str], **attributes: object) -> None:
        super().__init__(name, **attributes)  # type: ignore[arg-type]
        self._names = names

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*self._names, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, imported now."""
        name = self._names.get(cmd_name)
        if name is None:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"pycontainer.cli.{(_MODULES | _GROUPED)[name]}")
        found: click.Command = getattr(module, name.replace("-", "_") + "_command")
        return found


@click.pass_context
def _pycontainer(context: click.Context, root: Path | None, debug: bool, version: bool) -> None:  # noqa: FBT001
    settings: Settings = context.obj
    settings.root = root
    settings.debug = debug
    if version:
        from pycontainer.cli.host import version as known

        click.echo(f"pycontainer version {known()}")
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit()


pycontainer = Commands(
    "pycontainer",
    {name: name for name in _MODULES},
    invoke_without_command=True,
    callback=_pycontainer,
    help="Run programs in containers, without a daemon.",
    params=[
        click.Option(
            ["--root"],
            type=click.Path(file_okay=False, path_type=Path),
            envvar="PYCONTAINER_ROOT",
            metavar="DIR",
            show_envvar=True,
            help="The store; /var/lib/pycontainer unless given.",
        ),
        click.Option(["--debug"], is_flag=True, help="Show where an error comes from."),
        click.Option(["--version"], is_flag=True, help="Show the version."),
    ],
)
pycontainer.add_command(Commands("image", _IMAGE, help="Work with images.", no_args_is_help=True))
pycontainer.add_command(Commands("container", _CONTAINER, help="Work with containers.", no_args_is_help=True))
pycontainer.add_command(Commands("system", _SYSTEM, help="Look after the store.", no_args_is_help=True))
