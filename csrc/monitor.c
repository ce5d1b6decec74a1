/* pycontainer-monitor, the small static helper. Two programs in one file, chosen by the first argument:
 *   keep NAME   one per engine process: holds a pidfd of every container that this process runs, kills them all when the
 *               engine process is gone, and removes what ended containers leave, off the path of the next start.
 *               Descriptors: 3 socket to the engine, 4 runs directory, 5 lock of runs/NAME, 6... parent cgroups.
 *               Packets: ID with a pidfd (it starts), ID alone (it has ended).
 *   init PROGRAM...   PID 1 of a container that asked for one: starts PROGRAM, hands signals on, reaps orphans.
 *               Descriptor 3 is the status socket of the start.
 * pidfd_open(2), unix(7), kill(2), wait(2). Started by pycontainer.runtime.keeper and by program.c's EXEC step.
 */
#include "tree.h"
#include "error.h"
#include "spawn.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ENGINE = 3, RUNS = 4, CGROUPS = 6, ID_SIZE = 64, WAIT_MS = 5000 };

/* ---- keep ---- */

typedef struct Member {
    char id[ID_SIZE + 1];
    int pidfd;
} Member;

static Member *members;
static size_t member_count, member_room;

static int is_id(const char *name) {
    size_t n = strspn(name, "0123456789abcdef");
    return n == ID_SIZE && !name[n];
}

static int add_member(const char *id, int pidfd) {
    if (member_count == member_room) {
        size_t room = member_room ? 2 * member_room : 64;
        Member *grown = realloc(members, room * sizeof *members);
        if (!grown)
            return -1;
        members = grown;
        member_room = room;
    }
    Member *m = &members[member_count++];
    memcpy(m->id, id, sizeof m->id);
    m->pidfd = pidfd;
    return 0;
}

static void drop_member(const char *id) {
    for (size_t i = 0; i < member_count; i++)
        if (strcmp(members[i].id, id) == 0) {
            (void)close(members[i].pidfd);
            members[i] = members[--member_count];
            return;
        }
}

static void kill_pidfd(int pidfd) { (void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0); }

/* Kill all members, then wait until they are gone: their pid namespaces end with them. */
static void kill_members(void) {
    for (size_t i = 0; i < member_count; i++)
        kill_pidfd(members[i].pidfd);
    for (size_t i = 0; i < member_count; i++) {
        struct pollfd gone = {.fd = members[i].pidfd, .events = POLLIN};
        (void)poll(&gone, 1, WAIT_MS);
    }
}

/* Kill what a group holds beside the container's first process, as one without a pid namespace may: cgroup.kill of v2,
 * or process by process. A number is pinned by a pidfd before its membership is read a second time. */
static void kill_cgroup(int parent, const char *id) {
    char path[300];
    (void)snprintf(path, sizeof path, "%s/cgroup.kill", id);
    PYC_AUTO_FD group = openat(parent, path, O_WRONLY | O_CLOEXEC);
    if (group >= 0 && write(group, "1", 1) == 1)
        return;
    (void)snprintf(path, sizeof path, "%s/cgroup.procs", id);
    for (int round = 0; round < 100; round++) {
        int fd = openat(parent, path, O_RDONLY | O_CLOEXEC);
        FILE *procs = fd < 0 ? NULL : fdopen(fd, "r");
        if (!procs)
            return;
        int pid, found = 0;
        while (fscanf(procs, "%d", &pid) == 1 && pid > 0) {
            found = 1;
            PYC_AUTO_FD pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
            int again = openat(parent, path, O_RDONLY | O_CLOEXEC), other, still = 0;
            FILE *check = again < 0 ? NULL : fdopen(again, "r");
            while (check && !still && fscanf(check, "%d", &other) == 1)
                still = other == pid;
            if (check)
                (void)fclose(check);
            if (still && pidfd >= 0)
                kill_pidfd(pidfd);
        }
        (void)fclose(procs);
        if (!found)
            return;
    }
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

/* Take one packet; returns 0 at the end of the stream. */
static int serve(int instance, int cgroups) {
    char id[ID_SIZE + 1] = {0};
    struct iovec part = {id, ID_SIZE};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr header = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(ENGINE, &header, MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EINTR)
        return 1;
    if (n != ID_SIZE || !is_id(id))
        return 0;
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS) {
        int pidfd;
        memcpy(&pidfd, CMSG_DATA(cmsg), sizeof pidfd);
        if (add_member(id, pidfd) < 0)
            kill_pidfd(pidfd); /* one that cannot be kept must not run */
        return 1;
    }
    drop_member(id);
    clean(instance, id, cgroups, 0);
    return 1;
}

static int keep(const char *name) {
    int cgroups = 0;
    while (fcntl(CGROUPS + cgroups, F_GETFD) >= 0)
        cgroups++;
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) { /* one descriptor for each container */
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    PYC_AUTO_FD instance = openat(RUNS, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (instance < 0)
        return 1;
    while (serve(instance, cgroups))
        continue;
    /* The engine closed or died: nothing that it ran goes on. */
    kill_members();
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
