"""Which system calls a container may make: the default profile as data, and profiles in Docker's JSON form.

Both say under which conditions a rule holds (capabilities, machine, kernel); for one container they come down to the
``seccomp`` object of the OCI runtime specification (config-linux.md, "Seccomp"), which knows no conditions.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pycontainer.errors import NotFound
from pycontainer.runtime import capabilities as caps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pycontainer.oci.runtime import Seccomp, SeccompAction, SeccompOperator

__all__ = ["RULES", "SUB_ARCHITECTURES", "Rule", "default_profile", "fingerprint", "host_kernel", "load_profile"]

ALLOW = "SCMP_ACT_ALLOW"
ERRNO = "SCMP_ACT_ERRNO"
_EPERM = 1
_ENOSYS = 38

# Any CLONE_NEW* flag that makes a namespace, except CLONE_NEWTIME, which clone(2) cannot take.
_CLONE_NAMESPACES = 0x7E020000
_AF_ALG = 38
_AF_VSOCK = 40
_PER_LINUX32 = 0x0008
_UNAME26 = 0x0020000
_PERSONALITY_QUERY = 0xFFFFFFFF

# uname -m -> the name in Docker's "arches" (libseccomp's Go binding), and the one of the OCI specification.
_MACHINES: dict[str, tuple[str, str]] = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "i386": ("x86", "SCMP_ARCH_X86"),
    "i486": ("x86", "SCMP_ARCH_X86"),
    "i586": ("x86", "SCMP_ARCH_X86"),
    "i686": ("x86", "SCMP_ARCH_X86"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv6l": ("arm", "SCMP_ARCH_ARM"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "armv8l": ("arm", "SCMP_ARCH_ARM"),
    "loongarch64": ("loong64", "SCMP_ARCH_LOONGARCH64"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
}

# The other system call tables that a kernel of that machine serves.
SUB_ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "SCMP_ARCH_X86_64": ("SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "SCMP_ARCH_AARCH64": ("SCMP_ARCH_ARM",),
    "SCMP_ARCH_S390X": ("SCMP_ARCH_S390",),
    "SCMP_ARCH_RISCV64": (),
    "SCMP_ARCH_LOONGARCH64": (),
}


class Condition(NamedTuple):
    """When a rule holds; every part that is not empty must be met.

    Args:
        caps: capabilities.
        machines: machines, by the names in Docker's profiles (``amd64``, ``arm64``, …).
        kernel: a version of the kernel as (major, minor): this one or newer.
    """

    caps: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()
    kernel: tuple[int, int] | None = None


class Rule(NamedTuple):
    """What to do with some system calls, under conditions.

    Args:
        names: the system calls.
        action: what happens, ``SCMP_ACT_*``.
        errno: the error number that ``SCMP_ACT_ERRNO`` returns; None for the default.
        args: (index, operator, value, second value), all of which must hold.
        includes: the rule holds only when this is met: all of ``caps``, one of ``machines``.
        excludes: the rule does not hold when any part of this is met: one of ``caps``, one of ``machines``.
    """

    names: tuple[str, ...]
    action: str = ALLOW
    errno: int | None = None
    args: tuple[tuple[int, str, int, int], ...] = ()
    includes: Condition = Condition()
    excludes: Condition = Condition()

    def holds(self, capabilities: frozenset[str], machine: str, kernel: tuple[int, int]) -> bool:
        """Return whether the rule holds for a container with these capabilities on such a host."""
        yes, no = self.includes, self.excludes
        if any(name in capabilities for name in no.caps) or machine in no.machines:
            return False
        if no.kernel is not None and kernel >= no.kernel:
            return False
        if yes.machines and machine not in yes.machines:
            return False
        if yes.kernel is not None and kernel < yes.kernel:
            return False
        return all(name in capabilities for name in yes.caps)


# ── the default profile ───────────────────────────────────────────────────────────────────────────────────────────

_FILES = """
    access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
    fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd
    getdents getdents64 inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl lchown lchown32 link linkat
    _llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2
    pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2
    rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee
    truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev
"""
_MOUNT_QUERIES = "listmount statmount"
_EXTENDED_ATTRIBUTES = """
    fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
    lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
