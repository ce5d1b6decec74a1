/* The steps that decide who the process is: namespaces, host name, limits, ids, capabilities, seccomp.
 * setns(2), unshare(2), prlimit(2), capset(2), prctl(2), seccomp(2), keyctl(2), netdevice(7). Run by program.c.
 */
#include "program.h"
#include "start.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

static long loopback_up(void) {
    long fd = sys(SYS_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    struct ifreq request = {.ifr_name = "lo"};
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    long rc = sys(SYS_ioctl, fd, SIOCSIFFLAGS, &request);
    sys_close(fd);
    return rc;
}

static long set_rlimit(const PycStep *s) {
    struct rlimit64 {
        uint64_t soft, hard;
    } limit = {s->b, s->c};
    return sys(SYS_prlimit64, 0, s->a, &limit, 0);
}

/* Keeping the permitted set over the change of ids lets CAPS, later, cut it to exactly what was asked for. */
static long set_ids(const PycStep *s) {
    long rc = sys(SYS_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0);
    if (rc == 0)
        rc = sys(SYS_setresgid, s->b, s->b, s->b);
    if (rc == 0)
        rc = sys(SYS_setresuid, s->a, s->a, s->a);
    return rc;
}

static long drop_bounding(const PycStep *s) {
    for (uint64_t cap = 0; cap <= s->b && cap < 64; cap++) {
        if (s->a & (1ULL << cap))
            continue;
        long rc = sys(SYS_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static long set_capabilities(const PycStep *s) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    for (int i = 0; i < 2; i++) {
        data[i].effective = (uint32_t)(s->a >> (32 * i));
        data[i].permitted = (uint32_t)(s->b >> (32 * i));
        data[i].inheritable = (uint32_t)(s->c >> (32 * i));
    }
    return sys(SYS_capset, &header, data);
}

static long raise_ambient(const PycStep *s) {
    long rc = sys(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (uint64_t cap = 0; rc == 0 && cap < 64; cap++)
        if (s->a & (1ULL << cap))
            rc = sys(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
    return rc;
}

static long load_seccomp(const Machine *m, const PycStep *s) {
    struct sock_fprog program = {
        .len = (unsigned short)(s->len / sizeof(struct sock_filter)),
        .filter = (struct sock_filter *)(uintptr_t)machine_text(m, s->s2),
    };
    long rc = sys(SYS_seccomp, SECCOMP_SET_MODE_FILTER, s->a, &program);
    if (rc < 0 || !(s->a & SECCOMP_FILTER_FLAG_NEW_LISTENER))
        return rc > 0 ? -ESRCH : rc; /* with TSYNC, the thread that could not follow */
    long told = send_event(m->status, PYC_EVENT_LISTENER, 0, NULL, (int)rc);
    sys_close((int)rc);
    return told;
}

/* Neither the path nor the place may lead out of the root by a descriptor that is open somewhere (CVE-2024-21626). */
static long change_directory(const char *path) {
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS};
    long fd = sys(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
    if (fd < 0)
        return fd;
    long rc = sys(SYS_fchdir, fd);
    sys_close(fd);
    char here[4096];
    if (rc == 0)
        rc = sys(SYS_getcwd, here, sizeof here);
    if (rc == -ERANGE || rc == -ENAMETOOLONG)
        return 0;
    if (rc < 0)
        return rc;
    return here[0] == '/' ? 0 : -EXDEV;
}

static long set_groups(const Machine *m, const PycStep *s) {
    return sys(SYS_setgroups, s->len / sizeof(uint32_t), machine_text(m, s->s2));
}

long run_identity_step(Machine *m, const PycStep *s) {
    const char *text = machine_text(m, s->s1);
    switch (s->op) {
    case PYC_OP_SETNS:
        return sys(SYS_setns, machine_fd(m, s->fd), s->a);
    case PYC_OP_UNSHARE:
        return sys(SYS_unshare, s->a);
    case PYC_OP_HOSTNAME:
        return sys(SYS_sethostname, text, text_length(text));
    case PYC_OP_DOMAINNAME:
        return sys(SYS_setdomainname, text, text_length(text));
    case PYC_OP_LOOPBACK:
        return loopback_up();
    case PYC_OP_RLIMIT:
        return set_rlimit(s);
    case PYC_OP_KEYRING: {
        long rc = sys(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
        return rc < 0 ? rc : 0;
    }
    case PYC_OP_GROUPS:
        return set_groups(m, s);
    case PYC_OP_IDS:
        return set_ids(s);
    case PYC_OP_BOUNDING:
        return drop_bounding(s);
    case PYC_OP_CAPS:
        return set_capabilities(s);
    case PYC_OP_AMBIENT:
        return raise_ambient(s);
    case PYC_OP_NO_NEW_PRIVS:
        return sys(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    case PYC_OP_SECCOMP:
        return load_seccomp(m, s);
    case PYC_OP_CHDIR:
        return change_directory(text);
    case PYC_OP_CHROOT: {
        long rc = sys(SYS_chroot, text);
        return rc == 0 ? sys(SYS_chdir, "/") : rc;
    }
    case PYC_OP_UMASK:
        return sys(SYS_umask, s->a) < 0 ? -EINVAL : 0;
    case PYC_OP_PERSONALITY: {
        long rc = sys(SYS_personality, s->a);
        return rc < 0 ? rc : 0;
    }
    case PYC_OP_SCHED:
        return sys(SYS_sched_setattr, 0, machine_text(m, s->s2), 0);
    case PYC_OP_IOPRIO:
        return sys(SYS_ioprio_set, 1, 0, s->a); /* 1: IOPRIO_WHO_PROCESS */
    case PYC_OP_AFFINITY:
        return sys(SYS_sched_setaffinity, 0, s->len, machine_text(m, s->s2));
    case PYC_OP_MEMPOLICY: /* the kernel takes one bit less than it is told, see get_nodes() in mm/mempolicy.c */
        return sys(SYS_set_mempolicy, s->a, s->len ? machine_text(m, s->s2) : NULL, s->len ? 8UL * s->len + 1 : 0);
    case PYC_OP_PRCTL:
        return sys(SYS_prctl, s->a, s->b, s->c, 0, 0);
    case PYC_OP_SETSID:
        return sys(SYS_setsid) < 0 ? -EPERM : 0;
    default:
        return -ENOSYS;
    }
}
