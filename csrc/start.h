/* Starting a container's process: the caller's side, and what travels between caller, keeper and process.
 * unix(7). Included by pyc.h; the keeper includes it for the messages.
 *
 * The caller asks its keeper for a new process; the keeper clones it, parked, into fresh namespaces while the caller
 * still prepares mounts; then the caller sends the program and the descriptors it uses straight to the process.
 */
#ifndef PYC_START_H
#define PYC_START_H
#include "pyc.h"

enum PycEventType {
    PYC_EVENT_STARTED = 0,     /* execve happened */
    PYC_EVENT_BORN = 1,        /* value pid, descriptor a pidfd; from the keeper */
    PYC_EVENT_PARKED = 2,      /* value the number of the SYNC step; pyc_resume goes on */
    PYC_EVENT_TERMINAL = 3,    /* descriptor the terminal's master */
    PYC_EVENT_FAILED = 4,      /* err says which step */
    PYC_EVENT_SETTLED = 6,     /* its world is made; from here on the end of the socket means execve, not death */
    PYC_EVENT_LISTENER = 7,    /* descriptor the listener of its seccomp filter, see seccomp_unotify(2) */
    PYC_EVENT_INTERRUPTED = 5, /* a signal came in: let Python handle it, then pyc_follow */
};

/* Up the status socket, one packet each. */
typedef struct PycEvent {
    int32_t type;
    int32_t value;  /* the number of the SYNC step */
    int32_t parked; /* whether it waits there */
    PycError err;
} PycEvent;

enum { PYC_MAP_SIZE = 12288 }; /* 340 lines, the most that user_namespaces(7) allows */

/* From caller to keeper: bear a process. Descriptors: its end of the status socket, the end of the exit pipe, and of
 * cgroup and pid namespace those to be born in. The maps are sent with CLONE_NEWUSER only. */
typedef struct PycRequest {
    uint64_t clone_flags;
    uint8_t has_cgroup;
    uint8_t has_pidns;
    uint8_t has_maps;
    char uid_map[PYC_MAP_SIZE];
    char gid_map[PYC_MAP_SIZE];
} PycRequest;

/* From caller to process, with the descriptors for the slots named; the program follows in packets. */
typedef struct PycParcel {
    uint32_t size;
    uint32_t count;
    uint16_t slots[256];
} PycParcel;

enum { PYC_PACKET = 65536 }; /* the most that is sent at once */

/* From keeper to caller, down the exit pipe. */
typedef struct PycExit {
    int32_t code;               /* CLD_EXITED, CLD_KILLED, CLD_DUMPED, see waitid(2) */
    int32_t status;             /* exit status or signal */
    int64_t user_us, system_us; /* of the process and the children it waited for */
    int64_t max_rss;            /* bytes */
} PycExit;

typedef struct PycChild {
    int32_t pid;         /* as the keeper sees it, that is in the caller's pid namespace */
    int32_t pidfd;       /* owned by the caller, or -1 */
    int32_t exit_fd;     /* owned by the caller: gives one PycExit when it has ended and was reaped */
    int32_t tty_fd;      /* owned by the caller, or -1 */
    int32_t event;       /* STARTED, PARKED or INTERRUPTED */
    int32_t value;       /* the number of the SYNC step */
    int32_t parked;      /* whether it waits there */
    int32_t status_fd;   /* owned by the caller until STARTED, or -1 */
    int32_t settled;     /* whether that event has come */
    int32_t listener_fd; /* owned by the caller who sees the event LISTENER, or -1 */
} PycChild;

/* What a process wrote to one stream. */
typedef struct PycOutput {
    char *data;
    uint64_t size, room;
    uint64_t limit;   /* bytes to keep */
    uint64_t dropped; /* bytes beyond it */
} PycOutput;

/* Send an event up a socket, with a descriptor unless it is -1. Returns 0 or -errno. */
long send_event(int to, int32_t type, int32_t value, const PycError *err, int fd);

/* `shared` holds the caller's descriptors for the slots from PYC_SHARED on; -1 leaves one empty.
 * Run a program: host steps here, child steps in a process born by the keeper behind `keeper_socket`. On failure nothing is
 * left: the process is dead and reaped. */
PYC_API int pyc_start(const uint8_t *program, uint64_t size, const int32_t *shared, uint32_t shared_count,
                      int keeper_socket, PycChild *ret, PycError *err);
/* Go on following a start that was interrupted by a signal. */
PYC_API int pyc_follow(PycChild *child, PycError *err);
/* Let a parked process go on to its next SYNC step or to execve. */
PYC_API int pyc_resume(PycChild *child, PycError *err);
/* Run only the host steps and hand over what they opened: ret_fds[i] is the result of slot i. Returns how many. */
PYC_API int pyc_prepare(const uint8_t *program, uint64_t size, int32_t *ret_fds, uint32_t count, PycError *err);
/* Run a program of child steps alone in a process of its own that is nobody's child for long, as the keeper is. */
PYC_API int pyc_launch(const uint8_t *program, uint64_t size, PycError *err);
/* Read two streams to their end (closing them) and wait until the process has ended. Returns 0,
 * -ETIME at the timeout, -EINTR when a signal came in or output does not pause: call again to go on. */
PYC_API int pyc_collect(int pidfd, int32_t fds[2], PycOutput outputs[2], int timeout_ms, int32_t *ret_ended,
                        PycError *err);
PYC_API void pyc_free_output(PycOutput *output);
/* Make a socket for packets; both ends close at execve. */
PYC_API int pyc_socket_pair(int32_t ret_fds[2], PycError *err);
/* Send one packet; returns 0 or -errno, -EINTR when a signal came in. Nobody there is -EPIPE, without SIGPIPE. */
PYC_API int pyc_send(int fd, const char *data, uint64_t size);
/* Signal a process by pidfd; returns 0 or -errno. */
PYC_API int pyc_kill(int pidfd, int signal);

#endif
