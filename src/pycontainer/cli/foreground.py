"""``run`` and ``run-bundle``: a container in the foreground, from the flags to the program's exit status."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycontainer import Engine, Image, NotFound, Result, Unsupported
from pycontainer.cli import Settings, flags, options, tell
from pycontainer.cli.terminal import Foreground, output, typed_input

if TYPE_CHECKING:
    from pycontainer import Container  # only needed for containers that are kept

_HOST = ("host", "host:latest")


def quick(arguments: Sequence[str], settings: Settings) -> int | None:
    """Run a container without click, which takes as long to load as the container to run.

    Returns:
        The exit status; None when this is not a plain ``run``, which click then reads.
    """
    before = options.read(arguments, options.PROGRAM)
    if before is None or before[1][:1] != ["run"] or before[0]["version"]:
        return None
    after = options.read(before[1][1:], options.RUN)
    if after is None or not after[1]:
        return None
    root = before[0]["root"] or os.environ.get("PYCONTAINER_ROOT")
    settings.root = Path(root) if root else None
    settings.debug = before[0]["debug"]
    image, *command = after[1]
    return run(settings, image, command, after[0])


def find_image(engine: Engine, name: str, pull: str = "never", *, quiet: bool = False) -> Image:
    """Return an image; ``host`` is the host's own programs unless the store has an image of that name.

    Args:
        engine: has it, or gets it.
        name: of the image.
        pull: when it is pulled: ``missing``, ``always`` or ``never``.
        quiet: show nothing of that.
    """
    if pull == "always" and name not in _HOST:
        return _pull(engine, name, quiet=quiet)
    try:
        found = engine.images.get(name)
    except NotFound as error:
        if name in _HOST:
            return engine.images.host()
        if pull == "never" or name.startswith("sha256:"):
            raise
        if not quiet:
            tell(f"{error}; pulling it")
        return _pull(engine, name, quiet=quiet)
    return engine.images.host() if name in _HOST and found.mounts else found  # made anew when the host has changed


def _pull(engine: Engine, name: str, *, quiet: bool) -> Image:
    import sys

    from pycontainer.cli.progress import shown

    with shown(quiet=quiet, lines=sys.stderr) as progress:
        return engine.images.pull(name, progress=progress)


def run(settings: Settings, image: str, command: Sequence[str], given: dict[str, Any]) -> int:
    """Run a container; return the exit status.

    Args:
        settings: what was given before the command.
        image: its name.
        command: program and arguments, empty for the image's.
        given: the flags, by the keys of `options.RUN`.
    """
    settings.runs = True
    if given["detach"]:
        msg = "this version runs containers in the foreground only: leave out -d"
        raise Unsupported(msg)
    arguments = run_arguments(given)
    with Engine(settings.root) as engine:
        found = find_image(engine, image, given["pull"], quiet=given["quiet"])
        if given["rm"] and not any(given[name] for name in ("name", "label", "cidfile")):
            return _in_foreground(
                lambda **streams: engine.run(found, command or None, **arguments, **streams),
                tty=given["tty"],
                interactive=given["interactive"],
                proxy=given["sig_proxy"],
                timeout=given["timeout"],
            )
        container = create(engine, found, command, arguments, given)
        try:
            return attach(container, given)
        finally:
            if given["rm"]:
                container.remove(force=True)


def create(
    engine: Engine, image: Image | str, command: Sequence[str], arguments: dict[str, Any], given: dict[str, Any]
) -> Container:
    """Make a container that is kept.

    Args:
        engine: where.
        image: what :func:`find_image` gave.
        command: program and arguments, empty for the image's.
        arguments: what :func:`run_arguments` gave.
        given: the flags, by the keys of `options.CREATE`.
    """
    labels = {name: value for name, _, value in (text.partition("=") for text in given["label"])}
    path = given["cidfile"]
    if path and os.path.lexists(path):
        msg = f"{path} is there already: remove it, or name another file with --cidfile"
        raise ValueError(msg)
    container = engine.containers.create(image, command or None, name=given["name"], labels=labels, **arguments)
    if path:
        try:
            with open(path, "x", encoding="ascii") as file:  # noqa: PTH123 - Path is slow to use
                file.write(container.id)
        except OSError:
            container.remove()
            raise
    return container


def attach(container: Container, given: dict[str, Any]) -> int:
    """Run a container that is kept; return the exit status.

    Args:
        container: which.
        given: the flags ``interactive`` and those of `options.FOREGROUND`, by their keys.
    """
    return _in_foreground(
        container.run,
        tty=container.tty,
        interactive=given["interactive"],
        proxy=given["sig_proxy"],
        timeout=given["timeout"],
    )


def run_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``Engine.run`` for the flags given."""
    entrypoint = given["entrypoint"]
    pids = given["pids_limit"]
    mounts = [
        *map(flags.parse_volume, given["volume"]),
        *map(flags.parse_mount, given["mount"]),
        *map(flags.parse_tmpfs, given["tmpfs"]),
    ]
    return {
        "entrypoint": () if entrypoint == "" else entrypoint,
        "env": flags.read_env(given["env_file"], given["env"]),
        "workdir": given["workdir"],
        "user": given["user"],
        "groups": given["group_add"],
        "hostname": given["hostname"],
        "domainname": given["domainname"],
        "extra_hosts": flags.parse_hosts(given["add_host"]),
        "dns": given["dns"],
        "network": given["network"],
        "mounts": mounts,
        "limits": flags.parse_limits(
            memory=given["memory"],
            memory_swap=flags.swap_limit(given["memory_swap"]),
            memory_reservation=given["memory_reservation"],
            cpus=given["cpus"],
            cpu_shares=given["cpu_shares"],
            cpuset_cpus=given["cpuset_cpus"],
            cpuset_mems=given["cpuset_mems"],
            pids=None if pids == -1 else pids,
            io_weight=given["blkio_weight"],
        ),
        "read_only": given["read_only"],
        "cap_add": given["cap_add"],
        "cap_drop": given["cap_drop"],
        "privileged": given["privileged"],
        "rlimits": [*map(flags.parse_ulimit, given["ulimit"])],
        "sysctls": flags.parse_pairs(given["sysctl"], "sysctl"),
        "oom_score_adj": given["oom_score_adj"],
        "devices": [*map(flags.parse_device, given["device"])],
        "shm_size": given["shm_size"],
        "userns": flags.parse_userns(given["userns"]),
        **{name: given[name] for name in ("pid", "ipc", "uts", "cgroupns") if given[name]},
        "init": given["init"],
        "tty": given["tty"],
        **flags.parse_security(given["security_opt"]),
    }


