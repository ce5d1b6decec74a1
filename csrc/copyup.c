/* Fills a new tmpfs with what lies where it will be mounted: the mount option tmpcopyup.
 * getdents64(2), sendfile(2), mknodat(2), fchownat(2), utimensat(2). Run by mount.c in the new process.
 * The names are an image's: none is followed, and nothing is opened but directories and regular files.
 */
#include "program.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

enum { DEPTH = 64, BUFFER = 2048, TARGET = 4096 };

typedef struct Dirent {
    uint64_t inode, offset;
    unsigned short size;
    unsigned char type;
    char name[];
} Dirent;

static long copy_content(int from, int to) {
    long rc;
    do
        rc = sys(SYS_sendfile, to, from, NULL, 1 << 20);
    while (rc > 0 || rc == -EINTR);
    return rc;
}

static long copy_file(int from, int to, const char *name) {
    long source = sys(SYS_openat, from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0);
    if (source < 0)
        return source;
    long target = sys(SYS_openat, to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    long rc = target < 0 ? target : copy_content((int)source, (int)target);
    sys_close(source);
    sys_close(target);
    return rc;
}

static long copy_link(int from, int to, const char *name) {
    char target[TARGET];
    long size = sys(SYS_readlinkat, from, name, target, sizeof target - 1);
    if (size < 0)
        return size;
    target[size] = 0;
    return sys(SYS_symlinkat, target, to, name);
}

static long copy_into(int from, int to, int depth);

static long copy_directory(int from, int to, const char *name, int depth) {
    if (depth == DEPTH)
        return -ELOOP;
    long rc = sys(SYS_mkdirat, to, name, 0700);
    if (rc < 0)
        return rc;
    const uint64_t flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    long source = sys(SYS_openat, from, name, flags, 0);
    long target = source < 0 ? source : sys(SYS_openat, to, name, flags, 0);
    rc = target < 0 ? target : copy_into((int)source, (int)target, depth + 1);
    sys_close(source);
    sys_close(target);
    return rc;
}

/* Owner, mode and times; a change of owner clears the set-id bits, so the mode comes after it. */
static long copy_attributes(const struct stat *st, int to, const char *name) {
    long rc = sys(SYS_fchownat, to, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW);
    if (rc == 0 && !S_ISLNK(st->st_mode))
        rc = sys(SYS_fchmodat, to, name, st->st_mode & 07777);
    const struct timespec times[2] = {st->st_atim, st->st_mtim};
    return rc < 0 ? rc : sys(SYS_utimensat, to, name, times, AT_SYMLINK_NOFOLLOW);
}

static long copy_entry(int from, int to, const char *name, int depth) {
    struct stat st;
    long rc = sys(SYS_newfstatat, from, name, &st, AT_SYMLINK_NOFOLLOW);
    if (rc < 0)
        return rc;
    if (S_ISSOCK(st.st_mode))
        return 0; /* nobody listens to a copy */
    if (S_ISDIR(st.st_mode))
        rc = copy_directory(from, to, name, depth);
    else if (S_ISREG(st.st_mode))
        rc = copy_file(from, to, name);
    else if (S_ISLNK(st.st_mode))
        rc = copy_link(from, to, name);
    else
        rc = sys(SYS_mknodat, to, name, st.st_mode, st.st_rdev);
    return rc < 0 ? rc : copy_attributes(&st, to, name);
}

static int is_dot(const char *name) { return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])); }

static long copy_into(int from, int to, int depth) {
    _Alignas(Dirent) char buffer[BUFFER];
    for (;;) {
        long size = sys(SYS_getdents64, from, buffer, sizeof buffer);
        if (size <= 0)
            return size;
        for (long at = 0; at < size;) {
            const Dirent *entry = (const Dirent *)(const void *)(buffer + at);
            long rc = is_dot(entry->name) ? 0 : copy_entry(from, to, entry->name, depth);
            if (rc < 0)
                return rc;
            at += entry->size;
        }
    }
}

long copy_up(int from, int to, int with_attributes) {
    struct stat st;
    long rc = copy_into(from, to, 0);
    if (rc == 0 && with_attributes)
        rc = sys(SYS_newfstatat, from, "", &st, AT_EMPTY_PATH);
    return rc == 0 && with_attributes ? copy_attributes(&st, to, ".") : rc;
}
