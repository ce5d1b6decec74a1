"""The examination: what this host lacks, what that costs, and what to do about it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pycontainer.doctor import facts
from pycontainer.doctor.groups import (
    CONTROLLERS,
    check_controller,
    check_counts,
    check_devices,
    check_swap,
    check_version,
)
from pycontainer.doctor.kernel import PROBED, check_wanted
from pycontainer.doctor.probes import probe
from pycontainer.doctor.report import Check, Report
from pycontainer.runtime import capabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["check", "hint"]

_GIB = 1024**3
_LITTLE_SPACE = _GIB
_USABLE_RANGE = 65536  # ids: what images of distributions use


# Rights that starting a container takes, and what is lost without each.
_RIGHTS = {
    "CAP_SYS_ADMIN": "containers cannot be started",
    "CAP_SETUID": "containers run as root only",
    "CAP_SETGID": "containers run as root only",
    "CAP_SETPCAP": "capabilities cannot be taken from containers",
    "CAP_CHOWN": "layers cannot be unpacked",
    "CAP_DAC_OVERRIDE": "layers cannot be unpacked",
    "CAP_FOWNER": "layers cannot be unpacked",
    "CAP_MKNOD": "devices cannot be made",
    "CAP_SYS_CHROOT": "containers cannot enter their root",
    "CAP_NET_ADMIN": "networks of containers cannot be set up",
    "CAP_KILL": "containers of other users cannot be stopped",
}


def check(root: str | os.PathLike[str] | None = None) -> Report:
    """Examine this host; under 0.3 s, most of it probes that run in child processes and leave nothing behind.

    Args:
        root: the store; the engine's default when not given.
    """
    store = facts.store(facts.store_root(root))
    security = facts.security()
    groups = facts.cgroups()
    checks = [
        _kernel(),
        _rights(security),
        *(check_wanted(wanted, store.root) for wanted in PROBED),
        _user_namespaces(),
        _subordinate_ids(),
        _space(store),
        check_version(groups),
        *(check_controller(name, groups) for name in CONTROLLERS),
        check_swap(groups),
        check_counts(groups),
        check_devices(groups),
        _libseccomp(security),
        _modules(security),
        *_tools(),
    ]
    return Report(tuple(checks))


def hint(subject: str, root: str | os.PathLike[str] | None = None) -> str:
    """Return what is wrong with one thing and what to do, for the text of an error; ``""`` when nothing is.

    Args:
        subject: name of a check (``"overlay"``), or of a controller of cgroups (``"memory"``).
        root: the store; the engine's default when not given.

    Raises:
        ValueError: there is no such check.
    """
    wanted = {entry.name: entry for entry in PROBED}.get(subject)
    simple: dict[str, Callable[[], Check]] = {
        "rights": lambda: _rights(facts.security()),
        "user namespace": _user_namespaces,
        "subordinate ids": _subordinate_ids,
        "store": lambda: _space(facts.store(facts.store_root(root))),
        "devices": lambda: check_devices(facts.cgroups()),
        "swap": lambda: check_swap(facts.cgroups()),
    }
    if wanted is not None:
        result = check_wanted(wanted, str(facts.store_root(root)))
    elif subject in CONTROLLERS:
        result = check_controller(subject, facts.cgroups())
    elif subject in simple:
        result = simple[subject]()
    else:
        names = ", ".join(sorted([*simple, *CONTROLLERS, *(entry.name for entry in PROBED)]))
        msg = f"no check is called {subject!r}; there are: {names}"
        raise ValueError(msg)
    return "" if result.status == "ok" else f"{result.found}; {result.remedy}" if result.remedy else result.found


def _kernel() -> Check:
    machine = os.uname()
    found = f"{machine.sysname} {machine.release} on {machine.machine}"
    if machine.machine in {"x86_64", "aarch64"}:
        return Check(name="kernel", status="ok", found=found)
    return Check(
        name="kernel",
        status="missing",
        found=found,
        costs="the C core does not know this architecture",
        remedy="x86_64 or aarch64",
    )


def _rights(security: facts.Security) -> Check:
    held = set(capabilities.from_mask(security.capabilities))
    lost = {name: cost for name, cost in _RIGHTS.items() if name not in held}
    if not lost:
        return Check(name="rights", status="ok", found=f"uid {os.geteuid()}, with every capability that is needed")
    return Check(
        name="rights",
        status="missing" if "CAP_SYS_ADMIN" in lost else "warning",
        found=f"uid {os.geteuid()}, without {', '.join(lost)}",
        costs="; ".join(dict.fromkeys(lost.values())),
        remedy="run as root, and not inside a container that drops capabilities",
    )


def _user_namespaces() -> Check:
    costs = "containers with ids of their own (userns=...)"
    outcome = probe("namespace-user")
    if outcome:
        mounts = probe("mount-in-user-namespace")
        if mounts:
            return Check(name="user namespace", status="ok", found="works, with mounts in it")
        return Check(
            name="user namespace",
            status="warning",
            found=f"can be made but is without rights: {mounts.why}",
            costs=costs,
            remedy="sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, "
            "or an AppArmor profile with the rule 'userns,'",
        )
    if facts.sysctl("kernel.unprivileged_userns_clone") == "0":
        remedy = "sysctl -w kernel.unprivileged_userns_clone=1"
    elif outcome.errno == errno.ENOSPC:
        remedy = "sysctl -w user.max_user_namespaces=15000"
    else:
        remedy = "a kernel with CONFIG_USER_NS; inside another container, a seccomp profile that allows unshare"
    return Check(name="user namespace", status="warning", found=outcome.why, costs=costs, remedy=remedy)


def _subordinate_ids() -> Check:
    name, ids = "subordinate ids", facts.subordinate_ids()
    if os.geteuid() == 0:
        return Check(name=name, status="ok", found="not needed: root maps any ids")
    uids, gids = (max((count for _, count in ranges), default=0) for ranges in (ids.uids, ids.gids))
    missing = [tool for tool in ("newuidmap", "newgidmap") if not facts.tool(tool)]
    if min(uids, gids) >= _USABLE_RANGE and not missing:
        return Check(name=name, status="ok", found=f"{uids} user ids, {gids} group ids")
    return Check(
        name=name,
        status="warning",
        found=f"{uids} user ids, {gids} group ids" + (f", without {' and '.join(missing)}" if missing else ""),
        costs="containers of plain users have one id only",
        remedy="apt-get install uidmap"
        if missing
        else "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER",
    )


def _space(store: facts.StoreInfo) -> Check:
    found = f"{store.root} on {store.filesystem} at {store.mount_point}, {store.free / _GIB:.1f} GiB free"
    if "ro" in store.options.split(","):
        return Check(
            name="store",
            status="missing",
            found=f"{found}, mounted read-only",
            costs="no image can be stored",
            remedy=f"mount -o remount,rw {store.mount_point}, or another place with --root",
        )
    if store.free < _LITTLE_SPACE:
        return Check(
            name="store",
            status="warning",
            found=found,
            costs="images may not fit",
            remedy="make room, or another place with --root",
        )
    return Check(name="store", status="ok", found=found)


def _libseccomp(security: facts.Security) -> Check:
    if security.libseccomp:
        return Check(name="libseccomp", status="ok", found=f"version {security.libseccomp}")
    return Check(
        name="libseccomp",
        status="missing",
        found="libseccomp.so.2 cannot be opened",
        costs="filters of system calls cannot be compiled; only seccomp='unconfined' works",
        remedy="apt-get install libseccomp2",
    )


def _modules(security: facts.Security) -> Check:
    found = [f"Landlock ABI {security.landlock}"] if security.landlock else []
    if security.apparmor:
        found.append(f"AppArmor, this process is {security.apparmor_profile or 'unconfined'}")
    if security.selinux:
        found.append(f"SELinux, {security.selinux}")
    return Check(name="security modules", status="ok", found="; ".join(found) or "none")


def _tools() -> Iterator[Check]:
    """Yield a check for each program that some functions or tests run."""
    for tool, package, costs in (
        ("nft", "nftables", "networks of containers"),
        ("qemu-system-x86_64", "qemu-system-x86", "the project's tests of cgroup version 2"),
        ("mmdebstrap", "mmdebstrap", "the project's tests with a real Debian"),
    ):
        path = facts.tool(tool)
        if path:
            yield Check(name=tool, status="ok", found=path)
        else:
            yield Check(
                name=tool, status="warning", found="not installed", costs=costs, remedy=f"apt-get install {package}"
            )
