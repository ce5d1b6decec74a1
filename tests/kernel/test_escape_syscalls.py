"""System calls that could lead out: each is refused, refused again without seccomp, and works when nothing protects."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from tests.kernel.attacks.jail import PRIVILEGED

if TYPE_CHECKING:
    from tests.kernel.attacks.jail import Jail

EPERM, ENOSYS, EINVAL, ENOENT, EBADF = errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.ENOENT, errno.EBADF
UNCONFINED: dict[str, Any] = {"seccomp": "unconfined"}
NEWNS, NEWUSER, NEWNET, NEWPID, NEWCGROUP = 0x20000, 0x10000000, 0x40000000, 0x20000000, 0x02000000
SIGCHLD = 17
MS_BIND, MS_REMOUNT, MNT_DETACH = 4096, 32, 2
AT_FDCWD, OPEN_TREE_CLONE = -100, 1
AF_ALG, AF_VSOCK = 38, 40


@attrs.frozen
class Attack:
    """One way out.

    Attributes:
        name: what it tries.
        words: what the attack program is told.
        then: its errno when nothing protects; 0 means it works, another that the kernel got past the permission and
            only then found what we asked for on purpose to be nonsense: it is not to be done for real.
    """

    name: str
    words: str
    then: int = 0

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


# What needs a capability that a container has not: the filter refuses it, and without the filter the kernel does.
ATTACKS = (
    Attack("mount a file system", "call mount @tmpfs @/tmp @tmpfs 0 0"),
    Attack("mount a proc without masks", "call mount @proc @/tmp @proc 0 0"),
    Attack("mount the control groups", "call mount @cgroup @/tmp @cgroup 0 @devices"),
    Attack("bind mount", f"call mount @/etc @/tmp @none {MS_BIND} 0"),
    Attack("remount the kernel's knobs writable", f"call mount @none @/sys @none {MS_BIND | MS_REMOUNT} 0"),
    Attack("take a mask away", f"call umount2 @/dev/shm {MNT_DETACH}"),
    Attack("pivot_root", "call pivot_root @/ @/tmp", errno.EBUSY),
    Attack("fsopen", "call fsopen @proc 0"),
    Attack("fspick", f"call fspick {AT_FDCWD} @/tmp 0", EINVAL),
    Attack("open_tree", f"call open_tree {AT_FDCWD} @/etc {OPEN_TREE_CLONE}"),
    Attack("move_mount", f"call move_mount {AT_FDCWD} @/dev/shm {AT_FDCWD} @/tmp 0"),
    Attack("mount_setattr", f"call mount_setattr {AT_FDCWD} @/sys 0 z 32"),
    Attack("unshare the mounts", f"call unshare {NEWNS}"),
    Attack("unshare the network", f"call unshare {NEWNET}"),
    Attack("unshare the control groups", f"call unshare {NEWCGROUP}"),
    Attack("unshare the processes", f"call unshare {NEWPID}"),
    Attack("clone with new mounts", f"call clone {NEWNS | SIGCHLD} 0 0 0 0"),
    Attack("sethostname", "call sethostname @owned 5"),
    Attack("setdomainname", "call setdomainname @owned 5"),
    Attack("load a module", "call init_module z 0 @", errno.ENOEXEC),
    Attack("load a module from a file", "call finit_module -1 @ 0", EBADF),
    Attack("unload a module", "call delete_module @no-such-module 0", ENOENT),
    Attack("load another kernel", "call kexec_load 0 0 0 65535", EINVAL),
    Attack("reboot", "call reboot 0 0 0 0", EINVAL),
    Attack("swap on a file", "call swapon @/no/such 0", ENOENT),
    Attack("swap off", "call swapoff @/no/such", ENOENT),
    Attack("account processes", "call acct @/no/such", ENOENT),
    Attack("read the log of the kernel", "call syslog 3 z 4096"),
    Attack("iopl", "call iopl 3"),
    Attack("ioperm", "call ioperm 128 1 1"),
    Attack("watch the file system", "call fanotify_init 0 0"),
    Attack("bpf", "bpf"),
    Attack("perf_event_open", "perf"),
    Attack("vhangup", "call vhangup"),
)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_refused_by_the_filter_and_by_capabilities(jail: Jail, attack: Attack) -> None:
    words = attack.words.split(" ")
    assert jail.attack(*words) in (EPERM, ENOSYS)
    bare = jail.attack(*words, **UNCONFINED)
    if bare == ENOSYS:
        pytest.skip("this kernel is built without that call: only the filter's refusal could be shown")
    assert bare in (EPERM, errno.EACCES)
    assert jail.attack(*words, **PRIVILEGED) == attack.then


# What anybody may do and the filter alone refuses: large or young parts of the kernel, and ways around namespaces.
FILTERED = (
    Attack("unshare a user namespace", f"call unshare {NEWUSER}"),
    Attack("unshare user and mount namespaces", f"call unshare {NEWUSER | NEWNS}"),
    Attack("unshare user and cgroup namespaces", f"call unshare {NEWUSER | NEWCGROUP}"),
    Attack("clone a user namespace", f"call clone {NEWUSER | SIGCHLD} 0 0 0 0"),
    Attack("clone3 a user namespace", f"clone3 {NEWUSER}"),
    Attack("keyctl", "call keyctl 0 -3 1"),
    Attack("add_key", "call add_key @user @escape @payload 7 -3"),
    Attack("request_key", "call request_key @user @escape 0 -3", errno.ENOKEY),
    Attack("userfaultfd", "call userfaultfd 1"),
    Attack("io_uring_setup", "call io_uring_setup 1 z"),
    Attack("a socket of the kernel's ciphers", f"socket {AF_ALG} 5"),
    Attack("a socket to the hypervisor", f"socket {AF_VSOCK} 1"),
    Attack("x32 system calls", f"call {0x40000000 + 39}"),
)


@pytest.mark.parametrize("attack", FILTERED, ids=str)
def test_refused_by_the_filter(jail: Jail, attack: Attack) -> None:
    words = attack.words.split(" ")
    assert jail.attack(*words) in (EPERM, ENOSYS)
    bare = jail.attack(*words, **UNCONFINED)
    if bare in (ENOSYS, errno.EAFNOSUPPORT):
        pytest.skip("this kernel is built without it: only the filter's refusal could be shown")
    assert bare == attack.then


def test_clone3_is_told_to_be_missing_so_that_libraries_fall_back_to_clone(jail: Jail) -> None:
    assert jail.attack("clone3", 0) == ENOSYS
    assert jail.attack("clone3", 0, **UNCONFINED) == 0


def test_a_system_call_that_nobody_knows_yet_is_told_to_be_missing(jail: Jail) -> None:
    assert jail.attack("call", 4000) == ENOSYS


def test_a_capability_that_is_given_opens_what_belongs_to_it_and_nothing_else(jail: Jail) -> None:
    admin: dict[str, Any] = {"cap_add": ["SYS_ADMIN"]}
    assert jail.attack("call", "mount", "@tmpfs", "@/tmp", "@tmpfs", 0, 0, **admin) == 0
    assert jail.attack("call", "reboot", 0, 0, 0, 0, **admin) in (EPERM, ENOSYS)
    assert jail.attack("call", "syslog", 3, "z", 4096, cap_add=["SYSLOG"]) == 0
    assert jail.attack("call", "mount", "@tmpfs", "@/tmp", "@tmpfs", 0, 0, cap_add=["SYSLOG"]) == EPERM


def test_joining_namespaces_of_other_processes_is_refused(jail: Jail) -> None:
    """Nothing is gained by the own ones; the host's cannot even be named."""
    fd = "exec 9</proc/self/ns/net; exec /bin/attack call setns 9 0"
    assert jail.sh(fd) == str(EPERM)
    assert jail.sh(fd, **UNCONFINED) == str(EPERM)
    assert jail.sh(fd, **PRIVILEGED) == "0"


def test_a_chroot_cannot_be_left_for_the_host(jail: Jail) -> None:
    """Chroot is allowed, as in docker; behind its breakout lies the container's root, for there is no other."""
    code, seen = jail.told("breakout", "/etc/os-release")
    assert (code, seen) == (0, "ID=busybox\nNAME=BusyBox\n")