def run_bundle(settings: Settings, path: Path, given: dict[str, Any]) -> int:
    """Run an OCI runtime bundle; return the exit status.

    Args:
        settings: what was given before the command.
        path: the bundle.
        given: the flags, by the keys of `options.FOREGROUND`.
    """
    settings.runs = True
    with Engine(settings.root) as engine:
        return _in_foreground(
            lambda **streams: engine.run_bundle(path, **streams),
            tty=_wants_terminal(path),
            interactive=True,
            proxy=given["sig_proxy"],
            timeout=given["timeout"],
        )


def _wants_terminal(bundle: Path) -> bool:
    """Tell whether a bundle asks for a terminal; what is wrong with it, the engine says."""
    try:
        document = json.loads((bundle / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    process = document.get("process") if isinstance(document, dict) else None
    return isinstance(process, dict) and process.get("terminal") is True and os.isatty(0)


def _in_foreground(run: Any, *, tty: bool, interactive: bool, proxy: bool, timeout: float | None) -> int:  # noqa: ANN401
    with Foreground(tty=tty, interactive=interactive, proxy=proxy) as foreground:
        streams = {"timeout": timeout, "on_start": foreground.started}
        if tty:
            stdin = "inherit" if interactive else "none"
            result: Result = run(stdin=stdin, stdout="inherit", **streams)
        elif interactive:
            with typed_input() as stdin:
                result = run(stdin=stdin, stdout=output(1), stderr=output(2), **streams)
        else:
            result = run(stdout=output(1), stderr=output(2), **streams)
    if result.oom_killed and result.exit_code:
        tell("the kernel killed processes of it at the memory limit; --memory sets it")
    return result.exit_code
