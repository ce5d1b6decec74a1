"""``run`` and ``run-bundle``: a container in the foreground, from the flags to the program's exit status."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from pycontainer import Engine, Image, NotFound, Result
from pycontainer.cli import flags, tell
from pycontainer.cli.commands import Settings
from pycontainer.cli.terminal import Foreground, output, typed_input

_HOST = ("host", "host:latest")


def find_image(engine: Engine, name: str) -> Image:
    """Return an image; ``host`` is the host's own programs unless the store has an image of that name."""
    if name not in _HOST:
        return engine.images.get(name)
    try:
        found = engine.images.get(name)
    except NotFound:
        return engine.images.host()
    return engine.images.host() if found.mounts else found  # made anew when the host has changed


def _option(*names: str, **attributes: Any) -> click.Option:  # noqa: ANN401 - click's
    return click.Option(list(names), **attributes)


def _many(*names: str, metavar: str, help: str) -> click.Option:  # noqa: A002 - click's name
    return click.Option(list(names), multiple=True, metavar=metavar, help=help)


_STREAMS = [
    _option("-i", "--interactive", is_flag=True, help="Give it the standard input."),
    _option("-t", "--tty", is_flag=True, help="Give it a terminal."),
    _option("--sig-proxy/--no-sig-proxy", default=True, help="Hand signals on to it (default)."),
    _option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Kill it after so long."),
]
_PROCESS = [
    _option("--entrypoint", metavar="PROGRAM", help="Run this instead of the image's entrypoint."),
    _many("-e", "--env", metavar="NAME[=VALUE]", help="Set an environment variable, or hand it on."),
    _many("--env-file", metavar="FILE", help="Read environment variables from a file."),
    _option("-w", "--workdir", metavar="DIR", help="Start in this directory."),
    _option("-u", "--user", metavar="NAME|UID[:GROUP|GID]", help="Run as this user."),
    _many("--group-add", metavar="GROUP", help="Add a supplementary group."),
    _option("--init", is_flag=True, help="Run an init as PID 1, which reaps orphans and hands signals on."),
    _many("--ulimit", metavar="NAME=SOFT[:HARD]", help="Limit a resource of the process, as nofile=1024."),
    _option(
        "--oom-score-adj", type=click.IntRange(-1000, 1000), metavar="N", help="Prefer or spare it when memory ends."
    ),
]
_NAMES = [
    _option("-h", "--hostname", metavar="NAME", help="Its host name."),
    _option("--domainname", metavar="NAME", help="Its NIS domain name."),
    _many("--add-host", metavar="NAME:ADDRESS", help="Add a line to /etc/hosts."),
    _many("--dns", metavar="ADDRESS", help="Add a name server to /etc/resolv.conf."),
    _option("--network", "--net", default="none", metavar="none|host", help="none (default): only loopback."),
    _option("--pid", metavar="host", help="Show it the host's processes."),
    _option("--ipc", metavar="private|host", help="Share System V IPC and message queues with the host."),
    _option("--uts", metavar="host", help="Share the host's name."),
    _option("--cgroupns", metavar="private|host", help="Show it the host's control groups."),
    _many("--userns", metavar="INSIDE:OUTSIDE:COUNT", help="Map ids by a user namespace; 'host' (default): none."),
    _many("--sysctl", metavar="NAME=VALUE", help="Set a kernel parameter of its namespaces."),
]
_FILES = [
    _many("-v", "--volume", metavar="SOURCE:TARGET[:OPTIONS]", help="Show it a file or directory of the host."),
    _many("--mount", metavar="type=bind|tmpfs,…", help="The same, by names: source, target, readonly, tmpfs-size…"),
    _many("--tmpfs", metavar="TARGET[:OPTIONS]", help="Give it a directory in memory."),
    _option("--read-only", is_flag=True, help="Make its root read-only."),
    _option("--shm-size", default="64m", metavar="SIZE", help="Size of /dev/shm (64m)."),
    _many("--device", metavar="SOURCE[:TARGET][:rwm]", help="Give it a device of the host."),
]
_LIMITS = [
    _option("-m", "--memory", metavar="SIZE", help="Limit memory, as 256m."),
    _option("--memory-swap", metavar="SIZE", help="Limit memory and swap together; -1: swap without limit."),
    _option("--memory-reservation", metavar="SIZE", help="Soft limit of memory."),
    _option("--cpus", type=float, metavar="N", help="Limit processors, as 1.5."),
    _option("-c", "--cpu-shares", type=int, metavar="N", help="Relative weight for processors (1024)."),
    _option("--cpuset-cpus", metavar="LIST", help="Which processors, as 0-2,4."),
    _option("--cpuset-mems", metavar="LIST", help="Which memory nodes."),
    _option("--pids-limit", type=int, metavar="N", help="Limit processes; -1: no limit."),
    _option("--blkio-weight", type=int, metavar="N", help="Relative weight for disks, 10 to 1000."),
]
_SECURITY = [
    _many("--cap-add", metavar="CAPABILITY", help="Add a capability, or ALL."),
    _many("--cap-drop", metavar="CAPABILITY", help="Take a capability away, or ALL."),
    _option("--privileged", is_flag=True, help="All capabilities and devices, nothing filtered: no isolation."),
    _many("--security-opt", metavar="OPTION", help="seccomp=FILE, seccomp=unconfined, no-new-privileges."),
]


