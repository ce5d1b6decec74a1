/* The step machine: a container's start is a table of steps, packed by Python into one relocatable buffer (offsets, no
 * pointers). Host steps run in the caller; child steps run in the new, parked process, to which the buffer is sent.
 * No kernel interface of its own. Filled by pycontainer.runtime.program; run by start.c and keep.c; the operations live
 * in files.c, mount.c, identity.c and terminal.c.
 */
#ifndef PYC_PROGRAM_H
#define PYC_PROGRAM_H
#include "pyc.h"

enum {
    PYC_PROGRAM_MAGIC = 0x50594331, /* "PYC1" */
    PYC_SLOTS = 512,                /* descriptors that steps use: */
    PYC_SHARED = 256,               /* below, results of steps; from here on, descriptors that the caller shares */
    PYC_PASSED = 250,               /* as many as one message carries, see SCM_MAX_FD in unix(7) */
    PYC_SLOT_BASE = -1000,          /* an fd operand of PYC_SLOT_BASE - k means slot k */
};

/* Operand meanings are told beside each operation: fd fd2 | a b c | s1 s2 s3 (text in the pool) | ret (slot). */
enum PycOp {
    /* files.c */
    PYC_OP_MKDIR = 1,  /* fd s1 | a mode, c nonzero: whatever the umask */
    PYC_OP_WRITE,      /* fd s1 | s2 data, len | a extra open flags, b file mode, c nonzero: must be on procfs */
    PYC_OP_OPEN,       /* fd s1 | a open flags -> ret */
    PYC_OP_SYMLINK,    /* fd s1 | s2 target */
    PYC_OP_MKNOD,      /* fd s1 | a mode, b dev, c uid << 32 | gid */
    PYC_OP_CHOWN,      /* fd s1 | a uid, b gid; s1 "" is the descriptor itself */
    PYC_OP_BPF_ATTACH, /* fd cgroup, fd2 program | a attach type */
    /* mount.c */
    PYC_OP_FSMOUNT = 20, /* s1 type | s2 options "key=value\0key@-n\0key\0", len | a mount attributes -> ret */
    PYC_OP_OPEN_TREE,    /* fd s1 | a flags -> ret */
    PYC_OP_SETATTR,      /* fd s1 | a set, b clear, c propagation, fd2 user namespace; flag RECURSIVE */
    PYC_OP_ATTACH,       /* fd mount, s1 target below fd2 (CWD once it is the root); flags MAKE_*, NOFOLLOW */
    PYC_OP_MASK,         /* s1 | fd /dev/null, fd2 empty read-only tmpfs */
    PYC_OP_READONLY,     /* s1 */
    PYC_OP_PIVOT,        /* fd root mount | s1 where to attach it first, or "" */
    PYC_OP_ELSEWHERE,    /* a: the next a steps run in a mount namespace that is thrown away; host only */
    PYC_OP_MOUNT,        /* s1 target, s2 data, s3 type | a flags of mount(2): for kernels without lowerdir+ */
    PYC_OP_COPY_UP,      /* fd new tmpfs, s1 what it will cover, below fd2 | a nonzero: with the directory's own mode */
    PYC_OP_MKDIR_IN,     /* s1 below the container's root, parents made | a mode, b uid, c gid */
    /* identity.c */
    PYC_OP_SETNS = 40, /* fd | a namespace flags */
    PYC_OP_UNSHARE,    /* a namespace flags */
    PYC_OP_HOSTNAME,   /* s1 */
    PYC_OP_DOMAINNAME, /* s1 */
    PYC_OP_LOOPBACK,   /* brings lo up */
    PYC_OP_RLIMIT,     /* a resource, b soft, c hard */
    PYC_OP_KEYRING,    /* a new, empty session keyring */
    PYC_OP_GROUPS,     /* s2 u32 array, len bytes */
    PYC_OP_IDS,        /* a uid, b gid */
    PYC_OP_BOUNDING,   /* a capabilities to keep, b last capability of this kernel */
    PYC_OP_CAPS,       /* a effective, b permitted, c inheritable */
    PYC_OP_AMBIENT,    /* a capabilities */
    PYC_OP_NO_NEW_PRIVS,
    PYC_OP_SECCOMP,     /* s2 struct sock_filter array, len bytes | a flags of seccomp(2) */
    PYC_OP_CHDIR,       /* s1 */
    PYC_OP_CHROOT,      /* s1 */
    PYC_OP_UMASK,       /* a */
    PYC_OP_PERSONALITY, /* a */
    PYC_OP_SCHED,       /* s2 struct sched_attr, len */
    PYC_OP_IOPRIO,      /* a */
    PYC_OP_AFFINITY,    /* s2 cpu mask, len */
    PYC_OP_MEMPOLICY,   /* a mode and flags | s2 mask of memory nodes, len */
    PYC_OP_PRCTL,       /* a option, b, c arguments */
    PYC_OP_SETSID,
    /* terminal.c */
    PYC_OP_STDIO = 70, /* fd stdin, fd2 stdout, a stderr (-1: the container's /dev/null) | b uid, c gid of pipes */
    PYC_OP_TTY,        /* fd devpts mount | a rows << 16 | columns, b uid, s1 console path or "" ; master goes up */
    PYC_OP_CLOSE_ALL,  /* fd fd2: closes all but stdio, status socket (3), fd (4) and fd2 (5, which survives execve) */
    PYC_OP_SEAL_FDS,   /* a first: every descriptor from there on closes at execve */
    PYC_OP_DUP,        /* fd, a target number, kept over execve */
    PYC_OP_SYNC,       /* a number: park until the parent resumes us */
    PYC_OP_EXEC, /* s1 program (or fd when s1 is ""), s2 argv block, s3 envp block | a argc, b envc, c offset of PATH */
};

