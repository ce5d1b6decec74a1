/* Starts a process by a program of steps (program.h) without copying the caller: the child borrows the caller's memory
 * until execve, so a caller of any size starts one equally fast.
 * clone3(2), pidfd_open(2), waitid(2), setns(2), user_namespaces(7). Called by pycontainer.runtime.process.
 *
 * The child has its own descriptor table and stack but shares memory and thread-local storage with the thread that
 * called us, so it makes raw system calls only. exit_signal is 0: the host program's wait(2) calls never see it.
 */
#include "error.h"
#include "program.h"
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
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { STACK_SIZE = 64 * 1024 };

/* Everything that the child uses lives in one mapping, freed when the child no longer runs on our memory. */
typedef struct Block {
    Machine machine;
    PycError err;
    sigset_t mask;
    const PycHeader *header;
    const PycStep *steps;
} Block;

static const PycHeader *check_program(const uint8_t *program, uint64_t size) {
    const PycHeader *h = (const PycHeader *)program;
    if (size < sizeof *h || h->magic != PYC_PROGRAM_MAGIC || h->size != size)
        return NULL;
    uint64_t steps = ((uint64_t)h->host_steps + h->child_steps) * sizeof(PycStep);
    if (h->pool != sizeof *h + steps || h->pool >= size || program[size - 1] != 0)
        return NULL;
    return h;
}

static Block *make_block(const uint8_t *program, uint64_t size, PycChild *child) {
    const PycHeader *h = check_program(program, size);
    if (!h)
        return NULL;
    uint64_t head = (sizeof(Block) + 15) & ~15ULL;
    uint64_t body = (size + 15) & ~15ULL;
    uint64_t pointers = ((uint64_t)h->exec_index + 4) * sizeof(char *);
    uint64_t total = head + body + pointers + STACK_SIZE + 64;
    uint8_t *memory = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    Block *b = (Block *)memory;
    uint8_t *copy = memory + head;
    memcpy(copy, program, size);
    b->header = (const PycHeader *)copy;
    b->steps = (const PycStep *)(copy + sizeof(PycHeader));
    b->machine.base = copy;
    b->machine.pool = (const char *)copy + b->header->pool;
    b->machine.pointers = (char **)(copy + body);
    b->machine.status = -1;
    b->machine.status_target = b->header->status_target;
    for (int i = 0; i < PYC_SLOTS; i++)
        b->machine.slots[i] = -1;
    child->block = memory;
    child->block_size = total;
    return b;
}

static void free_block(PycChild *child) {
    if (child->block)
        (void)munmap(child->block, child->block_size);
    child->block = NULL;
    if (child->status_fd >= 0)
        (void)close(child->status_fd);
    child->status_fd = -1;
}

/* CLONE_CLEAR_SIGHAND leaves ignored signals ignored, and a Python program ignores SIGPIPE. */
static void default_signals(void) {
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        uint64_t mask;
    } action = {0};
    for (int number = 1; number < 65; number++)
        (void)sys(SYS_rt_sigaction, number, &action, 0, 8); /* fails for SIGKILL and SIGSTOP, as it must */
}

/* The new process, on its own stack. Never returns. */
static _Noreturn void child_main(Block *b) {
    Machine *m = &b->machine;
    default_signals();
    const PycHeader *h = b->header;
    m->err = &b->err;
    long rc = 0;
    if (h->clone_flags & CLONE_NEWUSER) { /* the parent writes the maps, then lets us go on */
        char go;
        do
            rc = sys(SYS_read, m->status, &go, 1);
        while (rc == -EINTR);
        rc = rc == 1 ? 0 : pyc_fail(m->err, EPIPE, "wait for the id maps of the user namespace", "");
    }
    (void)sys(SYS_rt_sigprocmask, SIG_SETMASK, &b->mask, 0, 8);
    if (rc == 0)
        (void)run_steps(m, b->steps + h->host_steps, h->child_steps);
    for (;;)
        (void)sys(SYS_exit_group, 127);
}

#if defined(__x86_64__)
static long clone_child(struct clone_args *args, Block *b) {
    register long ret __asm__("rax") = SYS_clone3;
    register Block *block __asm__("rbx") = b;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%rbx, %%rdi\n\t"
                     "call *%[entry]\n\t"
                     "hlt\n"
                     "1:"
                     : "+a"(ret)
                     : "D"(args), "S"(sizeof *args), "b"(block), [entry] "r"((void (*)(Block *))child_main)
                     : "rcx", "r11", "memory");
    return ret;
}
#else
static long clone_child(struct clone_args *args, Block *b) {
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = sizeof *args;
    register long x8 __asm__("x8") = SYS_clone3;
    register Block *block __asm__("x19") = b;
    register void (*entry)(Block *) __asm__("x20") = child_main;
    __asm__ volatile("svc 0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x0, x19\n\t"
                     "blr x20\n\t"
                     "brk 1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x1), "r"(x8), "r"(block), "r"(entry)
                     : "memory", "x30");
    return x0;
}
#endif