"""
_POLLING = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
    eventfd2 _newselect poll ppoll ppoll_time64 pselect6 pselect6_time64 select
"""
_ASYNCHRONOUS_IO = """
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
"""
_MEMORY = """
    brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2
    mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
    process_mrelease remap_file_pages
"""
_PROCESSES = """
    execve execveat exit exit_group fork getcpu getpgid getpgrp getpid getppid getpriority getrlimit get_robust_list
    getrusage getsid get_thread_area gettid ioprio_get ioprio_set kill pause pidfd_open pidfd_send_signal prctl
    prlimit64 restart_syscall rseq setpgid setpriority setrlimit set_robust_list setsid set_thread_area set_tid_address
    sysinfo times ugetrlimit uname vfork wait4 waitid waitpid
"""
_SCHEDULING = """
    sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield
"""
_FUTEXES = """
    futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
"""
_SIGNALS = """
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigprocmask sigreturn tgkill tkill
"""
_IDENTITY = """
    capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32
    getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32
"""
_TIME = """
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 timer_getoverrun timer_gettime
    timer_gettime64 timer_settime timer_settime64
"""
_SOCKETS = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg
    send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
"""
_MESSAGES_AND_SEMAPHORES = """
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
    mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
"""
_SELF_RESTRICTION = """
    landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp
"""
_MACHINE_QUERIES = "getrandom riscv_hwprobe uretprobe"
_ADMINISTRATION = """
    bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
    lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname
    sethostname setns syslog umount umount2 unshare
