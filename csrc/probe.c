/* Finds out what this kernel lets this process do, by doing it in a child process; see probe.h.
 * unshare(2), fsopen(2), mount_setattr(2), clone3(2), seccomp(2), bpf(2), netlink(7), landlock(7), time_namespaces(7).
 * Called by pycontainer.doctor.
 *
 * The child borrows our memory while we wait (CLONE_VM | CLONE_VFORK), so a caller of any size pays the same; it makes
 * raw system calls only and has copies of our descriptors, which go with it.
 */
#include "probe.h"
#include "error.h"
#include "sys.h"
#include "util.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/mount.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#ifndef CLONE_CLEAR_SIGHAND
#define CLONE_CLEAR_SIGHAND 0x100000000ULL
#endif

enum { STACK_SIZE = 64 * 1024 };

typedef struct Probe {
    int32_t kind;
    int32_t fd;
    uint64_t flags;
    const char *text;
    uint32_t size;
    int32_t user_ns; /* a descriptor that one child makes for another */
    long result;
    PycError *err;
} Probe;

static long failed(const Probe *p, long rc, const char *step, const char *path) {
    return rc < 0 ? pyc_fail(p->err, (int)rc, step, path) : rc;
}

/* The part after the NUL of this one, or NULL at the end. */
static const char *next_part(const Probe *p, const char *part) {
    const char *next = part + text_length(part) + 1;
    return next < p->text + p->size ? next : NULL;
}

/* ── mounts ── */

static long private_mounts(const Probe *p, uint64_t more) {
    long rc = failed(p, sys(SYS_unshare, CLONE_NEWNS | more), "make namespaces", "");
    if (rc == 0)
        rc = failed(p, sys(SYS_mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0), "make mounts private", "/");
    return rc;
}

/* "key" sets a flag, "key=value" a string. */
static long set_option(const Probe *p, int fs, const char *option) {
    char key[64];
    size_t n = 0;
    while (option[n] && option[n] != '=' && n + 1 < sizeof key) {
        key[n] = option[n];
        n++;
    }
    key[n] = 0;
    long rc = option[n] == '=' ? sys(SYS_fsconfig, fs, FSCONFIG_SET_STRING, key, option + n + 1, 0)
                               : sys(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, key, 0, 0);
    return failed(p, rc, "set the mount option", option);
}

static long open_filesystem(const Probe *p, const char *type) {
    return failed(p, sys(SYS_fsopen, type, FSOPEN_CLOEXEC), "open the file system", type);
}

static long mount_filesystem(const Probe *p, int fs, const char *type) {
    long rc = failed(p, sys(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0), "create the file system", type);
    if (rc == 0)
        rc = failed(p, sys(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0), "mount", type);
    return rc;
}

static long set_options(const Probe *p, int fs, const char *option) {
    long rc = 0;
    for (; rc == 0 && option; option = next_part(p, option))
        rc = set_option(p, fs, option);
    return rc;
}

static long probe_filesystem(Probe *p) {
    long rc = private_mounts(p, p->flags);
    long fs = rc < 0 ? rc : open_filesystem(p, p->text);
    rc = fs < 0 ? fs : set_options(p, (int)fs, next_part(p, p->text));
    if (rc == 0)
        rc = mount_filesystem(p, (int)fs, p->text);
    return rc < 0 ? rc : 0;
}

