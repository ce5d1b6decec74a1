/* The keeper: bears the processes of containers, tells their end, and ends them all when the program that asked is gone.
 * clone3(2), epoll(7), waitid(2), unix(7), user_namespaces(7). A mode of the helper, started by pycontainer.runtime.keeper.
 *
 * It is small and runs nothing but this file, so a process is cloned from it quickly and without a trace of the program
 * that uses pycontainer: no memory, no descriptors, no executable of its are in reach of what a container runs.
 * Descriptors: 3 requests from the program, 4 end of a pipe by which the cleaner knows that it has ended.
 */
#include "monitor.h"
#include "error.h"
#include "program.h"
#include "start.h"
#include "sys.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct Member {
    int pidfd;
    int exit_fd;
    struct Member *next, *previous;
} Member;

/* A process born ahead of its request, for the namespaces asked for last: it waits for its status socket. */
typedef struct Spare {
    uint64_t clone_flags; /* 0: there is none */
    int pid, pidfd;
    int control; /* our end of a socket pair; the process ends when it closes */
} Spare;

typedef struct Keeper {
    int events;     /* epoll */
    Member members; /* head of a ring */
    struct rlimit files;
    int own_pidns;
    uint64_t wanted; /* namespaces of the last plain request, for the next spare; 0 when none is wanted */
    Spare spare;
} Keeper;

enum { SPARE_AFTER_MS = 5, SPARE_IDLE_MS = 10000, FIRST_FREE = 6 };

/* ---- in the new process ---- */

/* Receive the program and put the descriptors that come with it into the slots. */
static const PycHeader *receive_parcel(Machine *m, int status, PycError *err) {
    static const char label[] = "receive the start";
    PycParcel parcel;
    struct iovec part = {&parcel, sizeof parcel};
    union {
        char buf[CMSG_SPACE(sizeof(int) * PYC_PASSED)];
        struct cmsghdr align;
    } control;
    struct msghdr header = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof control};
    long n = sys(SYS_recvmsg, status, &header, MSG_CMSG_CLOEXEC);
    if (n != sizeof parcel || parcel.count > PYC_PASSED || (header.msg_flags & MSG_CTRUNC)) {
        (void)pyc_fail(err, n < 0 ? (int)n : ECANCELED, label, "");
        return NULL;
    }
    long memory = sys(SYS_mmap, 0, parcel.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory < 0 && memory > -4096) {
        (void)pyc_fail(err, (int)memory, label, "");
        return NULL;
    }
    for (uint32_t got = 0; got < parcel.size; got += (uint32_t)n) {
        n = sys(SYS_read, status, memory + got, parcel.size - got);
        if (n <= 0) {
            (void)pyc_fail(err, n < 0 ? (int)n : ECANCELED, label, "");
            return NULL;
        }
    }
    const PycHeader *h = load_program(m, (const uint8_t *)memory, parcel.size);
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
    if (!h || (parcel.count > 0 && !cmsg)) {
        (void)pyc_fail(err, EINVAL, label, "");
        return NULL;
    }
    const unsigned char *fds = parcel.count > 0 ? CMSG_DATA(cmsg) : NULL;
    for (uint32_t i = 0; i < parcel.count; i++)
        if (parcel.slots[i] < PYC_SLOTS)
            __builtin_memcpy(&m->slots[parcel.slots[i]], fds + i * sizeof(int), sizeof(int));
    return h;
}

/* Wait, as a spare, for the status socket of the start that we shall be; nothing else of the keeper's is kept open. */
static int await_status(int control) {
    if (control != FIRST_FREE && sys(SYS_dup3, control, FIRST_FREE, O_CLOEXEC) < 0)
        return -1;
    (void)sys(SYS_close_range, FIRST_FREE + 1, ~0U, 0);
    char byte;
    struct iovec part = {&byte, 1};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control_data;
    struct msghdr header = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control_data.buf, .msg_controllen = sizeof control_data};
    long n = sys(SYS_recvmsg, FIRST_FREE, &header, MSG_CMSG_CLOEXEC);
    struct cmsghdr *cmsg = n > 0 ? CMSG_FIRSTHDR(&header) : NULL;
    int status = -1;
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
        __builtin_memcpy(&status, CMSG_DATA(cmsg), sizeof status);
    return status;
}