"""


def _words(*groups: str) -> tuple[str, ...]:
    return tuple(word for group in groups for word in group.split())


def _with(capability: str, names: str) -> Rule:
    return Rule(names=_words(names), includes=Condition(caps=(capability,)))


def _on(machines: str, names: str) -> Rule:
    return Rule(names=_words(names), includes=Condition(machines=_words(machines)))


_ALWAYS = Rule(
    names=_words(
        _FILES,
        _MOUNT_QUERIES,
        _EXTENDED_ATTRIBUTES,
        _POLLING,
        _ASYNCHRONOUS_IO,
        _MEMORY,
        _PROCESSES,
        _SCHEDULING,
        _FUTEXES,
        _SIGNALS,
        _IDENTITY,
        _TIME,
        _SOCKETS,
        _MESSAGES_AND_SEMAPHORES,
        _SELF_RESTRICTION,
        _MACHINE_QUERIES,
    )
)

# A socket of any family except AF_ALG (the kernel's ciphers, a large attack surface) and AF_VSOCK (it reaches the
# hypervisor and has no network namespaces).
_SOCKET_FAMILIES = (
    ("SCMP_CMP_LT", _AF_ALG),
    ("SCMP_CMP_EQ", _AF_ALG + 1),
    ("SCMP_CMP_GT", _AF_VSOCK),
)
# Not the ones that weaken the address space: ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC and the like.
_PERSONALITIES = (0, _PER_LINUX32, _UNAME26, _UNAME26 | _PER_LINUX32, _PERSONALITY_QUERY)

RULES: tuple[Rule, ...] = (
    _ALWAYS,
    # Before 4.8, ptrace could be used to get around a seccomp filter.
    Rule(names=("process_vm_readv", "process_vm_writev", "ptrace"), includes=Condition(kernel=(4, 8))),
    *(Rule(names=("socket",), args=((0, op, family, 0),)) for op, family in _SOCKET_FAMILIES),
    *(Rule(names=("personality",), args=((0, "SCMP_CMP_EQ", persona, 0),)) for persona in _PERSONALITIES),
    _on("amd64 x32", "arch_prctl"),
    _on("amd64 x32 x86", "modify_ldt"),
    _on("arm arm64", "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"),
    _on("ppc64le", "swapcontext sync_file_range2"),
    _on("riscv64", "riscv_flush_icache"),
    _on("s390 s390x", "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    # clone(2) without new namespaces; the flags are its first argument, on s390 the second.
    Rule(
        names=("clone",),
        args=((0, "SCMP_CMP_MASKED_EQ", _CLONE_NAMESPACES, 0),),
        excludes=Condition(caps=("CAP_SYS_ADMIN",), machines=("s390", "s390x")),
    ),
    Rule(
        names=("clone",),
        args=((1, "SCMP_CMP_MASKED_EQ", _CLONE_NAMESPACES, 0),),
        includes=Condition(machines=("s390", "s390x")),
        excludes=Condition(caps=("CAP_SYS_ADMIN",)),
    ),
    # The flags of clone3 are behind a pointer, which a filter cannot follow: with ENOSYS the C library takes clone.
    Rule(names=("clone3",), action=ERRNO, errno=_ENOSYS, excludes=Condition(caps=("CAP_SYS_ADMIN",))),
    _with("CAP_BPF", "bpf"),
    _with("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    _with("CAP_PERFMON", "perf_event_open"),
    _with("CAP_SYSLOG", "syslog"),
    _with("CAP_SYS_ADMIN", _ADMINISTRATION),
    _with("CAP_SYS_BOOT", "reboot"),
    _with("CAP_SYS_CHROOT", "chroot"),
    _with("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    _with("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    _with("CAP_SYS_PACCT", "acct"),
    _with("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    _with("CAP_SYS_RAWIO", "ioperm iopl"),
    _with("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    _with("CAP_SYS_TTY_CONFIG", "vhangup"),
)

# All that the default profile can depend on, apart from the host.
RELEVANT_CAPABILITIES: frozenset[str] = frozenset(
    name for rule in RULES for condition in (rule.includes, rule.excludes) for name in condition.caps
)


def default_profile(
    capabilities: Iterable[str], *, machine: str | None = None, kernel: tuple[int, int] | None = None
) -> Seccomp:
    """Return the default profile for a container with these capabilities: an allow-list, the rest gets ``EPERM``.

    Args:
        capabilities: the bounding set of the container, names as in `capabilities.NAMES`.
        machine: as ``uname -m`` says it; this host's by default.
        kernel: (major, minor); this host's by default.
    """
    machine = machine or os.uname().machine
    arch, native = _MACHINES.get(machine, ("", ""))
    return _resolve(
        RULES,
        capabilities,
        arch=arch,
        kernel=kernel or host_kernel(),
        default_action=ERRNO,
        default_errno_ret=_EPERM,
        architectures=(native, *SUB_ARCHITECTURES[native]) if native in SUB_ARCHITECTURES else (),
    )


@functools.cache
def fingerprint() -> str:
    """Return what changes when the default profile does: part of the name of its compiled form on disk."""
    return hashlib.sha256(repr((RULES, SUB_ARCHITECTURES)).encode()).hexdigest()


@functools.cache
def host_kernel() -> tuple[int, int]:
    """Return (major, minor) of the running kernel, of ``uname -r``."""
    return _version(os.uname().release)


def _version(text: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    digits = "".join(char if char.isdigit() else " " for char in rest).split()
    if not major.isdigit() or not digits or not rest[0].isdigit():
        raise ValueError(f"{text!r} is not a kernel version such as 4.8")
    return int(major), int(digits[0])


def _resolve(
    rules: Iterable[Rule],
    capabilities: Iterable[str],
    *,
    arch: str,
    kernel: tuple[int, int],
    **rest: Any,  # noqa: ANN401 - the other attributes of Seccomp
) -> Seccomp:
    """Keep the rules whose conditions hold, in the form of the OCI specification."""
    from pycontainer.oci.runtime import Seccomp, SyscallArg, SyscallRule

    held = frozenset(capabilities)
    syscalls = tuple(
        SyscallRule(
            names=rule.names,
            action=cast("SeccompAction", rule.action),
            errno_ret=rule.errno,
            args=tuple(
                SyscallArg(index=index, value=value, value_two=value_two, op=cast("SeccompOperator", op))
                for index, op, value, value_two in rule.args
            ),
        )
        for rule in rules
        if rule.holds(held, arch, kernel)
    )
    return Seccomp(syscalls=syscalls, **rest)


# ── profiles in Docker's JSON form ────────────────────────────────────────────────────────────────────────────────


def load_profile(
    source: str | os.PathLike[str] | Mapping[str, Any],
    capabilities: Iterable[str],
    *,
    machine: str | None = None,
    kernel: tuple[int, int] | None = None,
) -> Seccomp:
    """Return a profile written as Docker writes them (``docker run --security-opt seccomp=FILE``).

    That is the ``seccomp`` object of the OCI specification, with ``archMap`` in place of ``architectures`` if wanted,
    and with ``includes`` and ``excludes`` (``caps``, ``arches``, ``minKernel``) on each rule.

    Args:
        source: the path of the JSON file, or the document itself.
        capabilities: the bounding set of the container.
        machine: as ``uname -m`` says it; this host's by default.
        kernel: (major, minor); this host's by default.

    Raises:
        NotFound: there is no such file.
        ValueError: it is not JSON, or not a profile; the text says which rule is wrong and why.
    """
    if isinstance(source, Mapping):
        what, document = "the seccomp profile", source
    else:
        what, document = f"the seccomp profile {os.fspath(source)}", _read_json(Path(source))
    arch, native = _MACHINES.get(machine or os.uname().machine, ("", ""))
    if not document.get("defaultAction"):
        raise ValueError(f"{what} has no defaultAction: say what happens to system calls that no rule names")
    try:
        rules = [_parse_rule(number, rule) for number, rule in enumerate(document.get("syscalls") or ())]
        architectures = _architectures(document, native)
        return _resolve(
            rules,
            capabilities,
            arch=arch,
            kernel=kernel or host_kernel(),
            default_action=document["defaultAction"],
            default_errno_ret=document.get("defaultErrnoRet"),
            architectures=architectures,
            flags=tuple(document.get("flags") or ()),
            listener_path=document.get("listenerPath") or None,
            listener_metadata=document.get("listenerMetadata") or None,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{what} is not a profile: {error}") from error


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"cannot read the seccomp profile {path}: there is no such file") from error
    except ValueError as error:
        raise ValueError(f"cannot read the seccomp profile {path}: it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"cannot read the seccomp profile {path}: it is JSON, but not an object")  # noqa: TRY004
    return document


def _architectures(document: Mapping[str, Any], native: str) -> tuple[str, ...]:
    given = tuple(document.get("architectures") or ())
    table = document.get("archMap") or ()
    if given and table:
        raise ValueError("use either architectures or archMap, not both")
    for entry in table:
        if entry["architecture"] == native:
            return (native, *(entry.get("subArchitectures") or ()))
    return given


def _parse_rule(number: int, rule: Mapping[str, Any]) -> Rule:
    where = f"rule {number} of syscalls"
    names = tuple(rule.get("names") or ())
    if rule.get("name"):
        if names:
            raise ValueError(f"{where} has both name and names: use names")
        names = (rule["name"],)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{where} names no system calls: give it a list of names")
    if not isinstance(rule.get("action"), str):
        raise ValueError(f"{where} ({names[0]}, …) has no action")  # noqa: TRY004 - of a document
    args = tuple(
        (int(arg["index"]), str(arg["op"]), int(arg.get("value", 0)), int(arg.get("valueTwo", 0)))
        for arg in rule.get("args") or ()
    )
    return Rule(
        names=names,
        action=rule["action"],
        errno=rule.get("errnoRet"),
        args=args,
        includes=_parse_condition(where, rule.get("includes")),
        excludes=_parse_condition(where, rule.get("excludes")),
    )


def _parse_condition(where: str, condition: Mapping[str, Any] | None) -> Condition:
    if not condition:
        return Condition()
    for name in condition.get("caps") or ():
        # A condition on a misspelt capability would never hold, or always.
        if name not in caps.NUMBERS:
            raise ValueError(f"{where} depends on {name!r}: {_why_no_capability(name)}")
    minimum = condition.get("minKernel")
    return Condition(
        caps=tuple(condition.get("caps") or ()),
        machines=tuple(condition.get("arches") or ()),
        kernel=_version(minimum) if minimum else None,
    )


def _why_no_capability(name: str) -> str:
    try:
        return f"write it {caps.normalize(name)}"
    except ValueError as error:
        return str(error)
