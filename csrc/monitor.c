/* pycontainer-monitor, the small static helper. Two programs in one file, chosen by the first argument:
 *   keep NAME   one per engine process: its pid namespace holds every container that this process runs, so their end is
 *               certain when it ends; it removes what ended containers leave, off their path, and all when the engine
 *               process is gone. Descriptors: 3 socket to the engine, 4 runs directory, 5 lock of runs/NAME, 6... cgroups.
 *   init ARG0 PROGRAM...   PID 1 of a container that asked for one: starts PROGRAM, hands signals on, reaps orphans.
 *               Descriptor 3 is the status socket of the start.
 * pid_namespaces(7), kill(2), wait(2). Started by pycontainer.runtime.keeper and by program.c's EXEC step.
 */
#include "tree.h"
#include "error.h"
#include "spawn.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ENGINE = 3, RUNS = 4, CGROUPS = 6, ID_SIZE = 64, WAIT_MS = 5000 };

/* ---- keep ---- */

static int is_id(const char *name) {
    size_t n = strspn(name, "0123456789abcdef");
    return n == ID_SIZE && !name[n];
}

/* Kill what is left in a v2 group; on v1 the pid namespace's end has done it. */
static void kill_cgroup(int parent, const char *id) {
    char path[300];
    (void)snprintf(path, sizeof path, "%s/cgroup.kill", id);
    PYC_AUTO_FD fd = openat(parent, path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "1", 1) < 0)
        return; /* the removal that follows waits and tells */
}

/* What cannot be removed now stays for the repair of the next open, which reports it. */
static void clean(int instance, const char *id, int cgroups, int all) {
    for (int i = 0; i < cgroups; i++) {
        if (all)
            kill_cgroup(CGROUPS + i, id);
        (void)pyc_remove_cgroup(CGROUPS + i, id, WAIT_MS, NULL);
    }
    (void)pyc_remove_tree(instance, id, NULL);
}

static void clean_all(int instance, int cgroups) {
    DIR *dir = fdopendir(dup(instance));
    if (!dir)
        return;
    rewinddir(dir);
    struct dirent *entry;
    while ((entry = readdir(dir)))
        if (is_id(entry->d_name))
            clean(instance, entry->d_name, cgroups, 1);
    (void)closedir(dir);
}

static void reap_everything(void) {
    while (waitpid(-1, NULL, __WALL | WNOHANG) > 0)
        continue;
}

static int keep(const char *name) {
    int cgroups = 0;
    while (fcntl(CGROUPS + cgroups, F_GETFD) >= 0)
        cgroups++;
    PYC_AUTO_FD instance = openat(RUNS, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (instance < 0)
        return 1;
    (void)signal(SIGCHLD, SIG_IGN); /* orphans of killed containers reap themselves */
    char id[ID_SIZE + 1] = {0};
    for (;;) {
        ssize_t n = recv(ENGINE, id, ID_SIZE, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n != ID_SIZE)
            break;
        if (is_id(id))
            clean(instance, id, cgroups, 0);
    }
    /* The engine closed or died. Nothing that it ran goes on: in our pid namespace only we are left after this. */
    (void)kill(-1, SIGKILL);
    reap_everything();
    clean_all(instance, cgroups);
    (void)unlinkat(instance, "lock", 0);
    (void)unlinkat(RUNS, name, AT_REMOVEDIR);
    return 0;
}

/* ---- init ---- */

static void tell_failure(int code) {
    struct {
        int32_t event, value;
    } message = {PYC_EVENT_FAILED, code};
    (void)send(ENGINE, &message, sizeof message, MSG_NOSIGNAL);
}

static _Noreturn void run_program(char **argv, const sigset_t *mask) {
    (void)setpgid(0, 0);
    if (isatty(0)) {
        (void)signal(SIGTTOU, SIG_IGN);
        (void)tcsetpgrp(0, getpid());
        (void)signal(SIGTTOU, SIG_DFL);
    }
    (void)sigprocmask(SIG_SETMASK, mask, NULL);
    (void)fcntl(ENGINE, F_SETFD, FD_CLOEXEC);
    (void)execvp(argv[0], argv);
    tell_failure(errno);
    _exit(127);
}

static int init(char **argv) {
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
    (void)close(ENGINE);
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
                return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    }
}

int main(int argc, char **argv) {
    if (argc >= 3 && strcmp(argv[1], "keep") == 0)
        return keep(argv[2]);
    if (argc >= 3 && strcmp(argv[1], "init") == 0)
        return init(argv + 2);
    static const char usage[] = "pycontainer-monitor is a part of pycontainer and is started by it\n";
    return write(2, usage, sizeof usage - 1) < 0 ? 126 : 125;
}