static int reap(int pidfd) {
    siginfo_t info;
    long rc;
    do
        rc = sys(SYS_waitid, P_PIDFD, pidfd, &info, WEXITED | __WALL, 0);
    while (rc == -EINTR);
    return (int)rc;
}

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

/* One message from the child (or, after execve, from the helper): its event, or 0 at the end of the stream. */
static int receive(PycChild *child, int32_t message[2], PycError *err) {
    char detail[sizeof(PycError)];
    struct iovec parts[2] = {{message, 2 * sizeof(int32_t)}, {detail, sizeof detail}};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr header = {
        .msg_iov = parts, .msg_iovlen = 2, .msg_control = control.buf, .msg_controllen = sizeof control};
    ssize_t n;
    do
        n = recvmsg(child->status_fd, &header, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return 0;
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
        memcpy(&child->tty_fd, CMSG_DATA(cmsg), sizeof(int));
    if (message[0] == PYC_EVENT_FAILED)
        (void)pyc_fail(err, message[1], "execute", "");
    return message[0];
}

static int fail_and_reap(PycChild *child, const PycError *cause, PycError *err) {
    (void)sys(SYS_pidfd_send_signal, child->pidfd, SIGKILL, 0, 0);
    (void)reap(child->pidfd);
    if (cause && cause->code)
        (void)pyc_fail(err, cause->code, cause->step, cause->path);
    else
        (void)pyc_fail(err, ECHILD, "start the process: it was killed while it was set up", "");
    (void)close(child->pidfd);
    child->pidfd = -1;
    if (child->tty_fd >= 0)
        (void)close(child->tty_fd);
    child->tty_fd = -1;
    free_block(child);
    return -err->code;
}

/* Follow the status socket until the child parks, executes or fails. */
static int follow(PycChild *child, PycError *err) {
    Block *b = child->block;
    for (;;) {
        int32_t message[2] = {0, 0};
        int event = receive(child, message, err);
        if (event == PYC_EVENT_TERMINAL)
            continue;
        if (event == PYC_EVENT_PARKED) {
            child->event = event;
            child->value = message[1];
            return 0;
        }
        if (event == PYC_EVENT_FAILED)
            return fail_and_reap(child, err, err);
        /* The end: the socket closed at execve, or with the child. */
        if (b->err.code)
            return fail_and_reap(child, &b->err, err);
        child->event = PYC_EVENT_STARTED;
        free_block(child);
        return 0;
    }
}

static long clone_it(const PycHeader *h, Block *b, PycChild *ret, int cgroup_fd, int sync) {
    int pidfd = -1;
    struct clone_args args = {
        .flags = h->clone_flags | CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | (sync ? 0 : CLONE_VFORK) |
                 (cgroup_fd >= 0 ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .stack = (uint64_t)((((uintptr_t)ret->block + ret->block_size) & ~63UL) - STACK_SIZE),
        .stack_size = STACK_SIZE,
        .cgroup = cgroup_fd >= 0 ? (__u64)cgroup_fd : 0,
    };
    if (h->pidns_fd >= 0) {
        long rc = sys(SYS_setns, h->pidns_fd, CLONE_NEWPID);
        if (rc < 0)
            return rc;
    }
    long pid = clone_child(&args, b);
    if (h->pidns_fd >= 0) {
        long rc = sys(SYS_setns, h->own_pidns_fd, CLONE_NEWPID);
        if (rc < 0 && pid > 0) { /* cannot happen: it is our own; but never go on from a wrong place */
            (void)sys(SYS_pidfd_send_signal, pidfd, SIGKILL, 0, 0);
            (void)reap(pidfd);
            (void)close(pidfd);
            return rc;
        }
    }
    if (pid > 0) {
        ret->pid = (int32_t)pid;
        ret->pidfd = pidfd;
    }
    return pid;
}

static void close_slots(const int32_t *slots, uint32_t n) {
    for (uint32_t i = 0; i < n && i < PYC_SLOTS; i++)
        sys_close(slots[i]);
}

int pyc_spawn(const uint8_t *program, uint64_t size, PycChild *ret, PycError *err) {
    *ret = (PycChild){.pidfd = -1, .tty_fd = -1, .status_fd = -1};
    Block *b = make_block(program, size, ret);
    if (!b)
        return pyc_fail(err, errno ? errno : EINVAL, "read the program of the start", "");
    const PycHeader *h = b->header;
    Machine *m = &b->machine;
    m->err = err;
    long rc = run_steps(m, b->steps, h->host_steps);
    int pair[2] = {-1, -1};
    if (rc == 0 && h->status) {
        rc = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 ? -errno : 0;
        if (rc < 0)
            (void)pyc_fail(err, (int)rc, "make the status socket", "");
    }
    m->status = pair[1];
    ret->status_fd = pair[0];
    int32_t slots[PYC_SLOTS]; /* ours to close; the child goes on writing to its own table */
    memcpy(slots, m->slots, sizeof slots);
    if (rc < 0) {
        close_slots(slots, h->close_slots);
        free_block(ret);
        return (int)rc;
    }

    sigset_t all, old;
    sigfillset(&all);
    (void)sys(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, 8);
    sigemptyset(&b->mask); /* the container starts with nothing blocked, whatever the caller blocks */
    long pid = clone_it(h, b, ret, machine_fd(m, h->cgroup_fd), h->status != 0);
    (void)sys(SYS_rt_sigprocmask, SIG_SETMASK, &old, 0, 8);
    sys_close(pair[1]);
    close_slots(slots, h->close_slots);
    if (pid < 0) {
        free_block(ret);
        return pyc_fail(err, (int)pid, "clone the process into its namespaces", "");
    }
    if (!h->status) { /* vfork: it has executed, or failed and is dead */
        if (b->err.code)
            return fail_and_reap(ret, &b->err, err);
        free_block(ret);
        return 0;
    }
    if (h->clone_flags & CLONE_NEWUSER) {
        const char *pool = m->pool;
        rc = write_map(ret->pid, "uid_map", pool + h->uid_map, err);
        if (rc == 0)
            rc = write_map(ret->pid, "gid_map", pool + h->gid_map, err);
        if (rc == 0 && write(ret->status_fd, "", 1) != 1)
            rc = pyc_fail(err, errno, "let the process go on", "");
        if (rc < 0)
            return fail_and_reap(ret, err, err);
    }
    return follow(ret, err);
}

int pyc_prepare(const uint8_t *program, uint64_t size, int32_t *ret_fds, uint32_t count, PycError *err) {
    PycChild holder = {.pidfd = -1, .tty_fd = -1, .status_fd = -1};
    Block *b = make_block(program, size, &holder);
    if (!b)
        return pyc_fail(err, errno ? errno : EINVAL, "read the program", "");
    b->machine.err = err;
    long rc = run_steps(&b->machine, b->steps, b->header->host_steps);
    uint32_t used = b->header->close_slots;
    if (rc < 0 || used > count) {
        close_slots(b->machine.slots, used);
        free_block(&holder);
        return rc < 0 ? (int)rc : pyc_fail(err, E2BIG, "return the descriptors of the program", "");
    }
    for (uint32_t i = 0; i < used; i++)
        ret_fds[i] = b->machine.slots[i];
    free_block(&holder);
    return (int)used;
}

int pyc_resume(PycChild *child, PycError *err) {
    if (!child->block || child->event != PYC_EVENT_PARKED)
        return pyc_fail(err, EINVAL, "resume a process that is not parked", "");
    if (send(child->status_fd, "", 1, MSG_NOSIGNAL) != 1)
        return fail_and_reap(child, NULL, err);
    return follow(child, err);
}

int pyc_abandon(PycChild *child, PycError *err) {
    if (!child->block)
        return pyc_fail(err, EINVAL, "abandon a process that is not parked", "");
    PycError cause = {0};
    (void)pyc_fail(&cause, ECANCELED, "abandon the process", "");
    PycError ignored = {0};
    (void)fail_and_reap(child, &cause, &ignored);
    return 0;
}

int pyc_wait(int pidfd, int block, PycWait *ret, PycError *err) {
    siginfo_t info = {0};
    struct rusage usage = {0};
    long rc = sys(SYS_waitid, P_PIDFD, pidfd, &info, WEXITED | __WALL | (block ? 0 : WNOHANG), &usage);
    if (rc < 0)
        return pyc_fail(err, (int)rc, "wait for the process", "");
    ret->code = info.si_pid ? info.si_code : 0;
    ret->status = info.si_status;
    ret->user_us = usage.ru_utime.tv_sec * 1000000LL + usage.ru_utime.tv_usec;
    ret->system_us = usage.ru_stime.tv_sec * 1000000LL + usage.ru_stime.tv_usec;
    ret->max_rss = usage.ru_maxrss * 1024LL;
    return 0;
}

int pyc_kill(int pidfd, int signal) { return (int)sys(SYS_pidfd_send_signal, pidfd, signal, 0, 0); }
