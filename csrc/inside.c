/* Resolves and makes below one root without ever leaving it; see inside.h.
 * openat2(2), mkdirat(2), unlinkat(2), fsetxattr(2), futimens(3).
 * Called by layer.c.
 */
#include "inside.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include "tree.h"
#include "util.h"

enum { MAX_LINKS = 16, MAX_RETRIES = 1000 };
static const size_t max_time_bytes = (size_t)256 << 20;

int pyc_inside_open(int dirfd, const char *opaque, uint64_t max_made, PycInside *ret_inside, PycError *err) {
    PYC_AUTO_FD root = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return pyc_fail(err, errno, "open the layer's directory", NULL);
    PycInsideSlot *slots = calloc(PYC_INSIDE_SLOTS, sizeof *slots);
    if (!slots)
        return pyc_fail(err, ENOMEM, "allocate the layer's parents", NULL);
    for (int i = 0; i < PYC_INSIDE_SLOTS; i++)
        slots[i].fd = -1;
    *ret_inside = (PycInside){.root = pyc_take_fd(&root), .opaque = opaque, .max_made = max_made, .slots = slots};
    return 0;
}

void pyc_inside_close(PycInside *in) {
    for (int i = 0; in->slots && i < PYC_INSIDE_SLOTS; i++)
        pyc_close_fd(&in->slots[i].fd);
    pyc_close_fd(&in->root);
    free(in->slots);
    free(in->times);
    free(in->names);
}

static const char whiteout_prefix[] = ".wh.";

int pyc_inside_clean(const char *name, char ret_path[PATH_MAX], size_t *ret_size, PycError *err) {
    size_t size = 0;
    if (!*name)
        return pyc_fail(err, EBADMSG, "read a member without a name", NULL);
    for (const char *at = name; *at;) {
        size_t n = strcspn(at, "/");
        if (n == 2 && at[0] == '.' && at[1] == '.')
            return pyc_fail(err, EXDEV, "refuse a name that climbs with '..'", name);
        if (n && !(n == 1 && at[0] == '.')) {
            /* A whiteout is longer than what it hides. */
            size_t longest = !at[n] && strncmp(at, whiteout_prefix, 4) == 0 ? NAME_MAX + 4 : NAME_MAX;
            if (n > longest || size + n + 2 > PATH_MAX)
                return pyc_fail(err, ENAMETOOLONG, "use the name", name);
            if (size)
                ret_path[size++] = '/';
            memcpy(ret_path + size, at, n);
            size += n;
        }
        at += n;
        while (*at == '/')
            at++;
    }
    ret_path[size] = 0;
    *ret_size = size;
    return 0;
}

/* Open below the root; "" is the root itself. EAGAIN means only that a rename elsewhere in the system raced a "..". */
static int open_inside(const PycInside *in, const char *path, uint64_t flags) {
    struct open_how how = {.flags = flags | O_CLOEXEC | O_DIRECTORY,
                           .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
    for (int i = 0; i < MAX_RETRIES; i++) {
        long fd = syscall(SYS_openat2, in->root, *path ? path : ".", &how, sizeof how);
        if (fd >= 0 || errno != EAGAIN)
            return fd < 0 ? -errno : (int)fd;
    }
    return -EAGAIN;
}

int pyc_inside_mark_opaque(PycInside *in, int parent, const char *name, const char *path, PycError *err) {
    if (!in->opaque)
        return 0;
    PYC_AUTO_FD fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fsetxattr(fd, in->opaque, "y", 1, 0) < 0)
        return pyc_fail(err, errno, "mark the directory as opaque", path);
    return 0;
}

