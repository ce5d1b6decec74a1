/* PID 1 of a container that asked for an init: starts the program, hands signals on, reaps orphans.
 * sigwaitinfo(2), wait(2), setpgid(2). A mode of the helper, executed by the last step of a start; descriptor 3 is the
 * status socket of the start, 5 a pipe to the caller, which is told there how the program ended: a PID 1 cannot kill
 * itself by the signal that killed its program.
 */
#include "monitor.h"
#include "start.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STATUS = 3, ENDED = 5 };

static void tell_failure(int code) {
    PycError err = {.code = code, .step = "execute"};
    (void)send_event(STATUS, PYC_EVENT_FAILED, 0, &err, -1);
}

/* Returns the exit status, by which the caller still knows where nobody reads the pipe. */
static int tell_end(int status) {
    int number = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    unsigned char byte = (unsigned char)number;
    if (number && write(ENDED, &byte, 1) < 0)
        return 128 + number; /* the caller is gone, and soon so are we */
    return number ? 128 + number : WEXITSTATUS(status);
}

static _Noreturn void run_program(char **argv, const sigset_t *mask) {
    (void)setpgid(0, 0);
    if (isatty(0)) {
        (void)signal(SIGTTOU, SIG_IGN);
        (void)tcsetpgrp(0, getpid());
        (void)signal(SIGTTOU, SIG_DFL);
    }
    (void)sigprocmask(SIG_SETMASK, mask, NULL);
    (void)fcntl(STATUS, F_SETFD, FD_CLOEXEC);
    (void)execvp(argv[0], argv);
    tell_failure(errno);
    _exit(127);
}

int init(char **argv) {
    (void)fcntl(ENDED, F_SETFD, FD_CLOEXEC);
    sigset_t all, old;
    (void)sigfillset(&all);
    (void)sigprocmask(SIG_SETMASK, &all, &old);
    pid_t main_pid = fork();
    if (main_pid < 0) {
        tell_failure(errno);
        return 127;
    }
    if (main_pid == 0)
        run_program(argv, &old);
    (void)close(STATUS);
    for (;;) {
        int number;
        if (sigwait(&all, &number) != 0)
            continue;
        if (number != SIGCHLD) {
            (void)kill(-main_pid, number); /* it leads a process group of its own */
            continue;
        }
        int status;
        pid_t pid;
        while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0)
            if (pid == main_pid)
                return tell_end(status);
    }
}
