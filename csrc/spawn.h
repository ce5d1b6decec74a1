/* Starting a process by a program of steps, and waiting for it. Included by pyc.h. */
#ifndef PYC_SPAWN_H
#define PYC_SPAWN_H
#include <stdint.h>

enum PycEvent {
    PYC_EVENT_STARTED = 0,  /* execve happened; the memory of the start is free */
    PYC_EVENT_PARKED = 1,   /* a SYNC step waits; pyc_resume goes on */
    PYC_EVENT_TERMINAL = 2, /* tty_fd holds the terminal's master; internal, pyc_spawn goes on by itself */
    PYC_EVENT_FAILED = 3,   /* internal: the helper reports that it could not execute the program */
};

typedef struct PycChild {
    int32_t pid;    /* in the caller's pid namespace */
    int32_t pidfd;  /* owned by the caller */
    int32_t tty_fd; /* owned by the caller, or -1 */
    int32_t event;  /* PYC_EVENT_STARTED or PYC_EVENT_PARKED */
    int32_t value;  /* the number of the SYNC step */
    /* private */
    int32_t status_fd;
    void *block;
    uint64_t block_size;
} PycChild;

typedef struct PycWait {
    int32_t code;               /* CLD_EXITED, CLD_KILLED, CLD_DUMPED (see waitid(2)); 0: still running */
    int32_t status;             /* exit status or signal */
    int64_t user_us, system_us; /* of the process and the children it waited for */
    int64_t max_rss;            /* bytes */
} PycWait;

/* Run the host steps here, clone, run the child steps there. On failure nothing is left: the child is dead and reaped. */
PYC_API int pyc_spawn(const uint8_t *program, uint64_t size, PycChild *ret, PycError *err);
/* Run only the host steps and hand over what they opened: ret_fds[i] is the result of slot i. Returns how many. */
PYC_API int pyc_prepare(const uint8_t *program, uint64_t size, int32_t *ret_fds, uint32_t count, PycError *err);
/* Let a parked child go on to its next SYNC step or to execve. On failure it is dead and reaped, and pidfd closed. */
PYC_API int pyc_resume(PycChild *child, PycError *err);
/* Kill a parked child and free its memory. */
PYC_API int pyc_abandon(PycChild *child, PycError *err);
/* Wait for a child by pidfd, clone children included; nonblocking when block is 0. */
PYC_API int pyc_wait(int pidfd, int block, PycWait *ret, PycError *err);
/* Signal a process by pidfd; returns 0 or -errno. */
PYC_API int pyc_kill(int pidfd, int signal);

#endif
