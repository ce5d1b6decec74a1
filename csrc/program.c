/* Runs the steps of a program; see program.h.
 * clone(2), for steps that run elsewhere. Called by start.c in the caller and by keep.c in the new process.
 */
#include "program.h"
#include "error.h"
#include "sys.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>

static long run_step(Machine *m, const PycStep *s) {
    if (s->op < PYC_OP_FSMOUNT)
        return run_file_step(m, s);
    if (s->op < PYC_OP_SETNS)
        return run_mount_step(m, s);
    if (s->op < PYC_OP_STDIO)
        return run_identity_step(m, s);
    if (s->op == PYC_OP_EXEC)
        return run_exec_step(m, s);
    return run_terminal_step(m, s);
}

static int forgiven(const PycStep *s, long rc) {
    return ((s->flags & PYC_MISSING_OK) && (rc == -ENOENT || rc == -ENOTDIR)) ||
           ((s->flags & PYC_EXISTS_OK) && rc == -EEXIST) ||
           ((s->flags & PYC_DENIED_OK) && (rc == -EPERM || rc == -EACCES || rc == -EROFS));
}

const PycHeader *load_program(Machine *m, const uint8_t *program, uint64_t size) {
    const PycHeader *h = (const PycHeader *)program;
    if (size < sizeof *h || h->magic != PYC_PROGRAM_MAGIC || h->size != size || h->early_steps > h->host_steps)
        return NULL;
    uint64_t steps = ((uint64_t)h->host_steps + h->child_steps) * sizeof(PycStep);
    if (h->pool != sizeof *h + steps || h->pool >= size || program[size - 1] != 0)
        return NULL;
    m->base = program;
    m->pool = (const char *)program + h->pool;
    m->err = NULL;
    m->pointers = NULL;
    m->status = -1;
    m->status_target = h->status_target;
    for (int i = 0; i < PYC_SLOTS; i++)
        m->slots[i] = -1;
    return h;
}

static long run_elsewhere(Machine *m, const PycStep *steps, uint32_t n);

long run_steps(Machine *m, const PycStep *steps, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const PycStep *s = &steps[i];
        if (s->op == PYC_OP_ELSEWHERE) {
            long rc = s->a > n - i - 1 ? -EINVAL : run_elsewhere(m, s + 1, (uint32_t)s->a);
            if (rc < 0)
                return pyc_fail(m->err, (int)rc, machine_text(m, s->label), "");
            i += (uint32_t)s->a;
            continue;
        }
        long rc = run_step(m, s);
        if (rc < 0) {
            if (forgiven(s, rc))
                continue;
            return pyc_fail(m->err, (int)rc, machine_text(m, s->label), machine_text(m, s->s1));
        }
        if (s->ret >= 0 && s->ret < PYC_SLOTS)
            m->slots[s->ret] = (int32_t)rc;
    }
    return 0;
}

/* What the process that runs elsewhere is told, and tells. */
typedef struct Errand {
    Machine *machine;
    const PycStep *steps;
    uint32_t count;
    long result;
} Errand;

static int do_errand(void *argument) {
    Errand *e = argument;
    (void)sys(SYS_chdir, "/");
    e->result = sys(SYS_mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0);
    if (e->result == 0)
        e->result = run_steps(e->machine, e->steps, e->count);
    sys(SYS_exit_group, 0);
    return 0;
}

/* Run steps that need attached mounts, as older kernels do for overlays, where nobody sees them. The process shares our
 * memory and descriptors, so that the slots it fills are ours; we sleep until it is gone. */
static long run_elsewhere(Machine *m, const PycStep *steps, uint32_t n) {
    enum { STACK = 64 * 1024 };
    void *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        return -errno;
    Errand errand = {.machine = m, .steps = steps, .count = n, .result = -ECHILD};
    sigset_t all, old;
    (void)sigfillset(&all);
    (void)sigprocmask(SIG_SETMASK, &all, &old);
    int pid = clone(do_errand, (char *)stack + STACK, CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_NEWNS, &errand);
    int failure = errno;
    if (pid > 0)
        while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
            continue;
    (void)sigprocmask(SIG_SETMASK, &old, NULL);
    (void)munmap(stack, STACK);
    return pid < 0 ? -failure : errand.result;
}
