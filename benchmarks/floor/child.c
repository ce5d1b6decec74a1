// Owns everything that the new process of a floor run does before execve.
// Uses setns, unshare, mount(2), move_mount, pivot_root, capset, seccomp, keyctl; no malloc, no stdio: memory is shared.
// Called by floor.c through clone3.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/keyctl.h>
#include <linux/mount.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "floor.h"

#define ON_ERROR(call, name)                                                                                           \
    do {                                                                                                               \
        if ((call) < 0)                                                                                                \
            fail(run, name);                                                                                           \
    } while (0)

enum { SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC };

__attribute__((noreturn)) static void fail(Run *run, const char *step) {
    run->failed_errno = errno;
    run->failed_step = step;
    _exit(127);
}

// A single-threaded task writing itself to `tasks` takes no global lock; cgroup.procs would wait for an RCU grace
// period whenever starts are sparse. On v2 clone3 has put us in the group already.
static void enter_groups(Run *run) {
    if (!run->setup->unified)
        for (int i = 0; i < run->setup->controllers; i++)
            ON_ERROR(write(run->tasks[i], "0", 1), "write tasks");
    stamp(run, "attach");
}

static void enter_namespaces(Run *run) {
    if (run->setup->thin_ns >= 0)
        ON_ERROR(setns(run->setup->thin_ns, CLONE_NEWNS), "setns");
    ON_ERROR(unshare(CLONE_NEWNS | CLONE_NEWCGROUP), "unshare");
    if (run->setup->thin_ns < 0)
        ON_ERROR(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private mounts");
    stamp(run, "mount namespace");
}

static void loopback_up(Run *run) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    ON_ERROR(fd, "socket");
    ON_ERROR(ioctl(fd, SIOCSIFFLAGS, &request), "loopback up");
    close(fd);
    stamp(run, "loopback");
}

static void attach(Run *run, int tree, const char *path) {
    ON_ERROR(syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH), path);
}

