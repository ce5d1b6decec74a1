/* The steps that give the process its descriptors: stdio, a terminal of its own, execve, parking.
 * dup3(2), close_range(2), pts(4), ioctl_tty(2), unix(7), execve(2), execveat(2). Run by program.c in the new process.
 */
#include "program.h"
#include "start.h"
#include "sys.h"

#include <asm/termbits.h>
#include <asm/termios.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#ifndef PIPEFS_MAGIC
#define PIPEFS_MAGIC 0x50495045
#endif

enum { PATH_SIZE = 4096 };

long send_event(int to, int32_t type, int32_t value, const PycError *err, int fd) {
    PycEvent event;
    __builtin_memset(&event, 0, sizeof event);
    event.type = type;
    event.value = value;
    if (err)
        event.err = *err;
    struct iovec part = {&event, sizeof event};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        header.msg_control = control.buf;
        header.msg_controllen = sizeof control.buf;
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        __builtin_memcpy(CMSG_DATA(cmsg), &fd, sizeof fd);
    }
    long rc = sys(SYS_sendmsg, to, &header, MSG_NOSIGNAL);
    return rc < 0 ? rc : 0;
}

static long park(const Machine *m, const PycStep *s) {
    long rc = send_event(m->status, PYC_EVENT_PARKED, (int32_t)s->a, NULL, -1);
    if (rc < 0)
        return rc;
    char go;
    do
        rc = sys(SYS_read, m->status, &go, 1);
    while (rc == -EINTR);
    return rc == 1 ? 0 : -EPIPE;
}

/* The null device of the container, never the host's: a chmod of it would be one of the host's too. */
static long open_null(void) {
    long fd = sys(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW, 0);
    struct stat st;
    if (fd < 0)
        return fd;
    long rc = sys(SYS_fstat, fd, &st);
    if (rc == 0 && (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3)))
        rc = -ENODEV;
    if (rc < 0)
        sys_close(fd);
    return rc < 0 ? rc : fd;
}

static long set_stream(int fd, int number, const PycStep *s) {
    long source = fd < 0 ? open_null() : fd;
    if (source < 0)
        return source;
    /* A program that is not root may open /dev/stdout again: a pipe has to be its own. A FIFO with a name stays as it is. */
    struct statfs fs;
    long rc = 0;
    if ((s->b || s->c) && sys(SYS_fstatfs, source, &fs) == 0 && fs.f_type == PIPEFS_MAGIC) {
        rc = sys(SYS_fchown, source, s->b, s->c);
        if (rc == -EPERM || rc == -EINVAL || rc == -EROFS)
            rc = 0; /* somebody else's pipe, or an id that is not mapped: it stays usable as it is */
    }
    if (rc == 0)
        rc = sys(SYS_dup3, source, number, 0);
    if (fd < 0)
        sys_close(source);
    return rc < 0 ? rc : 0;
}

static long set_stdio(const Machine *m, const PycStep *s) {
    int32_t source[3] = {machine_fd(m, s->fd), machine_fd(m, s->fd2), machine_fd(m, (int32_t)s->a)};
    long rc = 0;
    for (int i = 0; rc == 0 && i < 3; i++)
        rc = set_stream(source[i], i, s);
    return rc;
}

/* The slave comes from the master by ioctl and its bind from the descriptor: no path of the image or of another
 * container's race is looked up (CVE-2025-52565). */
