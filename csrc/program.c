/* Runs the steps of a program; see program.h.
 * No kernel interface of its own. Called by spawn.c before and after clone.
 */
#include "program.h"
#include "error.h"
#include "sys.h"

#include <errno.h>

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

long run_steps(Machine *m, const PycStep *steps, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const PycStep *s = &steps[i];
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