static _Noreturn void be_born(const Keeper *k, int status, int go, int control) {
    PycError err = {0};
    Machine m;
    (void)sys(SYS_close_range, KEEP_REQUESTS, FIRST_FREE - 1, 0); /* they tell others that the keeper is alive */
    uint64_t none = 0;
    (void)sys(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, 8);
    (void)sys(SYS_prlimit64, 0, RLIMIT_NOFILE, &k->files, 0);
    (void)sys(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    (void)sys(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0,
              0); /* in a joined pid namespace others could trace us until execve */
    if (control >= 0) {
        status = await_status(control);
        if (status < 0)
            for (;;)
                (void)sys(SYS_exit_group, 0);
    }
    char byte;
    if (go >= 0 && sys(SYS_read, go, &byte, 1) != 1) /* the keeper writes the id maps first */
        (void)pyc_fail(&err, ECANCELED, "wait for the id maps of the user namespace", "");
    const PycHeader *h = err.code ? NULL : receive_parcel(&m, status, &err);
    if (h) {
        size_t size = ((size_t)h->exec_index + 4) * sizeof(char *);
        m.pointers = (char **)sys(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        m.err = &err;
        m.status = status;
        (void)run_steps(&m, first_step(&m) + h->host_steps, h->child_steps);
        status = m.status;
    }
    (void)send_event(status, PYC_EVENT_FAILED, 0, &err, -1);
    for (;;)
        (void)sys(SYS_exit_group, 127);
}

/* ---- in the keeper ---- */

static int write_map(int pid, const char *name, const char *text, PycError *err) {
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    PYC_AUTO_FD fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return pyc_fail(err, errno, "open the id map of the user namespace", path);
    size_t n = strlen(text);
    if (write(fd, text, n) != (ssize_t)n)
        return pyc_fail(err, errno, "write the id map of the user namespace", text);
    return 0;
}

static void kill_pidfd(int pidfd) { (void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0); }

static void add_member(Keeper *k, int pidfd, int exit_fd) {
    Member *m = malloc(sizeof *m);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = m};
    if (!m || epoll_ctl(k->events, EPOLL_CTL_ADD, pidfd, &event) < 0) {
        kill_pidfd(pidfd); /* one that cannot be kept must not run */
        (void)waitid(P_PIDFD, (id_t)pidfd, NULL, WEXITED);
        (void)close(pidfd);
        (void)close(exit_fd);
        free(m);
        return;
    }
    *m = (Member){.pidfd = pidfd, .exit_fd = exit_fd, .next = k->members.next, .previous = &k->members};
    k->members.next->previous = m;
    k->members.next = m;
}

/* A member has ended: reap it and tell. */
static void end_member(const Keeper *k, Member *m) {
    /* The caller holds the same pidfd, so closing ours would not take it out of the set. */
    (void)epoll_ctl(k->events, EPOLL_CTL_DEL, m->pidfd, NULL);
    siginfo_t info = {0};
    struct rusage usage = {0};
    while (syscall(SYS_waitid, P_PIDFD, m->pidfd, &info, WEXITED, &usage) < 0 && errno == EINTR)
        continue;
    PycExit ended = {
        .code = info.si_code,
        .status = info.si_status,
        .user_us = usage.ru_utime.tv_sec * 1000000LL + usage.ru_utime.tv_usec,
        .system_us = usage.ru_stime.tv_sec * 1000000LL + usage.ru_stime.tv_usec,
        .max_rss = usage.ru_maxrss * 1024LL,
    };
    if (write(m->exit_fd, &ended, sizeof ended) < 0 && errno != EPIPE)
        kill_pidfd(m->pidfd); /* cannot happen: a pipe with room for it; nothing is left to be done for this member */
    (void)close(m->exit_fd);
    (void)close(m->pidfd);
    m->previous->next = m->next;
    m->next->previous = m->previous;
    free(m);
}

static long clone_into(struct clone_args *args, int pidns, const Keeper *k) {
    if (pidns >= 0 && setns(pidns, CLONE_NEWPID) < 0)
        return -errno;
    long pid = syscall(SYS_clone3, args, sizeof *args);
    long rc = pid < 0 ? -errno : pid;
    if (pid != 0 && pidns >= 0 && setns(k->own_pidns, CLONE_NEWPID) < 0)
        _exit(1); /* cannot happen: it is our own; never bear the next one in a wrong place */
    return rc;
}

static int bear(Keeper *k, const PycRequest *request, int status, int exit_fd, const int *places) {
    PycError err = {0};
    int cgroup = request->has_cgroup ? places[0] : -1;
    int pidns = request->has_pidns ? places[request->has_cgroup] : -1;
    int go[2] = {-1, -1}, pidfd = -1;
    if (request->has_maps && pipe2(go, O_CLOEXEC) < 0)
        return pyc_fail(&err, errno, "make a pipe", "");
    struct clone_args args = {
        .flags = request->clone_flags | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | (cgroup >= 0 ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
        .cgroup = cgroup >= 0 ? (__u64)cgroup : 0,
    };
    long pid = clone_into(&args, pidns, k);
    if (pid == 0)
        be_born(k, status, go[0], -1);
    int rc = pid < 0 ? pyc_fail(&err, (int)pid, "clone the process into its namespaces", "") : 0;
    if (rc == 0 && request->has_maps) {
        rc = write_map((int)pid, "uid_map", request->uid_map, &err);
        if (rc == 0)
            rc = write_map((int)pid, "gid_map", request->gid_map, &err);
        if (rc == 0 && write(go[1], "", 1) != 1)
            rc = pyc_fail(&err, errno, "let the process go on", "");
        if (rc < 0)
            kill_pidfd(pidfd);
    }
    pyc_close_fd(&go[0]);
    pyc_close_fd(&go[1]);
    if (pid > 0) {
        (void)send_event(status, PYC_EVENT_BORN, (int32_t)pid, NULL, pidfd);
        add_member(k, pidfd, pyc_take_fd(&exit_fd));
    }
    if (rc < 0)
        (void)send_event(status, PYC_EVENT_FAILED, 0, &err, -1);
    pyc_close_fd(&exit_fd);
    return rc;
}

static void drop_spare(Keeper *k) {
    if (!k->spare.clone_flags)
        return;
    kill_pidfd(k->spare.pidfd);
    while (syscall(SYS_waitid, P_PIDFD, k->spare.pidfd, NULL, WEXITED, NULL) < 0 && errno == EINTR)
        continue;
    (void)close(k->spare.pidfd);
    (void)close(k->spare.control);
    k->spare = (Spare){0};
}

static void make_spare(Keeper *k) {
    int pair[2], pidfd = -1;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return;
    struct clone_args args = {
        .flags = k->wanted | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
    };
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        be_born(k, -1, -1, pair[1]);
    (void)close(pair[1]);
    if (pid > 0)
        k->spare = (Spare){.clone_flags = k->wanted, .pid = (int)pid, .pidfd = pidfd, .control = pair[0]};
    else
        (void)close(pair[0]); /* the next request will tell why */
}

/* Give the start to the spare, if it is of the right kind and alive. Returns whether it has it. */
static int use_spare(Keeper *k, int status, int exit_fd) {
    Spare spare = k->spare;
    if (send_event(status, PYC_EVENT_BORN, spare.pid, NULL, spare.pidfd) < 0)
        return 0;
    k->spare = (Spare){0};
    /* Only the descriptor counts; a dead spare shows as a start that was killed. */
    (void)send_event(spare.control, PYC_EVENT_BORN, 0, NULL, status);
    (void)close(spare.control);
    add_member(k, spare.pidfd, exit_fd);
    return 1;
}

/* Take one request; returns 0 at the end of the stream. */
static int serve(Keeper *k) {
    static PycRequest request;
    struct iovec part = {&request, sizeof request};
    union {
        char buf[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr header = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(KEEP_REQUESTS, &header, MSG_CMSG_CLOEXEC);
    if (n < 0)
        return errno == EINTR;
    if (n == 0)
        return 0;
    int fds[4] = {-1, -1, -1, -1};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS && cmsg->cmsg_len <= CMSG_LEN(sizeof fds))
        memcpy(fds, CMSG_DATA(cmsg), cmsg->cmsg_len - CMSG_LEN(0));
    PYC_AUTO_FD status = fds[0];
    int plain = !request.has_cgroup && !request.has_pidns && !request.has_maps;
    if (status >= 0 && fds[1] >= 0) {
        int fits = plain && k->spare.clone_flags && request.clone_flags == k->spare.clone_flags;
        int has_it = fits && use_spare(k, status, fds[1]);
        if (!has_it)
            (void)bear(k, &request, status, fds[1], fds + 2);
        k->wanted = plain ? request.clone_flags : 0;
        if (k->spare.clone_flags != k->wanted)
            drop_spare(k);
    }
    pyc_close_fd(&fds[2]);
    pyc_close_fd(&fds[3]);
    return 1;
}

/* The program closed or died: nothing that it ran goes on. Their pid namespaces end with the members. */
static void kill_members(Keeper *k) {
    for (Member *m = k->members.next; m != &k->members; m = m->next)
        kill_pidfd(m->pidfd);
    while (k->members.next != &k->members) {
        struct pollfd gone = {.fd = k->members.next->pidfd, .events = POLLIN};
        if (poll(&gone, 1, WAIT_MS) <= 0)
            break; /* stuck in the kernel: the cleaner waits for its cgroup in turn, and the next open after that */
        end_member(k, k->members.next);
    }
}

int keep(void) {
    Keeper k = {
        .events = epoll_create1(EPOLL_CLOEXEC),
        .own_pidns = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC),
    };
    k.members.next = k.members.previous = &k.members;
    struct epoll_event requests = {.events = EPOLLIN, .data.ptr = NULL};
    if (k.events < 0 || k.own_pidns < 0 || getrlimit(RLIMIT_NOFILE, &k.files) < 0)
        return 1;
    struct rlimit most = {.rlim_cur = k.files.rlim_max, .rlim_max = k.files.rlim_max};
    (void)setrlimit(RLIMIT_NOFILE, &most); /* two descriptors for each container */
    if (epoll_ctl(k.events, EPOLL_CTL_ADD, KEEP_REQUESTS, &requests) < 0)
        return 1;
    for (;;) {
        /* A moment of quiet is used to bear one ahead; one that nobody wants for long is let go. */
        struct epoll_event event;
        int n = epoll_wait(k.events, &event, 1, k.spare.clone_flags ? SPARE_IDLE_MS : k.wanted ? SPARE_AFTER_MS : -1);
        if (n < 0 && errno != EINTR)
            break;
        if (n == 0 && k.spare.clone_flags) {
            drop_spare(&k);
            k.wanted = 0;
        } else if (n == 0) {
            make_spare(&k);
            if (!k.spare.clone_flags)
                k.wanted = 0;
        }
        if (n <= 0)
            continue;
        if (event.data.ptr)
            end_member(&k, event.data.ptr);
        else if (!serve(&k))
            break;
    }
    drop_spare(&k);
    kill_members(&k);
    return 0;
}