def _run(image: str, command: tuple[str, ...], **given: Any) -> int:  # noqa: ANN401 - click's
    settings = click.get_current_context().obj
    settings.runs = True
    arguments = run_arguments(given)
    with Engine(settings.root) as engine:
        found = find_image(engine, image)
        return _in_foreground(
            lambda **streams: engine.run(found, command or None, **arguments, **streams),
            tty=given["tty"],
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


run_command = click.Command(
    "run",
    callback=_run,
    context_settings={"allow_interspersed_args": False, "max_content_width": 120},
    help="""Run a program in a new container of an image, wait for it, remove the container.

    Without a command, the image's own runs. IMAGE is a reference, an id, or 'host': the programs of this host.

    The exit status is the program's, 128 + N when signal N ended it, 127 when there is no such program in the image,
    126 when it cannot be executed, 124 when --timeout ended it, 125 when pycontainer could not run it.""",
    short_help="Run a program in a new container.",
    params=[
        click.Argument(["image"]),
        click.Argument(["command"], nargs=-1, type=click.UNPROCESSED),
        _option("--rm", is_flag=True, expose_value=False, help="Remove it at the end; always so in this version."),
        *_STREAMS,
        *_PROCESS,
        *_NAMES,
        *_FILES,
        *_LIMITS,
        *_SECURITY,
    ],
)


def _run_bundle(path: Path, sig_proxy: bool, timeout: float | None) -> int:  # noqa: FBT001 - click's
    settings: Settings = click.get_current_context().obj
    settings.runs = True
    with Engine(settings.root) as engine:
        return _in_foreground(
            lambda **streams: engine.run_bundle(path, **streams),
            tty=_wants_terminal(path),
            interactive=True,
            proxy=sig_proxy,
            timeout=timeout,
        )


def _wants_terminal(bundle: Path) -> bool:
    """Tell whether a bundle asks for a terminal; what is wrong with it, the engine says."""
    try:
        document = json.loads((bundle / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    process = document.get("process") if isinstance(document, dict) else None
    return isinstance(process, dict) and process.get("terminal") is True and os.isatty(0)


run_bundle_command = click.Command(
    "run-bundle",
    callback=_run_bundle,
    help="""Run an OCI runtime bundle: a directory with config.json and a root file system.

    The root is used as it is: what the program writes stays. Exit statuses are those of 'run'.""",
    short_help="Run an OCI runtime bundle.",
    params=[
        click.Argument(["path"], type=click.Path(path_type=Path)),
        *(option for option in _STREAMS if option.name in ("sig_proxy", "timeout")),
    ],
)