static long open_terminal(const Machine *m, const PycStep *s) {
    long master = sys(SYS_openat, machine_fd(m, s->fd), "ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC, 0);
    if (master < 0)
        return master;
    int unlock = 0;
    long rc = sys(SYS_ioctl, master, TIOCSPTLCK, &unlock);
    struct winsize size = {.ws_row = (unsigned short)(s->a >> 16), .ws_col = (unsigned short)s->a};
    if (rc == 0 && size.ws_row && size.ws_col)
        rc = sys(SYS_ioctl, master, TIOCSWINSZ, &size);
    long slave = rc < 0 ? rc : sys(SYS_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    rc = slave < 0 ? slave : send_event(m->status, PYC_EVENT_TERMINAL, 0, NULL, (int)master);
    sys_close(master);
    if (rc == 0 && s->b)
        rc = sys(SYS_fchown, slave, s->b, -1);
    const char *console = machine_text(m, s->s1);
    if (rc == 0 && console[0]) {
        long tree = sys(SYS_open_tree, slave, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        rc = tree < 0 ? tree : sys(SYS_move_mount, tree, "", AT_FDCWD, console, MOVE_MOUNT_F_EMPTY_PATH);
        sys_close(tree);
    }
    if (rc == 0) {
        rc = sys(SYS_setsid);
        rc = rc < 0 ? rc : sys(SYS_ioctl, slave, TIOCSCTTY, 0);
    }
    for (int i = 0; rc >= 0 && i < 3; i++)
        rc = sys(SYS_dup3, slave, i, 0);
    if (slave > 2)
        sys_close(slave);
    return rc < 0 ? rc : 0;
}

static long keep_fd(int32_t fd, int target) {
    if (fd == target)
        return sys(SYS_fcntl, fd, F_SETFD, 0);
    long rc = sys(SYS_dup3, fd, target, 0);
    return rc < 0 ? rc : 0;
}

enum { STATUS = 3 }; /* the number of the status socket from CLOSE_ALL on */

/* At execve nothing of the host is open any more: a program path or an interpreter line that names /proc/self/fd/N, or
 * /proc/self/exe, finds at most the status socket and the sealed helper (CVE-2024-21626, CVE-2019-5736). */
static long close_all(Machine *m, const PycStep *s) {
    long told = send_event(m->status, PYC_EVENT_SETTLED, 0, NULL, -1);
    if (told < 0)
        return told;
    const int32_t kept[3] = {m->status, machine_fd(m, s->fd), machine_fd(m, s->fd2)};
    long lifted[3];
    int count = 0;
    for (; count < 3 && kept[count] >= 0; count++) { /* first out of the way of each other */
        lifted[count] = sys(SYS_fcntl, kept[count], F_DUPFD_CLOEXEC, STATUS + 3);
        if (lifted[count] < 0)
            return lifted[count];
    }
    for (int i = 0; i < count; i++) {
        long rc = sys(SYS_dup3, lifted[i], STATUS + i, i == 2 ? 0 : O_CLOEXEC);
        if (rc < 0)
            return rc;
    }
    m->status = STATUS;
    for (int i = 0; i < PYC_SLOTS; i++)
        m->slots[i] = -1;
    return sys(SYS_close_range, STATUS + count, ~0U, 0);
}

long run_terminal_step(Machine *m, const PycStep *s) {
    switch (s->op) {
    case PYC_OP_STDIO:
        return set_stdio(m, s);
    case PYC_OP_TTY:
        return open_terminal(m, s);
    case PYC_OP_CLOSE_ALL:
        return close_all(m, s);
    case PYC_OP_SEAL_FDS:
        return sys(SYS_close_range, s->a, ~0U, CLOSE_RANGE_CLOEXEC);
    case PYC_OP_DUP:
        return keep_fd(machine_fd(m, s->fd), (int)s->a);
    case PYC_OP_SYNC:
        return park(m, s);
    default:
        return -ENOSYS;
    }
}

static char **point_into(char **to, const char *block, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        *to++ = (char *)(uintptr_t)block;
        block += text_length(block) + 1;
    }
    *to++ = NULL;
    return to;
}

/* As execvpe(3): the first candidate that runs; EACCES is remembered over later ENOENTs. */
static long exec_along_path(const char *file, const char *path, char **argv, char **envp) {
    char candidate[PATH_SIZE];
    size_t n = text_length(file);
    long denied = 0;
    while (1) {
        size_t d = 0;
        while (path[d] && path[d] != ':')
            d++;
        if (d + n + 2 < sizeof candidate) {
            __builtin_memcpy(candidate, path, d);
            if (d > 0)
                candidate[d++] = '/';
            __builtin_memcpy(candidate + d, file, n + 1);
            long rc = sys(SYS_execve, candidate, argv, envp);
            if (rc == -EACCES) {
                struct stat st; /* a directory of that name is no program */
                if (sys(SYS_newfstatat, AT_FDCWD, candidate, &st, 0) == 0 && !S_ISDIR(st.st_mode))
                    denied = rc;
            } else if (rc != -ENOENT && rc != -ENOTDIR) {
                return rc;
            }
            d = d > 0 ? d - 1 : 0;
        }
        path += d;
        while (*path && *path != ':')
            path++;
        if (!*path)
            return denied ? denied : -ENOENT;
        path++;
    }
}

long run_exec_step(Machine *m, const PycStep *s) {
    char **argv = m->pointers;
    char **envp = point_into(argv, machine_text(m, s->s2), s->a);
    point_into(envp, machine_text(m, s->s3), s->b);
    const char *file = machine_text(m, s->s1);
    if (m->status >= 0 && m->status_target >= 0) {
        long rc = keep_fd(m->status, m->status_target);
        if (rc < 0)
            return rc;
    }
    int fd = machine_fd(m, s->fd);
    if (fd >= 0)
        return sys(SYS_execveat, fd, "", argv, envp, AT_EMPTY_PATH);
    for (const char *c = file; *c; c++)
        if (*c == '/')
            return sys(SYS_execve, file, argv, envp);
    return exec_along_path(file, machine_text(m, (uint32_t)s->c), argv, envp);
}
