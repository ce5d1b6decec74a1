/* The cleaner: removes what ended containers leave, off the path of the next start; all of it once the program is gone.
 * openat(2), unlinkat(2), cgroups(7). A mode of the helper, started beside the keeper; what cannot be removed
 * is found and reported by the next open.
 * Descriptors: 3 ids from the program, 4 runs directory, 5 lock of the instance, 6 end of the pipe from the keeper,
 * 7... parent cgroups.
 */
#include "monitor.h"
#include "error.h"
#include "tree.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ID_SIZE = 64 };

static int is_id(const char *name) {
    size_t n = strspn(name, "0123456789abcdef");
    return n == ID_SIZE && !name[n];
}

static int lists(int parent, const char *path, int pid) {
    int fd = openat(parent, path, O_RDONLY | O_CLOEXEC), other, found = 0;
    FILE *procs = fd < 0 ? NULL : fdopen(fd, "r");
    while (procs && !found && fscanf(procs, "%d", &other) == 1)
        found = other == pid;
    if (procs)
        (void)fclose(procs);
    return found;
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
    for (int round = 0, found = 1; found && round < 100; round++) {
        int fd = openat(parent, path, O_RDONLY | O_CLOEXEC), pid;
        FILE *procs = fd < 0 ? NULL : fdopen(fd, "r");
        if (!procs)
            return;
        found = 0;
        while (fscanf(procs, "%d", &pid) == 1 && pid > 0) {
            found = 1;
            PYC_AUTO_FD pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
            if (pidfd >= 0 && lists(parent, path, pid))
                (void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
        }
        (void)fclose(procs);
    }
}

static void clean_one(int instance, const char *id, int cgroups, int kill_first) {
    int gone = 1;
    for (int i = 0; i < cgroups; i++) {
        if (kill_first)
            kill_cgroup(CLEAN_CGROUPS + i, id);
        gone &= pyc_remove_cgroup(CLEAN_CGROUPS + i, id, WAIT_MS, NULL) == 0;
    }
    if (gone) /* the directory is what tells the next open of the groups */
        (void)pyc_remove_tree(instance, id, NULL);
}

static void clean_all(int instance, int cgroups) {
    DIR *dir = fdopendir(dup(instance));
    if (!dir)
        return;
    struct dirent *entry;
    while ((entry = readdir(dir)))
        if (is_id(entry->d_name))
            clean_one(instance, entry->d_name, cgroups, 1);
    (void)closedir(dir);
}

int clean(const char *name) {
    int cgroups = 0;
    while (fcntl(CLEAN_CGROUPS + cgroups, F_GETFD) >= 0)
        cgroups++;
    PYC_AUTO_FD instance = openat(CLEAN_RUNS, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (instance < 0)
        return 1;
    char id[ID_SIZE + 1] = {0};
    for (;;) {
        ssize_t n = recv(CLEAN_IDS, id, ID_SIZE, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n != ID_SIZE)
            break;
        if (is_id(id))
            clean_one(instance, id, cgroups, 0);
    }
    /* The program is gone; the keeper now kills what is left, and closes its end when that is done. */
    char byte;
    while (read(CLEAN_KEEPER, &byte, 1) < 0 && errno == EINTR)
        continue;
    clean_all(instance, cgroups);
    (void)unlinkat(instance, "lock", 0);
    (void)unlinkat(CLEAN_RUNS, name, AT_REMOVEDIR);
    return 0;
}
