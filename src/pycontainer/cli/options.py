"""The flags of ``run`` as a table, and a reader of them that costs nothing to load.

Whatever it does not understand at once, click reads again, from the same table: that is where help and complaints come
from. Starting click takes as long as starting a container.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Kind = Callable[[str], Any]


class Option(NamedTuple):
    """One flag.

    Attributes:
        names: as typed, the longest gives the key.
        help: one line.
        metavar: what its value is called; ``""`` when it takes none.
        many: it may be given more than once.
        kind: makes the value of the text; raises ValueError.
        default: the value when it is not given.
        opposite: the name that means no, for one without a value.
    """

    names: tuple[str, ...]
    help: str
    metavar: str = ""
    many: bool = False
    kind: Kind = str
    default: Any = None
    opposite: str = ""

    @property
    def key(self) -> str:
        """The name under which the value is found."""
        return next(name for name in self.names if name.startswith("--"))[2:].replace("-", "_")


def _switch(*names: str, help: str, default: bool = False, opposite: str = "") -> Option:  # noqa: A002
    return Option(names, help, default=default, opposite=opposite)


def _value(*names: str, metavar: str, help: str, kind: Kind = str, default: Any = None) -> Option:  # noqa: A002, ANN401
    return Option(names, help, metavar, kind=kind, default=default)


def _many(*names: str, metavar: str, help: str) -> Option:  # noqa: A002
    return Option(names, help, metavar, many=True, default=())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        msg = f"{text!r} is not a number"
        raise ValueError(msg) from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        msg = f"{text!r} is not a whole number"
        raise ValueError(msg) from None


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        msg = f"{text} is not a number of seconds above 0"
        raise ValueError(msg)
    return value


def _score(text: str) -> int:
    value = _whole(text)
    if not -1000 <= value <= 1000:  # noqa: PLR2004 - proc_pid_oom_score_adj(5)
        msg = f"{text} is not between -1000 and 1000"
        raise ValueError(msg)
    return value


def _pull(text: str) -> str:
    if text not in ("missing", "always", "never"):
        msg = f"{text} is none of missing, always and never"
        raise ValueError(msg)
    return text


PROGRAM = (
    _value("--root", metavar="DIR", help="The store; /var/lib/pycontainer unless given."),
    _switch("--debug", help="Show where an error comes from."),
    _switch("--version", help="Show the version."),
)
FOREGROUND = (
    _switch("--sig-proxy", default=True, opposite="--no-sig-proxy", help="Hand signals on to it (default)."),
    _value("--timeout", kind=_seconds, metavar="SECONDS", help="Kill it after so long."),
)
IDENTITY = (
    _value("--name", metavar="NAME", help="What it is called; a random name when not given."),
    _many("-l", "--label", metavar="NAME[=VALUE]", help="Label it."),
    _value("--cidfile", metavar="FILE", help="Write its id to a new file."),
)
CREATE = (
    *IDENTITY,
    _value("--pull", kind=_pull, default="missing", metavar="missing|always|never", help="When to pull (missing)."),
    _switch("-q", "--quiet", help="Show nothing of a pull."),
    _switch("-i", "--interactive", help="Give it the standard input."),
    _switch("-t", "--tty", help="Give it a terminal."),
    _value("--entrypoint", metavar="PROGRAM", help="Run this instead of the image's entrypoint."),
    _many("-e", "--env", metavar="NAME[=VALUE]", help="Set an environment variable, or hand it on."),
    _many("--env-file", metavar="FILE", help="Read environment variables from a file."),
    _value("-w", "--workdir", metavar="DIR", help="Start in this directory."),
    _value("-u", "--user", metavar="NAME|UID[:GROUP|GID]", help="Run as this user."),
    _many("--group-add", metavar="GROUP", help="Add a supplementary group."),
    _switch("--init", help="Run an init as PID 1, which reaps orphans and hands signals on."),
    _many("--ulimit", metavar="NAME=SOFT[:HARD]", help="Limit a resource of the process, as nofile=1024."),
    _value("--oom-score-adj", kind=_score, metavar="N", help="Prefer or spare it when memory ends."),
    _value("-h", "--hostname", metavar="NAME", help="Its host name."),
    _value("--domainname", metavar="NAME", help="Its NIS domain name."),
    _many("--add-host", metavar="NAME:ADDRESS", help="Add a line to /etc/hosts."),
    _many("--dns", metavar="ADDRESS", help="Add a name server to /etc/resolv.conf."),
    _value("--network", "--net", default="none", metavar="none|host", help="none (default): only loopback."),
    _value("--pid", metavar="host", help="Show it the host's processes."),
    _value("--ipc", metavar="private|host", help="Share System V IPC and message queues with the host."),
    _value("--uts", metavar="host", help="Share the host's name."),
    _value("--cgroupns", metavar="private|host", help="Show it the host's control groups."),
    _many("--userns", metavar="INSIDE:OUTSIDE:COUNT", help="Map ids by a user namespace; 'host' (default): none."),
    _many("--sysctl", metavar="NAME=VALUE", help="Set a kernel parameter of its namespaces."),
    _many("-v", "--volume", metavar="SOURCE:TARGET[:OPTIONS]", help="Show it a file or directory of the host."),
    _many("--mount", metavar="type=bind|tmpfs,…", help="The same, by names: source, target, readonly, tmpfs-size…"),
    _many("--tmpfs", metavar="TARGET[:OPTIONS]", help="Give it a directory in memory."),
    _switch("--read-only", help="Make its root read-only."),
    _value("--shm-size", default="64m", metavar="SIZE", help="Size of /dev/shm (64m)."),
    _many("--device", metavar="SOURCE[:TARGET][:rwm]", help="Give it a device of the host."),
    _value("-m", "--memory", metavar="SIZE", help="Limit memory, as 256m."),
    _value("--memory-swap", metavar="SIZE", help="Limit memory and swap together; -1: swap without limit."),
    _value("--memory-reservation", metavar="SIZE", help="Soft limit of memory."),
    _value("--cpus", kind=_number, metavar="N", help="Limit processors, as 1.5."),
    _value("-c", "--cpu-shares", kind=_whole, metavar="N", help="Relative weight for processors (1024)."),
    _value("--cpuset-cpus", metavar="LIST", help="Which processors, as 0-2,4."),
    _value("--cpuset-mems", metavar="LIST", help="Which memory nodes."),
    _value("--pids-limit", kind=_whole, metavar="N", help="Limit processes; -1: no limit."),
    _value("--blkio-weight", kind=_whole, metavar="N", help="Relative weight for disks, 10 to 1000."),
    _many("--cap-add", metavar="CAPABILITY", help="Add a capability, or ALL."),
    _many("--cap-drop", metavar="CAPABILITY", help="Take a capability away, or ALL."),
    _switch("--privileged", help="All capabilities and devices, nothing filtered: no isolation."),
    _many("--security-opt", metavar="OPTION", help="seccomp=FILE, seccomp=unconfined, no-new-privileges."),
)
RUN = (
    _switch("--rm", help="Remove it at the end."),
    _switch("-d", "--detach", help="Not in this version."),
    *FOREGROUND,
    *CREATE,
)


def read(arguments: Sequence[str], options: Sequence[Option]) -> tuple[dict[str, Any], list[str]] | None:
    """Return the values by key and what follows the flags; None when click has to say what is wrong, or help.

    Flags end at the first word that is none. ``-it``, ``-eA=1``, ``--env=A=1`` and ``--`` are understood.

    >>> given, rest = read(["-it", "-eA=1", "--rm", "image", "sh", "-c"], RUN) or ({}, [])
    >>> given["tty"], given["env"], rest
    (True, ('A=1',), ['image', 'sh', '-c'])
    """
    by_name = {name: option for option in options for name in option.names}
    by_name |= {option.opposite: option for option in options if option.opposite}
    given = {option.key: option.default for option in options}
    words = list(reversed(arguments))
    while words and words[-1].startswith("-") and words[-1] != "-":
        word = words.pop()
        if word == "--":
            break
        name, equals, value = word.partition("=") if word.startswith("--") else _short(word)
        option = by_name.get(name)
        if option is None or not _is_set(option, name, value if equals else None, words, given):
            return None
    return given, words[::-1]


def _short(word: str) -> tuple[str, str, str]:
    return word[:2], word[2:], word[2:]


def _is_set(option: Option, name: str, value: str | None, words: list[str], given: dict[str, Any]) -> bool:
    """Note one flag; return whether it was understood."""
    if not option.metavar:
        if value is not None and name.startswith("--"):
            return False
        if value is not None:
            if value.startswith("-"):
                return False
            words.append(f"-{value}")  # the rest of a cluster: -it
        given[option.key] = name != option.opposite
        return True
    if value is None:
        if not words:
            return False
        value = words.pop()
    elif not name.startswith("--"):
        value = value.removeprefix("=")  # -m=1g is -m 1g
    try:
        made = option.kind(value)
    except ValueError:
        return False
    given[option.key] = (*given[option.key], made) if option.many else made
    return True