enum PycStepFlags {
    PYC_MISSING_OK = 1, /* ENOENT is no failure */
    PYC_EXISTS_OK = 2,  /* EEXIST is no failure */
    PYC_DENIED_OK = 4,  /* EPERM, EACCES, EROFS are no failure */
    PYC_RECURSIVE = 8,
    PYC_NOFOLLOW = 16, /* the target's last component must not be a symlink */
    PYC_MAKE_DIR = 32, /* make a missing target */
    PYC_MAKE_FILE = 64,
    PYC_MAKE_LIKE = 128, /* make a missing target of the mount's own kind */
    PYC_BENEATH = 256,   /* WRITE: below fd, over no link and no mount */
    PYC_NOT_PROC = 512,  /* ATTACH: the target must not lie on procfs */
};

typedef struct PycStep {
    uint16_t op;
    uint16_t flags;
    uint32_t label; /* pool offset: what this step is called in errors */
    int32_t fd;
    int32_t fd2;
    uint64_t a, b, c;
    uint32_t s1, s2, s3; /* pool offsets; 0 is the empty text */
    uint32_t len;        /* bytes of s2 */
    int32_t ret;         /* slot for the result, or -1 */
    uint32_t _unused;
} PycStep;

typedef struct PycHeader {
    uint32_t magic;
    uint32_t size; /* of the whole program */
    uint32_t host_steps;
    uint32_t early_steps; /* so many of the host steps run before the process is born: those of its cgroup */
    uint32_t child_steps;
    uint32_t pool; /* offset of the pool; its first byte is 0 */
    uint64_t clone_flags;
    uint32_t uid_map, gid_map; /* pool offsets of texts for /proc/PID/{u,g}id_map, with CLONE_NEWUSER */
    int32_t cgroup_fd;         /* fd operand: cgroup v2 directory to be born in, or -1 */
    int32_t pidns_fd;          /* pid namespace to be born in, or -1 */
    int32_t status_target;     /* descriptor number at which EXEC leaves the status socket open, or -1 */
    uint32_t exec_index;       /* argc + envc of the EXEC step: room for the pointers */
} PycHeader;

/* What a running program knows. */
typedef struct Machine {
    const uint8_t *base;
    const char *pool;
    PycError *err;
    int32_t slots[PYC_SLOTS];
    char **pointers; /* room for argv and envp */
    int32_t status;  /* the child's end of the status socket, or -1 */
    int32_t status_target;
} Machine;

static inline int machine_fd(const Machine *m, int32_t operand) {
    if (operand <= PYC_SLOT_BASE && operand > PYC_SLOT_BASE - PYC_SLOTS)
        return m->slots[PYC_SLOT_BASE - operand];
    return operand;
}

static inline const char *machine_text(const Machine *m, uint32_t offset) { return m->pool + offset; }

/* Fill a machine for a program, all slots empty; returns the header, or NULL if it is none. */
const PycHeader *load_program(Machine *m, const uint8_t *program, uint64_t size);

static inline const PycStep *first_step(const Machine *m) { return (const PycStep *)(m->base + sizeof(PycHeader)); }

/* Each returns a descriptor or 0, or -errno. They may share the memory of a caller: raw system calls only. */
long run_file_step(Machine *m, const PycStep *s);
long run_mount_step(Machine *m, const PycStep *s);
long run_identity_step(Machine *m, const PycStep *s);
long run_terminal_step(Machine *m, const PycStep *s);
long run_exec_step(Machine *m, const PycStep *s);

/* Copy what is in one directory into another, empty one; copyup.c. */
long copy_up(int from, int to, int with_attributes);

/* Run n steps; the first failure is recorded in m->err and returned. */
long run_steps(Machine *m, const PycStep *steps, uint32_t n);

#endif
