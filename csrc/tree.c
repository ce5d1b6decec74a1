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

/* Empty the directory `name` below top. Directories in it that are not empty are moved up beside it, under fresh names,
 * so that depth never grows: a tree of any depth needs two descriptors and no recursion. */
static int flatten(int top, const char *name, unsigned long *counter) {
    PYC_AUTO_FD fd = openat(top, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    PYC_CLEANUP(close_dir) DIR *dir = open_dir(fd);
    if (!dir)
        return -errno;
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        if (is_dot(entry->d_name))
            continue;
        if (unlinkat(fd, entry->d_name, 0) == 0)
            continue;
        if (errno != EISDIR && errno != EPERM)
            return -errno;
        if (unlinkat(fd, entry->d_name, AT_REMOVEDIR) == 0)
            continue;
        if (errno != ENOTEMPTY && errno != EEXIST)
            return -errno;
        char fresh[48];
        do
            (void)snprintf(fresh, sizeof fresh, ".pyc-gone-%lu", (*counter)++);
        while (renameat2(fd, entry->d_name, top, fresh, RENAME_NOREPLACE) < 0 && errno == EEXIST);
        if (faccessat(fd, entry->d_name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
            return -EBUSY; /* it could not be moved: a mount point, or no rights */
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
        PYC_CLEANUP(close_dir) DIR *dir = open_dir(top);
        if (!dir)
            return pyc_fail(err, errno, "list to remove", name);
        struct dirent *entry;
        while ((entry = readdir(dir))) {
            if (is_dot(entry->d_name) || unlinkat(top, entry->d_name, 0) == 0)
                continue;
            int rc = errno == EISDIR || errno == EPERM ? flatten(top, entry->d_name, &counter) : -errno;
            if (rc == 0 && unlinkat(top, entry->d_name, AT_REMOVEDIR) < 0)
                rc = -errno;
            if (rc < 0 && rc != -ENOENT)
                return pyc_fail(err, rc, "remove", entry->d_name);
        }
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
