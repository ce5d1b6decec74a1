/* Removes directory trees and cgroups; see tree.h.
 * openat(2), unlinkat(2), renameat(2), getdents through readdir(3). Called by the helper's keeper and by the engine's
 * repair at open.
 */
#include "tree.h"
#include "error.h"
#include "util.h"

#include <linux/openat2.h>
#include <sys/syscall.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static void close_dir(DIR **dir) {
    if (*dir)
        (void)closedir(*dir);
}

/* A stream of its own over an open directory, whose descriptor stays ours. */
static DIR *open_dir(int fd) {
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir && copy >= 0)
        (void)close(copy);
    return dir;
}

static int is_dot(const char *name) { return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])); }

enum { NEAR = 8 }; /* levels that are descended into; what lies deeper is lifted, so that depth never grows */

/* Move a directory up to top, under a fresh name. */
static int lift(int top, int parent, const char *name, unsigned long *counter) {
    char fresh[48];
    do
        (void)snprintf(fresh, sizeof fresh, ".pyc-gone-%lu", (*counter)++);
    while (renameat2(parent, name, top, fresh, RENAME_NOREPLACE) < 0 && errno == EEXIST);
    /* A mount point, or no rights: it could not be moved. */
    return faccessat(parent, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0 ? -EBUSY : 0;
}

static int empty(int top, int fd, int level, unsigned long *counter);

static int remove_entry(int top, int parent, const struct dirent *entry, int level, unsigned long *counter) {
    const char *name = entry->d_name;
    if (entry->d_type != DT_DIR) {
        if (unlinkat(parent, name, 0) == 0)
            return 0;
        if (errno != EISDIR && errno != EPERM)
            return -errno;
    }
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0)
        return 0;
    if (errno != ENOTEMPTY && errno != EEXIST)
        return -errno;
    if (level == NEAR)
        return lift(top, parent, name, counter);
    PYC_AUTO_FD fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = empty(top, fd, level + 1, counter);
    return rc < 0 || unlinkat(parent, name, AT_REMOVEDIR) == 0 ? rc : -errno;
}

/* Empty an open directory. A tree of any depth needs two descriptors for each near level and no deeper recursion. */
static int empty(int top, int fd, int level, unsigned long *counter) {
    PYC_CLEANUP(close_dir) DIR *dir = open_dir(fd);
    if (!dir)
        return -errno;
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        int rc = is_dot(entry->d_name) ? 0 : remove_entry(top, fd, entry, level, counter);
        if (rc < 0 && rc != -ENOENT)
            return rc;
    }
    return 0;
}

int pyc_remove_tree(int dirfd, const char *name, PycError *err) {
    if (unlinkat(dirfd, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
        return 0;
    if (errno == ENOTDIR)
        return unlinkat(dirfd, name, 0) == 0 ? 0 : pyc_fail(err, errno, "remove", name);
    unsigned long counter = 0;
    for (int round = 0; round < 1000000; round++) {
        /* The tree's own root is the place to which deep directories are lifted. */
        PYC_AUTO_FD top = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (top < 0)
            return errno == ENOENT ? 0 : pyc_fail(err, errno, "open to remove", name);
        int rc = empty(top, top, 0, &counter);
        if (rc < 0)
            return pyc_fail(err, rc, "remove what is in", name);
        if (unlinkat(dirfd, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
            return 0;
        if (errno != ENOTEMPTY && errno != EEXIST)
            return pyc_fail(err, errno, "remove", name);
    }
    return pyc_fail(err, ENOTEMPTY, "remove", name);
}

static void pause_ms(long ms) {
    struct timespec t = {.tv_nsec = ms * 1000000};
    (void)nanosleep(&t, NULL);
}

static int remove_child_cgroups(int dirfd, const char *name, int wait_ms, PycError *err) {
    PYC_AUTO_FD fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : pyc_fail(err, errno, "open the cgroup", name);
    PYC_CLEANUP(close_dir) DIR *dir = open_dir(fd);
    if (!dir)
        return pyc_fail(err, errno, "list the cgroup", name);
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        if (entry->d_type != DT_DIR || is_dot(entry->d_name))
            continue;
        int rc = pyc_remove_cgroup(fd, entry->d_name, wait_ms, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int pyc_remove_cgroup(int dirfd, const char *name, int wait_ms, PycError *err) {
    for (int waited = 0;; waited++) {
        if (unlinkat(dirfd, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
            return 0;
        if (errno != EBUSY)
            return pyc_fail(err, errno, "remove the cgroup", name);
        if (waited >= wait_ms)
            return pyc_fail(err, EBUSY, "remove the cgroup", name);
        int rc = remove_child_cgroups(dirfd, name, 0, NULL);
        if (rc < 0 && rc != -EBUSY)
            return pyc_fail(err, rc, "remove the cgroups below", name);
        pause_ms(1);
    }
}

int pyc_open_in_root(int root, const char *path, int flags, PycError *err) {
    struct open_how how = {
        .flags = (__u64)(unsigned)flags | O_CLOEXEC,
        .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    };
    for (int tries = 0;; tries++) { /* EAGAIN: a rename raced with the walk */
        int fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
        if (fd >= 0)
            return fd;
        if (errno != EINTR && (errno != EAGAIN || tries > 100))
            return pyc_fail(err, errno, "open in the container's root", path);
    }
}