/* mkdir with exactly 0755 and our ids, whatever the umask, a setgid parent or a default ACL would make of it. */
static int make_plain_dir(PycInside *in, int parent, const char *name, const char *path, PycError *err) {
    struct stat st;
    if (in->made >= in->max_made)
        return pyc_fail(err, EFBIG, "stay within the limit of entries", path);
    if (mkdirat(parent, name, 0755) < 0 || fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return pyc_fail(err, errno, "make the missing parent", path);
    if (st.st_gid != getegid() && fchownat(parent, name, geteuid(), getegid(), AT_SYMLINK_NOFOLLOW) < 0)
        return pyc_fail(err, errno, "set the owner of the missing parent", path);
    if ((st.st_mode & 07777) != 0755 && fchmodat(parent, name, 0755, 0) < 0)
        return pyc_fail(err, errno, "set the mode of the missing parent", path);
    in->made++;
    return 0;
}

static int make_parents(PycInside *in, char path[PATH_MAX], int links, int *ret_fd, PycError *err);

/* `path` ends in a symbolic link to nothing: make what it points to, below the root. */
static int make_link_target(PycInside *in, int parent, const char *path, int links, PycError *err) {
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    char target[PATH_MAX];
    ssize_t n = readlinkat(parent, name, target, sizeof target - 1);
    if (n < 0)
        return pyc_fail(err, errno == EINVAL ? ENOTDIR : errno, "use a parent", path);
    target[n] = 0;
    char full[PATH_MAX];
    int before = target[0] == '/' || !slash ? 0 : (int)(slash - path);
    if (snprintf(full, sizeof full, "%.*s/%s", before, path, target) >= (int)sizeof full)
        return pyc_fail(err, ENAMETOOLONG, "follow the parent", path);
    PYC_AUTO_FD fd = -1;
    return make_parents(in, full, links + 1, &fd, err);
}

/* One component is missing or in the way: make it. `path` ends with it. */
static int make_one(PycInside *in, int parent, const char *path, int links, PycError *err) {
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    struct stat st;
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno != ENOENT)
            return pyc_fail(err, errno, "look at the parent", path);
        return make_plain_dir(in, parent, name, path, err);
    }
    if (S_ISLNK(st.st_mode))
        return make_link_target(in, parent, path, links, err);
    if (!in->opaque || !pyc_inside_is_whiteout(&st))
        return pyc_fail(err, ENOTDIR, "use a parent", path);
    /* Deleted, then made anew in the same layer: a directory that shows nothing of the one below. */
    if (unlinkat(parent, name, 0) < 0)
        return pyc_fail(err, errno, "replace the whiteout", path);
    int r = make_plain_dir(in, parent, name, path, err);
    return r < 0 ? r : pyc_inside_mark_opaque(in, parent, name, path, err);
}

/* Like mkdir -p below the root; `path` may hold "..", which the kernel resolves inside the root. */
static int make_parents(PycInside *in, char path[PATH_MAX], int links, int *ret_fd, PycError *err) {
    if (links > MAX_LINKS)
        return pyc_fail(err, ELOOP, "follow the parent", path);
    PYC_AUTO_FD parent = open_inside(in, "", O_PATH);
    if (parent < 0)
        return pyc_fail(err, -parent, "open the layer's directory", NULL);
    for (char *at = path + strspn(path, "/"); *at;) {
        char *end = at + strcspn(at, "/");
        char *next = end + strspn(end, "/");
        char kept = *end;
        *end = 0;
        int fd = open_inside(in, path, O_PATH);
        if (fd == -ENOENT || fd == -ENOTDIR) {
            int r = make_one(in, parent, path, links, err);
            if (r < 0)
                return r;
            fd = open_inside(in, path, O_PATH);
        }
        if (fd < 0)
            return pyc_fail(err, -fd, "open the parent", path);
        *end = kept;
        pyc_close_fd(&parent);
        parent = fd;
        at = next;
    }
    *ret_fd = pyc_take_fd(&parent);
    return 0;
}

static uint32_t hash_of(const char *path, size_t size) {
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (uint8_t)path[i]) * 16777619u;
    return hash;
}