static void enter_root(Run *run) {
    attach(run, run->root_tree, "/mnt");
    ON_ERROR(chdir("/mnt"), "chdir");
    ON_ERROR(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    ON_ERROR(umount2(".", MNT_DETACH), "detach the old root");
    stamp(run, "pivot_root");
}

static void make_dev(Run *run) {
    static const struct {
        const char *path;
        unsigned major, minor;
    } NODES[] = {
        {"/dev/null", 1, 3},   {"/dev/zero", 1, 5},    {"/dev/full", 1, 7},
        {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},
    };
    static const char *const LINKS[][2] = {
        {"/proc/self/fd", "/dev/fd"},       {"/proc/self/fd/0", "/dev/stdin"}, {"/proc/self/fd/1", "/dev/stdout"},
        {"/proc/self/fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"},         {"/proc/kcore", "/dev/core"},
    };
    ON_ERROR(mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"), "mount /dev");
    for (size_t i = 0; i < sizeof NODES / sizeof *NODES; i++)
        ON_ERROR(mknod(NODES[i].path, S_IFCHR | 0666, makedev(NODES[i].major, NODES[i].minor)), NODES[i].path);
    for (size_t i = 0; i < sizeof LINKS / sizeof *LINKS; i++)
        ON_ERROR(symlink(LINKS[i][0], LINKS[i][1]), LINKS[i][1]);
    stamp(run, "/dev");
    ON_ERROR(mkdir("/dev/pts", 0755), "mkdir /dev/pts");
    ON_ERROR(mkdir("/dev/shm", 01777), "mkdir /dev/shm");
    ON_ERROR(mkdir("/dev/mqueue", 01777), "mkdir /dev/mqueue");
    ON_ERROR(mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
             "mount /dev/pts");
    ON_ERROR(mount("shm", "/dev/shm", "tmpfs", SAFE, "mode=1777,size=65536k"), "mount /dev/shm");
    ON_ERROR(mount("mqueue", "/dev/mqueue", "mqueue", SAFE, NULL), "mount /dev/mqueue");
    stamp(run, "devpts shm mqueue");
}

static void mount_cgroups(Run *run) {
    static const char *const PATHS[] = {"/sys/fs/cgroup/memory",  "/sys/fs/cgroup/pids",  "/sys/fs/cgroup/cpu",
                                        "/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/blkio", "/sys/fs/cgroup/devices"};
    if (run->setup->unified) {
        attach(run, run->cgroup_tree[0], "/sys/fs/cgroup");
    } else {
        ON_ERROR(mount("tmpfs", "/sys/fs/cgroup", "tmpfs", SAFE, "mode=755"), "mount /sys/fs/cgroup");
        for (int i = 0; i < run->setup->controllers; i++) {
            ON_ERROR(mkdir(PATHS[i], 0755), PATHS[i]);
            attach(run, run->cgroup_tree[i], PATHS[i]);
        }
        ON_ERROR(mount(NULL, "/sys/fs/cgroup", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | SAFE, NULL),
                 "cgroup read-only");
    }
    stamp(run, "cgroup mounts");
}

static void hide_paths(Run *run) {
    static const char *const FILES[] = {"/proc/kcore",      "/proc/keys",        "/proc/latency_stats",
                                        "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
                                        "/proc/interrupts"};
    static const char *const DIRECTORIES[] = {"/proc/asound", "/proc/acpi", "/proc/scsi", "/sys/firmware",
                                              "/sys/devices/virtual/powercap"};
    static const char *const READ_ONLY[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++)
        if (mount("/dev/null", FILES[i], NULL, MS_BIND, NULL) < 0 && errno != ENOENT)
            fail(run, FILES[i]);
    for (size_t i = 0; i < sizeof DIRECTORIES / sizeof *DIRECTORIES; i++)
        if (mount("tmpfs", DIRECTORIES[i], "tmpfs", MS_RDONLY | SAFE, "size=0k") < 0 && errno != ENOENT)
            fail(run, DIRECTORIES[i]);
    stamp(run, "masked paths");
    for (size_t i = 0; i < sizeof READ_ONLY / sizeof *READ_ONLY; i++) {
        if (mount(READ_ONLY[i], READ_ONLY[i], NULL, MS_BIND | MS_REC, NULL) < 0) {
            if (errno == ENOENT)
                continue;
            fail(run, READ_ONLY[i]);
        }
        ON_ERROR(mount(NULL, READ_ONLY[i], NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | SAFE, NULL), READ_ONLY[i]);
    }
    stamp(run, "read-only paths");
}

static void make_file_systems(Run *run) {
    ON_ERROR(mount("proc", "/proc", "proc", SAFE, NULL), "mount /proc");
    stamp(run, "/proc");
    make_dev(run);
    ON_ERROR(mount("sysfs", "/sys", "sysfs", MS_RDONLY | SAFE, NULL), "mount /sys");
    stamp(run, "/sys");
    mount_cgroups(run);
    attach(run, run->etc_tree[0], "/etc/hosts");
    attach(run, run->etc_tree[1], "/etc/hostname");
    attach(run, run->etc_tree[2], "/etc/resolv.conf");
    stamp(run, "etc files");
    hide_paths(run);
}

static void take_identity(Run *run) {
    // chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod
    // audit_write setfcap: docker's fourteen.
    const uint64_t keep = 0xa80425fb;
    struct rlimit files = {1024, 4096};
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{.effective = (uint32_t)keep, .permitted = (uint32_t)keep}, {0}};
    ON_ERROR(sethostname("floor", 5), "sethostname");
    ON_ERROR(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, run->id), "session keyring");
    ON_ERROR(setrlimit(RLIMIT_NOFILE, &files), "rlimit");
    for (unsigned long cap = 0; cap <= CAP_LAST_CAP; cap++)
        if (!(keep >> cap & 1))
            ON_ERROR(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0), "drop bounding set");
    ON_ERROR(syscall(SYS_setgroups, 0, NULL), "setgroups");
    ON_ERROR(syscall(SYS_setresgid, 0, 0, 0), "setresgid");
    ON_ERROR(syscall(SYS_setresuid, 0, 0, 0), "setresuid");
    ON_ERROR(syscall(SYS_capset, &header, data), "capset");
    ON_ERROR(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient set");
    stamp(run, "identity");
}

static void wire_stdio(Run *run) {
    ON_ERROR(dup2(run->stdin_fd, 0), "stdin");
    ON_ERROR(dup2(run->stdout_fd, 1), "stdout");
    ON_ERROR(dup2(run->stderr_fd, 2), "stderr");
    ON_ERROR(syscall(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC), "close_range");
    ON_ERROR(setsid(), "setsid");
}

int child_main(void *argument) {
    Run *run = argument;
    char *const argv[] = {(char *)"/bin/true", NULL};
    char *const envp[] = {(char *)"PATH=/usr/sbin:/usr/bin:/sbin:/bin", (char *)"HOME=/root", NULL};
    stamp(run, "clone");
    enter_groups(run);
    enter_namespaces(run);
    loopback_up(run);
    umask(0);
    enter_root(run);
    make_file_systems(run);
    umask(022);
    wire_stdio(run);
    take_identity(run);
    sigset_t none;
    sigemptyset(&none);
    ON_ERROR(sigprocmask(SIG_SETMASK, &none, NULL), "unblock signals");
    ON_ERROR(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges");
    ON_ERROR(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &run->setup->filter), "seccomp");
    stamp(run, "seccomp");
    execve(argv[0], argv, envp);
    fail(run, "execve");
}
