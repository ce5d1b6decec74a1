"""``run`` and ``run-bundle`` for click, which gives help and complains; the work is in `foreground`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pycontainer.cli import Settings, foreground, options

_PASS = click.make_pass_decorator(Settings)


class _Kind(click.ParamType):  # type: ignore[type-arg] # generic in newer releases only
    """A value as the table of flags makes it."""

    name = "value"

    def __init__(self, make: options.Kind) -> None:
        self._make = make

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        if not isinstance(value, str):
            return value  # a default
        try:
            return self._make(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def for_click(option: options.Option) -> click.Option:
    """Return a flag of the table as click knows it."""
    if option.opposite:
        return click.Option([f"{option.names[0]}/{option.opposite}"], default=option.default, help=option.help)
    if not option.metavar:
        return click.Option([*option.names, option.key], is_flag=True, help=option.help)
    return click.Option(
        [*option.names, option.key],
        metavar=option.metavar,
        multiple=option.many,
        type=_Kind(option.kind),
        default=None if option.many else option.default,
        help=option.help,
    )


@_PASS
def _run(settings: Settings, /, image: str, command: tuple[str, ...], **given: Any) -> int:  # noqa: ANN401 - click's
    return foreground.run(settings, image, command, given)


run_command = click.Command(
    "run",
    callback=_run,
    context_settings={"allow_interspersed_args": False, "max_content_width": 120},
    help="""Run a program in a new container of an image and wait for it. With --rm the container is removed then.

    Without a command, the image's own runs. IMAGE is a reference, an id, or 'host': the programs of this host.

    The exit status is the program's, 128 + N when signal N ended it, 127 when there is no such program in the image,
    126 when it cannot be executed, 124 when --timeout ended it, 125 when pycontainer could not run it.""",
    short_help="Run a program in a new container.",
    params=[
        click.Argument(["image"]),
        click.Argument(["command"], nargs=-1, type=click.UNPROCESSED),
        *map(for_click, options.RUN),
    ],
)


@_PASS
def _run_bundle(settings: Settings, /, path: Path, **given: Any) -> int:  # noqa: ANN401 - click's
    return foreground.run_bundle(settings, path, given)


run_bundle_command = click.Command(
    "run-bundle",
    callback=_run_bundle,
    help="""Run an OCI runtime bundle: a directory with config.json and a root file system.

    The root is used as it is: what the program writes stays. Exit statuses are those of 'run'.""",
    short_help="Run an OCI runtime bundle.",
    params=[click.Argument(["path"], type=click.Path(path_type=Path)), *map(for_click, options.FOREGROUND)],
)
