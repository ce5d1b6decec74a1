/* The caller's side of a start: host steps, the request to the keeper, the parcel to the process; see start.h.
 * unix(7), pidfd_send_signal(2), clone(2) for the keeper itself. Called by pycontainer.runtime.process and keeper.
 */
#include "start.h"
#include "error.h"
#include "program.h"
#include "sys.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

/* Send one packet with descriptors. */
static int send_packet(int to, const void *data, size_t size, const int *fds, size_t count) {
    struct iovec part = {(void *)(uintptr_t)data, size};
    union {
        char buf[CMSG_SPACE(sizeof(int) * PYC_PASSED)];
        struct cmsghdr align;
    } control;
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        memset(&control, 0, sizeof control);
        header.msg_control = control.buf;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * count);
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int) * count);
        memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * count);
    }
    ssize_t n;
    do
        n = sendmsg(to, &header, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

static int request_process(const Machine *m, const PycHeader *h, int keeper, PycChild *child, PycError *err) {
    static const char label[] = "hand the start to the keeper";
    int status[2], ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, status) < 0)
        return pyc_fail(err, errno, label, "");
    child->status_fd = status[0];
    PYC_AUTO_FD theirs = status[1];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return pyc_fail(err, errno, label, "");
    child->exit_fd = ends[0];
    PYC_AUTO_FD exit_end = ends[1];
    int fds[4] = {theirs, exit_end};
    size_t count = 2;
    size_t size = offsetof(PycRequest, uid_map);
    PYC_AUTO_FREE PycRequest *request = calloc(1, sizeof *request);
    if (!request)
        return pyc_fail(err, ENOMEM, label, "");
    request->clone_flags = h->clone_flags;
    int cgroup = machine_fd(m, h->cgroup_fd);
    if (cgroup >= 0)
        fds[count++] = cgroup;
    if (h->pidns_fd >= 0)
        fds[count++] = h->pidns_fd;
    request->has_cgroup = cgroup >= 0;
    request->has_pidns = h->pidns_fd >= 0;
    if (h->clone_flags & CLONE_NEWUSER) {
        const char *uids = m->pool + h->uid_map, *gids = m->pool + h->gid_map;
        if (strlen(uids) >= PYC_MAP_SIZE || strlen(gids) >= PYC_MAP_SIZE)
            return pyc_fail(err, E2BIG, "send the id maps of the user namespace", "");
        request->has_maps = 1;
        strcpy(request->uid_map, uids);
        strcpy(request->gid_map, gids);
        size = sizeof *request;
    }
    int rc = send_packet(keeper, request, size, fds, count);
    return rc < 0 ? pyc_fail(err, rc, label, "") : 0;
}

static int send_parcel(const Machine *m, const PycHeader *h, const int32_t *shared, uint32_t shared_count,
                       const PycChild *child, PycError *err) {
    static const char label[] = "send the start to the process";
    PycParcel parcel = {.size = h->size};
    int fds[PYC_PASSED];
    for (uint32_t i = 0; i < PYC_SHARED + shared_count && i < PYC_SLOTS; i++) {
        int fd = i < PYC_SHARED ? m->slots[i] : shared[i - PYC_SHARED];
        if (fd < 0)
            continue;
        if (parcel.count == PYC_PASSED)
            return pyc_fail(err, E2BIG, label, "");
        fds[parcel.count] = fd;
        parcel.slots[parcel.count++] = (uint16_t)i;
    }
    int rc = send_packet(child->status_fd, &parcel, sizeof parcel, fds, parcel.count);
    for (uint32_t sent = 0; rc == 0 && sent < h->size; sent += PYC_PACKET) {
        uint32_t size = h->size - sent < PYC_PACKET ? h->size - sent : PYC_PACKET;
        rc = send_packet(child->status_fd, m->base + sent, size, NULL, 0);
    }
    /* EPIPE: it is dead already; its last words, which tell why, are read next. */
    return rc < 0 && rc != -EPIPE && rc != -ECONNRESET ? pyc_fail(err, rc, label, "") : 0;
}

static void close_results(const Machine *m) {
    for (int i = 0; i < PYC_SHARED; i++)
        if (m->slots[i] >= 0)
            (void)close(m->slots[i]);
}

