/* The steps that make files: directories, nodes, links, small writes to /proc and cgroup files.
 * mkdirat(2), mknodat(2), openat(2), write(2), bpf(2). Run by program.c, in the caller and in the new process.
 */
#include "program.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/statfs.h>

static long write_all(int fd, const char *data, size_t n) {
    while (n > 0) {
        long rc = sys(SYS_write, fd, data, n);
        if (rc == -EINTR)
            continue;
        if (rc < 0)
            return rc;
        data += rc;
        n -= (size_t)rc;
    }
    return 0;
}

/* A write meant for procfs must not be led elsewhere by something mounted or linked there (CVE-2025-52881). */
static long check_procfs(int fd) {
    struct statfs fs;
    long rc = sys(SYS_fstatfs, fd, &fs);
    if (rc < 0)
        return rc;
    return fs.f_type == PROC_SUPER_MAGIC ? 0 : -EXDEV;
}

static long open_to_write(const Machine *m, const PycStep *s) {
    int fd = machine_fd(m, s->fd);
    const char *path = machine_text(m, s->s1);
    uint64_t flags = O_WRONLY | O_CLOEXEC | O_NOCTTY | s->a;
    if (!(s->flags & PYC_BENEATH))
        return sys(SYS_openat, fd, path, flags, s->b);
    /* Nothing that an image or a mount puts there may take part. */
    struct open_how how = {
        .flags = flags | O_NONBLOCK,
        .mode = s->a & O_CREAT ? s->b : 0,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    return sys(SYS_openat2, fd, path, &how, sizeof how);
}

static long write_file(const Machine *m, const PycStep *s) {
    long fd = open_to_write(m, s);
    if (fd < 0)
        return fd;
    long rc = s->c ? check_procfs((int)fd) : 0;
    if (rc == 0)
        rc = write_all((int)fd, machine_text(m, s->s2), s->len);
    sys_close(fd);
    return rc;
}

static long make_node(const Machine *m, const PycStep *s) {
    int fd = machine_fd(m, s->fd);
    const char *path = machine_text(m, s->s1);
    long rc = sys(SYS_mknodat, fd, path, s->a, s->b);
    if (rc == 0 && s->c)
        rc = sys(SYS_fchownat, fd, path, s->c >> 32, s->c & 0xffffffff, AT_SYMLINK_NOFOLLOW);
    return rc;
}

static long attach_bpf(const Machine *m, const PycStep *s) {
    union bpf_attr attr;
    __builtin_memset(&attr, 0, sizeof attr);
    attr.target_fd = (uint32_t)machine_fd(m, s->fd);
    attr.attach_bpf_fd = (uint32_t)machine_fd(m, s->fd2);
    attr.attach_type = (uint32_t)s->a;
    return sys(SYS_bpf, BPF_PROG_ATTACH, &attr, sizeof attr);
}

long run_file_step(Machine *m, const PycStep *s) {
    int fd = machine_fd(m, s->fd);
    const char *path = machine_text(m, s->s1);
    switch (s->op) {
    case PYC_OP_MKDIR: {
        long rc = sys(SYS_mkdirat, fd, path, s->a);
        return rc == 0 && s->c ? sys(SYS_fchmodat, fd, path, s->a) : rc;
    }
    case PYC_OP_WRITE:
        return write_file(m, s);
    case PYC_OP_OPEN:
        return sys(SYS_openat, fd, path, s->a | O_CLOEXEC, 0);
    case PYC_OP_SYMLINK:
        return sys(SYS_symlinkat, machine_text(m, s->s2), fd, path);
    case PYC_OP_MKNOD:
        return make_node(m, s);
    case PYC_OP_CHOWN:
        return sys(SYS_fchownat, fd, path, s->a, s->b, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW);
    case PYC_OP_BPF_ATTACH:
        return attach_bpf(m, s);
    default:
        return -ENOSYS;
    }
}