static long write_file(const char *path, const char *text) {
    long fd = sys(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
    long rc = fd < 0 ? fd : sys(SYS_write, fd, text, text_length(text));
    sys_close(fd);
    return rc < 0 ? rc : 0;
}

static char *put_text(char *out, const char *text) {
    while (*text)
        *out++ = *text++;
    *out = 0;
    return out;
}

static char *put_number(char *out, unsigned long number) {
    char digits[24];
    size_t n = 0;
    do
        digits[n++] = (char)('0' + number % 10);
    while (number /= 10);
    while (n)
        *out++ = digits[--n];
    *out = 0;
    return out;
}

/* "0 ID 1": root inside is who we are outside, which needs no privilege. */
static void map_text(char *out, long id) { (void)put_text(put_number(put_text(out, "0 "), (unsigned long)id), " 1"); }

/* Runs with our descriptor table, so that the descriptor of its user namespace is ours too. */
static int make_user_ns(void *argument) {
    Probe *p = argument;
    char uids[40], gids[40];
    map_text(uids, sys(SYS_geteuid));
    map_text(gids, sys(SYS_getegid));
    long rc = failed(p, sys(SYS_unshare, CLONE_NEWUSER), "make a user namespace", "");
    if (rc == 0)
        rc = failed(p, write_file("/proc/self/uid_map", uids), "write the id map", "/proc/self/uid_map");
    if (rc == 0)
        rc = failed(p, write_file("/proc/self/setgroups", "deny"), "write", "/proc/self/setgroups");
    if (rc == 0)
        rc = failed(p, write_file("/proc/self/gid_map", gids), "write the id map", "/proc/self/gid_map");
    if (rc == 0)
        rc = failed(p, sys(SYS_openat, AT_FDCWD, "/proc/self/ns/user", O_RDONLY | O_CLOEXEC), "open",
                    "/proc/self/ns/user");
    p->user_ns = (int32_t)rc;
    return 0;
}

static long wait_for(int pidfd) {
    siginfo_t info;
    long rc;
    do
        rc = sys(SYS_waitid, P_PIDFD, pidfd, &info, WEXITED | __WALL, 0);
    while (rc == -EINTR);
    return rc;
}

static long idmapped_tree(Probe *p, const char *dir) {
    long tree =
        failed(p, sys(SYS_open_tree, AT_FDCWD, dir, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), "clone the mount of", dir);
    if (tree < 0)
        return tree;
    char stack[16 * 1024] __attribute__((aligned(64)));
    int pidfd = -1;
    p->user_ns = -ECHILD;
    int pid = clone(make_user_ns, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_PIDFD, p, &pidfd);
    if (pid < 0)
        return failed(p, -errno, "start a process", "");
    (void)wait_for(pidfd);
    if (p->user_ns < 0)
        return p->user_ns;
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (__u64)p->user_ns};
    long rc = failed(p, sys(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof attr),
                     "map the ids of a mount of", dir);
    return rc < 0 ? rc : tree;
}

static long probe_idmap(Probe *p) {
    long rc = private_mounts(p, 0);
    if (rc == 0)
        rc = idmapped_tree(p, p->text);
    return rc < 0 ? rc : 0;
}

static long set_lower(const Probe *p, int fs) {
    if (!(p->flags & PYC_PROBE_LOWER_PLUS))
        return set_option(p, fs, "lowerdir=lower:lower2");
    long rc = set_option(p, fs, "lowerdir+=lower");
    return rc < 0 ? rc : set_option(p, fs, "lowerdir+=lower2");
}

/* Mounts it, and removes a file of the lower directory through it: a whiteout has to appear in the upper one. */
static long probe_overlay(Probe *p) {
    long rc = private_mounts(p, 0);
    if (rc == 0)
        rc = failed(p, sys(SYS_chdir, p->text), "enter", p->text);
    if (rc == 0 && p->flags & PYC_PROBE_LOWER_IDMAPPED) {
        rc = idmapped_tree(p, "lower");
        if (rc >= 0)
            rc = failed(p, sys(SYS_move_mount, rc, "", AT_FDCWD, "lower", MOVE_MOUNT_F_EMPTY_PATH), "attach", "lower");
    }
    long fs = rc < 0 ? rc : open_filesystem(p, "overlay");
    rc = fs < 0 ? fs : set_lower(p, (int)fs);
    if (rc == 0)
        rc = set_option(p, (int)fs, "upperdir=upper");
    if (rc == 0)
        rc = set_option(p, (int)fs, "workdir=work");
    if (rc == 0)
        rc = set_options(p, (int)fs, next_part(p, p->text));
    if (rc == 0)
        rc = mount_filesystem(p, (int)fs, "overlay");
    if (rc >= 0)
        rc = failed(p, sys(SYS_unlinkat, rc, "file", 0), "remove a file of the lower layer in", p->text);
    return rc;
}

static long probe_erofs_file(Probe *p) {
    long rc = private_mounts(p, 0);
    long fs = rc < 0 ? rc : open_filesystem(p, "erofs");
    if (fs < 0)
        return fs;
    rc = failed(p, sys(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "source", p->text, 0), "set the source", p->text);
    if (rc == 0)
        rc = sys(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0);
    /* It looked into the file and found no file system; a kernel that wants a block device says so (ENOTBLK). */
    return rc == -EINVAL ? 0 : failed(p, rc < 0 ? rc : -EPROTO, "mount from a file", p->text);
}