int pyc_inside_parent(PycInside *in, const char *path, size_t size, int make, int *ret_fd, PycError *err) {
    uint32_t hash = hash_of(path, size);
    PycInsideSlot *oldest = &in->slots[0];
    for (int i = 0; i < PYC_INSIDE_SLOTS; i++) {
        PycInsideSlot *slot = &in->slots[i];
        if (slot->size == size && slot->fd >= 0 && slot->hash == hash && memcmp(slot->path, path, size) == 0) {
            slot->used = ++in->clock;
            *ret_fd = slot->fd;
            return 0;
        }
        if (slot->used < oldest->used)
            oldest = slot;
    }
    char copy[PATH_MAX];
    memcpy(copy, path, size);
    copy[size] = 0;
    int fd = open_inside(in, copy, O_PATH);
    if (make && (fd == -ENOENT || fd == -ENOTDIR)) {
        int r = make_parents(in, copy, 0, &fd, err);
        if (r < 0)
            return r;
    }
    if (fd < 0)
        return pyc_fail(err, -fd, "open the parent", copy);
    pyc_close_fd(&oldest->fd);
    oldest->fd = fd;
    oldest->used = ++in->clock;
    oldest->size = size;
    oldest->hash = hash;
    memcpy(oldest->path, path, size);
    *ret_fd = fd;
    return 0;
}

/* A path may resolve to something else from now on. The descriptors stay open: the caller still uses one or two. */
static void forget_parents(PycInside *in) {
    for (int i = 0; i < PYC_INSIDE_SLOTS; i++)
        in->slots[i].size = SIZE_MAX;
}

int pyc_inside_remove(PycInside *in, int parent, const char *name, const struct stat *st, const char *path,
                      PycError *err) {
    if (S_ISDIR(st->st_mode) || S_ISLNK(st->st_mode))
        forget_parents(in);
    if (S_ISDIR(st->st_mode))
        return pyc_remove_tree(parent, name, err);
    return unlinkat(parent, name, 0) < 0 ? pyc_fail(err, errno, "replace", path) : 0;
}

static int grow(void **items, size_t *room, size_t need, size_t item) {
    if (need <= *room)
        return 0;
    size_t more = *room * 2 > need ? *room * 2 : need + 1024;
    void *grown = realloc(*items, more * item);
    if (!grown)
        return -ENOMEM;
    *items = grown;
    *room = more;
    return 0;
}

/* Paths are kept front-coded (archives go depth first): about 40 bytes a directory. */
int pyc_inside_remember_time(PycInside *in, const char *path, uint64_t inode, struct timespec time, PycError *err) {
    size_t size = strlen(path), shared = 0;
    while (shared < size && shared < in->last_size && path[shared] == in->last[shared])
        shared++;
    size_t rest = size - shared;
    if (in->names_size + in->n_times * sizeof *in->times > max_time_bytes)
        return pyc_fail(err, EFBIG, "remember the times of so many directories", path);
    int r = grow((void **)&in->times, &in->times_room, in->n_times + 1, sizeof *in->times);
    if (r == 0)
        r = grow((void **)&in->names, &in->names_room, in->names_size + rest, 1);
    if (r < 0)
        return pyc_fail(err, -r, "remember the times of a directory", path);
    in->times[in->n_times++] = (PycInsideTime){
        .inode = inode,
        .sec = time.tv_sec,
        .nsec = (uint32_t)time.tv_nsec,
        .shared = (uint16_t)shared,
        .rest = (uint16_t)rest,
    };
    if (rest)
        memcpy(in->names + in->names_size, path + shared, rest);
    in->names_size += rest;
    memcpy(in->last, path, size);
    in->last_size = size;
    return 0;
}

int pyc_inside_set_times(PycInside *in, PycError *err) {
    char path[PATH_MAX];
    const char *rest = in->names;
    for (size_t i = 0; i < in->n_times; i++) {
        const PycInsideTime *t = &in->times[i];
        if (t->rest) { /* the root alone has no name, and then there may be none at all */
            memcpy(path + t->shared, rest, t->rest);
            rest += t->rest;
        }
        path[t->shared + t->rest] = 0;
        struct stat st;
        PYC_AUTO_FD fd = open_inside(in, path, O_RDONLY | O_NOFOLLOW);
        if (fd == -ENOENT || fd == -ENOTDIR || fd == -ELOOP)
            continue; /* a later member took its place */
        if (fd < 0 || fstat(fd, &st) < 0)
            return pyc_fail(err, fd < 0 ? -fd : errno, "open the directory to set its times", path);
        if (st.st_ino != t->inode)
            continue;
        struct timespec times[2] = {{t->sec, t->nsec}, {t->sec, t->nsec}};
        if (futimens(fd, times) < 0)
            return pyc_fail(err, errno, "set the times of the directory", path);
    }
    return 0;
}