static void close_fd(int32_t *fd) {
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

/* End a process that has not started, wait until the keeper has reaped it, and close all. Returns the failure. */
static int give_up(PycChild *child, PycError *err) {
    close_fd(&child->status_fd); /* a parked process ends by this */
    if (child->pidfd >= 0)
        (void)pyc_kill(child->pidfd, SIGKILL);
    PycExit ended;
    while (child->exit_fd >= 0 && read(child->exit_fd, &ended, sizeof ended) < 0 && errno == EINTR)
        continue;
    close_fd(&child->exit_fd);
    close_fd(&child->pidfd);
    close_fd(&child->tty_fd);
    close_fd(&child->listener_fd);
    return err->code ? -err->code : pyc_fail(err, ECHILD, "start the process: it was killed while it was set up", "");
}

int pyc_follow(PycChild *child, PycError *err) {
    for (;;) {
        PycEvent event;
        struct iovec part = {&event, sizeof event};
        union {
            char buf[CMSG_SPACE(sizeof(int))];
            struct cmsghdr align;
        } control;
        struct msghdr header = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(child->status_fd, &header, MSG_CMSG_CLOEXEC);
        if (n < 0 && errno == EINTR) {
            child->event = PYC_EVENT_INTERRUPTED;
            return 0;
        }
        if (n != sizeof event) { /* the end: the socket closed at execve, or with the process */
            if (child->pidfd < 0 || !child->settled)
                return give_up(child, err);
            close_fd(&child->status_fd);
            child->event = PYC_EVENT_STARTED;
            return 0;
        }
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
        int fd = -1;
        if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
            memcpy(&fd, CMSG_DATA(cmsg), sizeof fd);
        if (event.type == PYC_EVENT_BORN) {
            child->pid = event.value;
            child->pidfd = fd;
        } else if (event.type == PYC_EVENT_TERMINAL) {
            child->tty_fd = fd;
        } else if (event.type == PYC_EVENT_LISTENER) {
            child->listener_fd = fd;
        } else if (event.type == PYC_EVENT_SETTLED) {
            child->settled = 1;
        } else if (event.type == PYC_EVENT_PARKED) {
            child->value = event.value;
            child->parked = 1;
        } else {
            (void)pyc_fail(err, event.err.code, event.err.step, event.err.path);
            return give_up(child, err);
        }
        /* It may be parked, or have a listener, before the keeper has told of its birth. */
        if (child->pidfd >= 0 && (child->parked || child->listener_fd >= 0)) {
            child->event = child->parked ? PYC_EVENT_PARKED : PYC_EVENT_LISTENER;
            return 0;
        }
    }
}

int pyc_start(const uint8_t *program, uint64_t size, const int32_t *shared, uint32_t shared_count, int keeper_socket,
              PycChild *ret, PycError *err) {
    *ret = (PycChild){.pidfd = -1, .exit_fd = -1, .tty_fd = -1, .status_fd = -1, .listener_fd = -1};
    Machine m;
    const PycHeader *h = load_program(&m, program, size);
    if (!h)
        return pyc_fail(err, EINVAL, "read the program of the start", "");
    m.err = err;
    /* While the keeper clones, which is half of the work, the other host steps run here. */
    long rc = run_steps(&m, first_step(&m), h->early_steps);
    if (rc == 0)
        rc = request_process(&m, h, keeper_socket, ret, err);
    if (rc == 0)
        rc = run_steps(&m, first_step(&m) + h->early_steps, h->host_steps - h->early_steps);
    if (rc == 0)
        rc = send_parcel(&m, h, shared, shared_count, ret, err);
    close_results(&m);
    return rc < 0 ? give_up(ret, err) : pyc_follow(ret, err);
}

int pyc_prepare(const uint8_t *program, uint64_t size, int32_t *ret_fds, uint32_t count, PycError *err) {
    Machine m;
    const PycHeader *h = load_program(&m, program, size);
    if (!h)
        return pyc_fail(err, EINVAL, "read the program", "");
    m.err = err;
    long rc = run_steps(&m, first_step(&m), h->host_steps);
    uint32_t used = 0;
    while (used < PYC_SHARED && m.slots[used] >= 0)
        used++;
    if (rc < 0 || used > count) {
        close_results(&m);
        return rc < 0 ? (int)rc : pyc_fail(err, E2BIG, "return the descriptors of the program", "");
    }
    for (uint32_t i = 0; i < used; i++)
        ret_fds[i] = m.slots[i];
    return (int)used;
}

int pyc_resume(PycChild *child, PycError *err) {
    if (child->event != PYC_EVENT_PARKED || child->status_fd < 0)
        return pyc_fail(err, EINVAL, "resume a process that is not parked", "");
    child->parked = 0;
    if (send(child->status_fd, "", 1, MSG_NOSIGNAL) != 1)
        return give_up(child, err);
    return pyc_follow(child, err);
}

int pyc_kill(int pidfd, int signal) { return (int)sys(SYS_pidfd_send_signal, pidfd, signal, 0, 0); }

/* ---- what the caller keeps to its helpers ---- */

int pyc_socket_pair(int32_t ret_fds[2], PycError *err) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return pyc_fail(err, errno, "make a socket for the keeper", "");
    ret_fds[0] = ends[0];
    ret_fds[1] = ends[1];
    return 0;
}

int pyc_send(int fd, const char *data, uint64_t size) { return send(fd, data, size, MSG_NOSIGNAL) < 0 ? -errno : 0; }

/* ---- what it writes ---- */

