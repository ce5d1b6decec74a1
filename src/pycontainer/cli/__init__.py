"""The command ``pycontainer``: docker's verbs, flags, columns and exit codes, by the public interface alone.

This module is the way in and the way out: it turns every error into one line and an exit status.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

OWN_ERROR = 125  # of run: pycontainer's, not the program's
CANNOT_EXECUTE = 126
NO_COMMAND = 127
TIMED_OUT = 124  # as timeout(1)
INTERRUPTED = 130
FAILED = 1
_OBJECTS = 200_000


class Settings:
    """What is given before the command.

    Attributes:
        root: the store, None for the usual one.
        debug: show tracebacks.
        runs: the command runs a program, so that its exit statuses are the program's.
    """

    def __init__(self) -> None:
        self.root: Path | None = None
        self.debug = False
        self.runs = False


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process.

    Args:
        arguments: what follows the program's name; ``sys.argv`` when not given.
    """
    # What is imported stays: to look for garbage among it takes a tenth of the time of a run.
    gc.set_threshold(_OBJECTS)
    from pycontainer.cli.terminal import open_standard_streams

    open_standard_streams()
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output is gone, as with "| head": end as quietly as a program that SIGPIPE ends.
        code = FAILED
    except OSError as error:
        tell(f"write the output: {error.strerror}")
        code = FAILED
    # Everything is closed. To take the interpreter apart object by object takes longer than to run a container.
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status."""
    from pycontainer.cli.foreground import quick

    settings = Settings()
    try:
        code = quick(arguments, settings)
        return _by_click(arguments, settings) if code is None else code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the way out: each is told and gives a status
        if settings.debug:
            import traceback

            traceback.print_exc()
        return explain(error, settings)


def _by_click(arguments: Sequence[str], settings: Settings) -> int:
    import click

    from pycontainer.cli.commands import pycontainer

    try:
        code = pycontainer.main(args=list(arguments), prog_name="pycontainer", standalone_mode=False, obj=settings)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        usage = f"\nSee '{context.command_path} --help'." if context is not None else ""
        tell(error.format_message() + usage)
        return OWN_ERROR
    except click.Abort:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def explain(error: Exception, settings: Settings) -> int:
    """Say in one line what went wrong; return the exit status.

    Raises:
        Exception: the error itself, when it is a mistake of this program.
    """
    import errno

    from pycontainer import CommandNotFound, Error, TimeoutExpired

    own = OWN_ERROR if settings.runs else FAILED
    if isinstance(error, BrokenPipeError):
        raise error
    if isinstance(error, CommandNotFound):
        tell(error)
        return NO_COMMAND if error.errno in (0, errno.ENOENT, errno.ENOTDIR) else CANNOT_EXECUTE
    if isinstance(error, TimeoutExpired):
        tell(error)
        return TIMED_OUT
    if isinstance(error, OSError) and not isinstance(error, Error):
        where = f"{error.filename}: " if error.filename else ""
        tell(f"{where}{error.strerror or error}")
        return own
    if isinstance(error, Error | ValueError):
        tell(error)
        return own
    if not settings.debug:
        import traceback

        traceback.print_exc()
    tell("this is a mistake in pycontainer; please report it with the lines above")
    return own


def tell(what: object) -> None:
    """Write a line for people to the standard error; where nobody can read it any more, the exit status still tells."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"pycontainer: {what}\n")