static long probe_entry_types(Probe *p) {
    struct Entry {
        uint64_t ino, off;
        uint16_t size;
        uint8_t type;
        char name[];
    };
    char buf[2048] __attribute__((aligned(8)));
    long fd = failed(p, sys(SYS_openat, AT_FDCWD, p->text, O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open", p->text);
    long n = fd < 0 ? fd : failed(p, sys(SYS_getdents64, fd, buf, sizeof buf), "list", p->text);
    for (long at = 0; at < n;) {
        const struct Entry *entry = (const struct Entry *)(buf + at);
        if (entry->name[0] != '.')
            return entry->type == DT_DIR ? 0 : failed(p, -ENOTSUP, "tell the types of the entries of", p->text);
        at += entry->size;
    }
    return n < 0 ? n : failed(p, -ENOENT, "find a directory in", p->text);
}

static long small_mount(const Probe *p) {
    long rc = private_mounts(p, 0);
    long fs = rc < 0 ? rc : open_filesystem(p, "tmpfs");
    return fs < 0 ? fs : mount_filesystem(p, (int)fs, "tmpfs");
}

static long probe_mount_setattr(Probe *p) {
    long mount = small_mount(p);
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
    return mount < 0 ? mount
                     : failed(p, sys(SYS_mount_setattr, mount, "", AT_EMPTY_PATH, &attr, sizeof attr),
                              "make a mount read-only", "");
}

static long probe_clone_detached(Probe *p) {
    long mount = small_mount(p);
    if (mount < 0)
        return mount;
    long rc = sys(SYS_open_tree, mount, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    return rc < 0 ? failed(p, rc, "clone a mount that is not attached", "") : 0;
}

/* ── processes ── */

static long probe_unshare(Probe *p) { return failed(p, sys(SYS_unshare, p->flags), "make namespaces", ""); }

/* The grandchild shares our stack and must not touch it: it exits in the next instruction. */
static long clone3_and_exit(struct clone_args *args) {
#if defined(__x86_64__)
    register long ret __asm__("rax") = SYS_clone3;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "mov %[exit], %%eax\n\t"
                     "xor %%edi, %%edi\n\t"
                     "syscall\n"
                     "1:"
                     : "+a"(ret)
                     : "D"(args), "S"(sizeof *args), [exit] "i"(SYS_exit)
                     : "rcx", "r11", "memory");
    return ret;
#else
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = sizeof *args;
    register long x8 __asm__("x8") = SYS_clone3;
    __asm__ volatile("svc 0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x8, %[exit]\n\t"
                     "svc 0\n"
                     "1:"
                     : "+r"(x0), "+r"(x8)
                     : "r"(x1), [exit] "i"(SYS_exit)
                     : "memory");
    return x0;
#endif
}

static long probe_clone3(Probe *p) {
    int pidfd = -1;
    struct clone_args args = {
        .flags = p->flags | CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND |
                 (p->fd >= 0 ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .cgroup = p->fd >= 0 ? (__u64)p->fd : 0,
    };
    long pid = failed(p, clone3_and_exit(&args), p->fd >= 0 ? "start a process in the cgroup" : "start a process", "");
    return pid < 0 ? pid : wait_for(pidfd);
}

static long probe_pidfd(Probe *p) {
    long fd = failed(p, sys(SYS_pidfd_open, sys(SYS_getpid), 0), "open a pidfd", "");
    return fd < 0 ? fd : failed(p, sys(SYS_pidfd_send_signal, fd, 0, 0, 0), "signal a pidfd", "");
}

static long probe_raise_limit(Probe *p) {
    struct rlimit limit;
    long rc = failed(p, sys(SYS_prlimit64, 0, RLIMIT_RTPRIO, 0, &limit), "read a limit", "RLIMIT_RTPRIO");
    if (rc < 0 || limit.rlim_max == RLIM_INFINITY)
        return rc;
    limit.rlim_max++;
    return failed(p, sys(SYS_prlimit64, 0, RLIMIT_RTPRIO, &limit, 0), "raise a hard limit", "RLIMIT_RTPRIO");
}

static long probe_seccomp(Probe *p) {
    struct sock_filter allow = {.code = BPF_RET | BPF_K, .k = SECCOMP_RET_ALLOW};
    struct sock_fprog program = {.len = 1, .filter = &allow};
    long rc = failed(p, sys(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no-new-privileges", "");
    return rc < 0 ? rc : failed(p, sys(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "install a filter", "");
}

static long probe_openat2(Probe *p) {
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
    long fd = failed(p, sys(SYS_openat2, AT_FDCWD, "/", &how, sizeof how), "open in a root", "/");
    return fd < 0 ? fd : 0;
}

static long probe_landlock(Probe *p) {
    long abi = sys(SYS_landlock_create_ruleset, 0, 0, LANDLOCK_CREATE_RULESET_VERSION);
    return failed(p, abi, "ask for the version of Landlock", "");
}

/* ── control groups and networks ── */

static long probe_device_program(Probe *p) {
    struct bpf_insn allow[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 1},
        {.code = BPF_JMP | BPF_EXIT},
    };
    union bpf_attr load = {0};
    load.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    load.insn_cnt = 2;
    load.insns = (uint64_t)(uintptr_t)allow;
    load.license = (uint64_t)(uintptr_t) "Apache-2.0";
    long program = failed(p, sys(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load), "load a device program", "");
    if (program < 0 || p->fd < 0)
        return program < 0 ? program : 0;
    union bpf_attr attach = {0};
    attach.target_fd = (uint32_t)p->fd;
    attach.attach_bpf_fd = (uint32_t)program;
    attach.attach_type = BPF_CGROUP_DEVICE;
    attach.attach_flags = BPF_F_ALLOW_MULTI;
    return failed(p, sys(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach), "attach a device program", "");
}

static long probe_nftables(Probe *p) {
    struct {
        struct nlmsghdr head;
        struct nfgenmsg body;
    } ask = {
        .head = {.nlmsg_len = sizeof ask,
                 .nlmsg_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN,
                 .nlmsg_flags = NLM_F_REQUEST},
    };
    union {
        struct nlmsghdr head;
        char bytes[1024];
    } answer;
    long rc = failed(p, sys(SYS_unshare, CLONE_NEWNET), "make a net namespace", "");
    long fd = rc < 0 ? rc : sys(SYS_socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    rc = failed(p, fd, "open a netfilter socket", "");
    if (rc >= 0)
        rc = failed(p, sys(SYS_sendto, fd, &ask, sizeof ask, 0, 0, 0), "ask nf_tables", "");
    if (rc >= 0)
        rc = failed(p, sys(SYS_recvfrom, fd, &answer, sizeof answer, MSG_DONTWAIT, 0, 0),
                    "read the answer of nf_tables", "");
    if (rc < 0)
        return rc;
    if (answer.head.nlmsg_type != NLMSG_ERROR)
        return 0;
    return failed(p, ((const struct nlmsgerr *)NLMSG_DATA(&answer.head))->error, "ask nf_tables", "");
}

/* ── time ── */

/* A program that waits for a signal for ever: there is none on every host of which we know that it does not end. */
#if defined(__x86_64__)
static const uint8_t wait_code[] = {0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7}; /* pause(); again */
enum { THIS_MACHINE = EM_X86_64 };
#else
static const uint32_t wait_code[] = {0xd2800928, 0xd4000001, 0x17fffffe}; /* ppoll(0, 0, 0, 0); again */
enum { THIS_MACHINE = EM_AARCH64 };
#endif

typedef struct WaitProgram {
    Elf64_Ehdr head;
    Elf64_Phdr segment;
    uint8_t code[16];
} WaitProgram;

static long write_program(const Probe *p) {
    const uint64_t base = 0x400000;
    WaitProgram image = {
        .head = {.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                 .e_type = ET_EXEC,
                 .e_machine = THIS_MACHINE,
                 .e_version = EV_CURRENT,
                 .e_entry = base + offsetof(WaitProgram, code),
                 .e_phoff = offsetof(WaitProgram, segment),
                 .e_ehsize = sizeof(Elf64_Ehdr),
                 .e_phentsize = sizeof(Elf64_Phdr),
                 .e_phnum = 1},
        .segment = {.p_type = PT_LOAD,
                    .p_flags = PF_R | PF_X,
                    .p_vaddr = base,
                    .p_paddr = base,
                    .p_filesz = sizeof image,
                    .p_memsz = sizeof image,
                    .p_align = 0x1000},
    };
    const uint8_t *code = (const uint8_t *)wait_code;
    for (size_t i = 0; i < sizeof wait_code; i++)
        image.code[i] = code[i];
    long fd = failed(p, sys(SYS_memfd_create, "pycontainer-probe", MFD_CLOEXEC), "make a file in memory", "");
    long rc = fd < 0 ? fd : failed(p, sys(SYS_write, fd, &image, sizeof image), "write a program", "");
    return rc < 0 ? rc : fd;
}

static int execute_in_new_time(void *argument) {
    const Probe *p = argument;
    char *nothing[] = {NULL};
    char *arguments[] = {(char *)(uintptr_t) "pycontainer-probe", NULL};
    long program = write_program(p);
    long rc = program < 0 ? program : failed(p, sys(SYS_unshare, CLONE_NEWTIME), "make a time namespace", "");
    if (rc == 0)
        rc = failed(p, sys(SYS_close_range, 0, ~0U, CLOSE_RANGE_CLOEXEC), "mark descriptors", "");
    if (rc == 0)
        (void)failed(p, sys(SYS_execveat, program, "", arguments, nothing, AT_EMPTY_PATH), "execute", "");
    return 0;
}

/* The program runs, in one of the two time namespaces. */
static long check_time(const Probe *p, int pid) {
    char path[64];
    struct stat ours, theirs;
    (void)put_text(put_number(put_text(path, "/proc/"), (unsigned long)pid), "/ns/time");
    long rc = failed(p, sys(SYS_newfstatat, AT_FDCWD, "/proc/self/ns/time", &ours, 0), "look at", "/proc/self/ns/time");
    if (rc == 0)
        rc = failed(p, sys(SYS_newfstatat, AT_FDCWD, path, &theirs, 0), "look at", path);
    if (rc == 0 && ours.st_ino == theirs.st_ino)
        rc = failed(p, -EXDEV, "enter the new time namespace by execve", "");
    return rc;
}

/* A process that executes a program sends SIGCHLD when it ends, whatever it was cloned with: so it is not a child of the
 * caller, but of this process. */
static long probe_time_at_exec(Probe *p) {
    char stack[16 * 1024] __attribute__((aligned(64)));
    int pidfd = -1;
    int pid = clone(execute_in_new_time, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_PIDFD, p, &pidfd);
    if (pid < 0)
        return failed(p, -errno, "start a process", "");
    long rc = p->err->code ? -p->err->code : check_time(p, pid);
    (void)sys(SYS_pidfd_send_signal, pidfd, SIGKILL, 0, 0);
    (void)wait_for(pidfd);
    return rc;
}

/* ── running one ── */

static long (*const probes[])(Probe *) = {
    [PYC_PROBE_UNSHARE] = probe_unshare,
    [PYC_PROBE_FILESYSTEM] = probe_filesystem,
    [PYC_PROBE_OVERLAY] = probe_overlay,
    [PYC_PROBE_IDMAP] = probe_idmap,
    [PYC_PROBE_ENTRY_TYPES] = probe_entry_types,
    [PYC_PROBE_EROFS_FILE] = probe_erofs_file,
    [PYC_PROBE_CLONE3] = probe_clone3,
    [PYC_PROBE_SECCOMP] = probe_seccomp,
    [PYC_PROBE_DEVICE_PROGRAM] = probe_device_program,
    [PYC_PROBE_NFTABLES] = probe_nftables,
    [PYC_PROBE_RAISE_LIMIT] = probe_raise_limit,
    [PYC_PROBE_PIDFD] = probe_pidfd,
    [PYC_PROBE_OPENAT2] = probe_openat2,
    [PYC_PROBE_MOUNT_SETATTR] = probe_mount_setattr,
    [PYC_PROBE_CLONE_DETACHED] = probe_clone_detached,
    [PYC_PROBE_LANDLOCK] = probe_landlock,
    [PYC_PROBE_TIME_AT_EXEC] = probe_time_at_exec,
};

static int child_main(void *argument) {
    Probe *p = argument;
    p->result = probes[p->kind](p);
    return 0;
}

int pyc_probe(int32_t kind, const char *text, uint32_t size, uint64_t flags, int fd, PycError *err) {
    if (kind < 1 || (size_t)kind >= sizeof probes / sizeof *probes || (size && text[size - 1]))
        return pyc_fail(err, EINVAL, "probe", "");
    Probe probe = {.kind = kind, .fd = fd, .flags = flags, .text = text, .size = size, .err = err};
    char *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        return pyc_fail(err, errno, "allocate a stack", "");
    /* No handler of the program may run on memory that two processes share. exit_signal is 0: its wait(2) sees nothing. */
    sigset_t all, old;
    sigfillset(&all);
    (void)sys(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, 8);
    int pidfd = -1;
    int pid = clone(child_main, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK | CLONE_PIDFD, &probe, &pidfd);
    int rc = pid < 0 ? -errno : 0;
    (void)sys(SYS_rt_sigprocmask, SIG_SETMASK, &old, 0, 8);
    if (rc < 0) {
        (void)pyc_fail(err, rc, "start a process", "");
    } else {
        (void)wait_for(pidfd);
        (void)close(pidfd);
        rc = (int)probe.result;
    }
    (void)munmap(stack, STACK_SIZE);
    return rc;
}