/* Read once, which poll(2) says will not wait; a full buffer grows, up to the limit, beyond which bytes are dropped. */
static int drain(int32_t *fd, PycOutput *out, PycError *err) {
    char waste[65536];
    if (out->size == out->room && out->room < out->limit) {
        uint64_t room = out->room ? 2 * out->room : 4096;
        room = room < out->limit ? room : out->limit;
        char *grown = realloc(out->data, room);
        if (!grown)
            return pyc_fail(err, ENOMEM, "keep the output", "");
        out->data = grown;
        out->room = room;
    }
    int full = out->size == out->room;
    ssize_t n = read(*fd, full ? waste : out->data + out->size, full ? sizeof waste : out->room - out->size);
    if (n > 0 && full)
        out->dropped += (uint64_t)n;
    else if (n > 0)
        out->size += (uint64_t)n;
    else if (n == 0)
        close_fd(fd);
    else if (errno != EINTR && errno != EAGAIN)
        return pyc_fail(err, errno, "read the output", "");
    return 0;
}

static int64_t now_ms(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

enum { SLICE_MS = 100 };

int pyc_collect(int pidfd, int32_t fds[2], PycOutput outputs[2], int timeout_ms, int32_t *ret_ended, PycError *err) {
    int64_t began = now_ms();
    for (;;) {
        struct pollfd watched[3] = {
            {.fd = *ret_ended ? -1 : pidfd, .events = POLLIN},
            {.fd = fds[0], .events = POLLIN},
            {.fd = fds[1], .events = POLLIN},
        };
        if (*ret_ended && fds[0] < 0 && fds[1] < 0)
            return 0;
        /* Once it has ended nobody writes any more, unless a stranger holds the pipe: take what is there. */
        int n = poll(watched, 3, *ret_ended ? 0 : timeout_ms);
        if (n <= 0)
            return n < 0 ? -errno : *ret_ended ? 0 : -ETIME;
        for (int i = 0; i < 2; i++)
            if (watched[i + 1].revents && drain(&fds[i], &outputs[i], err) < 0)
                return -err->code;
        if (watched[0].revents)
            *ret_ended = 1;
        else if (now_ms() - began > SLICE_MS)
            return -EINTR; /* output without pause must keep neither a deadline nor a signal from being seen */
    }
}

void pyc_free_output(PycOutput *output) {
    free(output->data);
    *output = (PycOutput){0};
}

/* ---- the keeper's own start ---- */

typedef struct Launch {
    Machine machine;
    const PycHeader *header;
    PycError err;
    sigset_t mask;
    void *stack; /* of the second process */
} Launch;

enum { STACK_SIZE = 128 * 1024 };

static int run_keeper(void *argument) {
    Launch *l = argument;
    (void)sys(SYS_rt_sigprocmask, SIG_SETMASK, &l->mask, 0, 8);
    (void)run_steps(&l->machine, first_step(&l->machine) + l->header->host_steps, l->header->child_steps);
    sys(SYS_exit_group, 127);
    return 0;
}

/* The process between: its end makes the keeper an orphan, so that the caller never gets a SIGCHLD for it or finds it in
 * its wait(2) calls. It executes nothing, so its own end is silent too (exit_signal 0). */
static int run_between(void *argument) {
    Launch *l = argument;
    int flags = CLONE_VM | CLONE_VFORK | (int)l->header->clone_flags;
    int pid = clone(run_keeper, (char *)l->stack + STACK_SIZE, flags, l);
    if (pid < 0)
        (void)pyc_fail(&l->err, errno, "clone the keeper", "");
    sys(SYS_exit_group, 0);
    return 0;
}

int pyc_launch(const uint8_t *program, uint64_t size, PycError *err) {
    Launch launch = {.err = {0}};
    launch.header = load_program(&launch.machine, program, size);
    if (!launch.header)
        return pyc_fail(err, EINVAL, "read the program of the keeper", "");
    launch.machine.err = &launch.err;
    size_t pointers = ((size_t)launch.header->exec_index + 4) * sizeof(char *);
    size_t total = 2 * STACK_SIZE + pointers;
    char *memory = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED)
        return pyc_fail(err, errno, "make room for the keeper's start", "");
    launch.machine.pointers = (char **)(void *)(memory + 2 * STACK_SIZE);
    launch.stack = memory + STACK_SIZE;
    sigset_t all, old;
    (void)sigfillset(&all);
    (void)sigemptyset(&launch.mask);
    (void)sigprocmask(SIG_SETMASK, &all, &old);
    /* Caught signals would run the caller's handlers in the child: they stay blocked there until execve resets them. */
    launch.mask = all;
    int pid = clone(run_between, memory + STACK_SIZE, CLONE_VM | CLONE_VFORK, &launch);
    int failure = errno;
    if (pid > 0)
        while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
            continue;
    (void)sigprocmask(SIG_SETMASK, &old, NULL);
    (void)munmap(memory, total);
    if (pid < 0)
        return pyc_fail(err, failure, "clone the keeper", "");
    return launch.err.code ? pyc_fail(err, launch.err.code, launch.err.step, launch.err.path) : 0;
}
