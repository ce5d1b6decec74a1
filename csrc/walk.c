/* Walks a tree, or the changes that an overlay's upper directory holds; see walk.h.
 * openat2(2), fstatat(2), readdir(3), getxattr(2), lseek(2) for holes.
 * Called by changes.c.
 *
 * A directory in an upper says nothing by being there: it is a change when its attributes differ or something in it does.
 * As it comes before what is in it, directories wait on the stack until the first change in them and then come, parents
 * first. At most OPEN_FRAMES levels keep their descriptors, so that depth costs none.
 */
#include "walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include "util.h"

enum { OPEN_FRAMES = 32, BLOCK = 1 << 16 };

static const char opaque_name[] = "trusted.overlay.opaque";
static const char redirect_name[] = "trusted.overlay.redirect";
static const char whiteout_name[] = "trusted.overlay.whiteout";
static const char metacopy_name[] = "trusted.overlay.metacopy";

/* The names of one directory: each with a byte in front that tells where it is. */
typedef struct Names {
    char *text;
    size_t size, room;
    char **items;
    size_t count;
} Names;

enum { HERE = '+', BELOW_ONLY = '-' };

typedef struct Frame {
    int fd, below; /* -1: closed for now, or none */
    int has_below;
    int merged;        /* fd is of the merged tree, where there are no marks */
    int full;          /* all there is: nothing of what lies below is seen through it */
    int odd_whiteouts; /* opaque is "x": empty files with an attribute stand for deletions */
    int told, hides, own;
    char kind;
    size_t path_size;
    struct stat st;
    Names names;
    size_t next;
} Frame;

struct PycWalk {
    PycWalkSource source;
    dev_t dev;
    Frame *frames;
    size_t depth, room;
    size_t told; /* frames from the root on that need not be looked at for telling */
    size_t tell; /* frames to tell before `held` */
    size_t lent; /* a frame, plus one, that is open only for the item it gave, or 0 */
    int has_held;
    PycWalkItem held;
    int file; /* of held, or -1 */
    char path[PATH_MAX];
    char item_path[PATH_MAX];
    PycXattrs ours, theirs;
    char *blocks; /* two of BLOCK bytes */
};

/* ---- small things ---- */

static int open_beneath(int root, const char *path, size_t size, int flags) {
    char copy[PATH_MAX];
    memcpy(copy, size ? path : ".", size ? size : 1);
    copy[size ? size : 1] = 0;
    struct open_how how = {
        .flags = (__u64)(unsigned)(flags | O_NOFOLLOW | O_CLOEXEC),
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    for (int tries = 0;; tries++) {
        int fd = (int)syscall(SYS_openat2, root, copy, &how, sizeof how);
        if (fd >= 0)
            return fd;
        if (errno != EINTR && (errno != EAGAIN || tries > 100))
            return -errno;
    }
}

static int open_name(int parent, const char *name, int flags) {
    int fd = openat(parent, name, flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* Copy the path of a frame to item_path. */
static const char *frame_path(PycWalk *w, const Frame *f) {
    memcpy(w->item_path, w->path, f->path_size);
    w->item_path[f->path_size] = 0;
    return w->item_path;
}

/* Others may write meanwhile: what is gone by now is as if never seen; for a list, also what is something else by now. */
static int is_gone(const PycWalk *w, int code) {
    return code == -ENOENT || (!w->source.contents && (code == -ENOTDIR || code == -ELOOP));
}

static int is_dot(const char *name) { return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])); }

static int has_xattr(int fd, const char *name, char *value, size_t size) {
    ssize_t n = fgetxattr(fd, name, value, size - 1);
    if (n < 0) /* a longer one is there too */
        return errno == ERANGE;
    value[n] = 0;
    return 1;
}

/* ---- names ---- */

static int names_add(Names *names, char where, const char *name) {
    size_t size = strlen(name) + 2;
    if (names->size + size > names->room) {
        size_t room = (names->size + size) * 2 + 256;
        char *grown = realloc(names->text, room);
        if (!grown)
            return -ENOMEM;
        names->text = grown;
        names->room = room;
    }
    names->text[names->size] = where;
    memcpy(names->text + names->size + 1, name, size - 1);
    names->size += size;
    names->count++;
    return 0;
}

static void close_dir(DIR **dir) {
    if (*dir)
        (void)closedir(*dir);
}

static int names_read(Names *names, int fd, char where) {
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        return -errno;
    PYC_CLEANUP(close_dir) DIR *dir = fdopendir(copy);
    if (!dir) {
        int code = errno;
        (void)close(copy);
        return -code;
    }
    rewinddir(dir);
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(dir);
        if (!entry)
            return -errno;
        int r = is_dot(entry->d_name) ? 0 : names_add(names, where, entry->d_name);
        if (r < 0)
            return r;
    }
}

static int by_text(const void *a, const void *b) {
    const char *one = *(char *const *)a, *two = *(char *const *)b;
    int order = strcmp(one + 1, two + 1);
    return order ? order : *one - *two; /* HERE comes before BELOW_ONLY */
}

/* Sort; of a name that is in both places, only the one here stays. */
static int names_sort(Names *names) {
    names->items = malloc((names->count + 1) * sizeof *names->items);
    if (!names->items)
        return -ENOMEM;
    char *at = names->text;
    for (size_t i = 0; i < names->count; i++, at += strlen(at) + 1)
        names->items[i] = at;
    qsort(names->items, names->count, sizeof *names->items, by_text);
    size_t kept = 0;
    for (size_t i = 0; i < names->count; i++)
        if (kept == 0 || strcmp(names->items[kept - 1] + 1, names->items[i] + 1) != 0)
            names->items[kept++] = names->items[i];
    names->count = kept;
    return 0;
}

static void names_free(Names *names) {
    free(names->text);
    free(names->items);
    *names = (Names){0};
}

/* ---- frames ---- */

static Frame *top(PycWalk *w) { return &w->frames[w->depth - 1]; }

static void close_frame(Frame *f) {
    pyc_close_fd(&f->fd);
    pyc_close_fd(&f->below);
    f->fd = f->below = -1;
}

static int reopen(PycWalk *w, Frame *f, PycError *err) {
    if (f->fd < 0)
        f->fd =
            open_beneath(f->merged ? w->source.merged : w->source.root, w->path, f->path_size, O_RDONLY | O_DIRECTORY);
    if (f->fd < 0) {
        int code = f->fd;
        f->fd = -1;
        return pyc_fail(err, code, "open again", frame_path(w, f));
    }
    if (f->below < 0 && f->has_below)
        f->below = open_beneath(w->source.base, w->path, f->path_size, O_RDONLY | O_DIRECTORY);
    if (f->below < 0 && f->has_below) {
        int code = f->below;
        f->below = -1;
        return pyc_fail(err, code, "open again what lies below", frame_path(w, f));
    }
    return 0;
}

static void pop(PycWalk *w) {
    Frame *f = top(w);
    close_frame(f);
    names_free(&f->names);
    w->depth--;
    if (w->told > w->depth)
        w->told = w->depth;
}

/* Read the directory of a frame and put it on the stack; its descriptors are taken over. */
static int push(PycWalk *w, Frame *f, PycError *err) {
    w->path[f->path_size] = 0;
    /* A mount point is shown, but not what is mounted on it. */
    int elsewhere = !w->source.overlay && f->st.st_dev != w->dev;
    int r = elsewhere ? 0 : names_read(&f->names, f->fd, HERE);
    if (r == 0 && f->full && f->has_below)
        r = names_read(&f->names, f->below, BELOW_ONLY);
    if (r == 0)
        r = names_sort(&f->names);
    if (r == 0 && w->depth == w->room) {
        size_t room = w->room * 2 + 16;
        Frame *grown = realloc(w->frames, room * sizeof *grown);
        r = grown ? 0 : -ENOMEM;
        w->frames = grown ? grown : w->frames;
        w->room = grown ? room : w->room;
    }
    if (r < 0) {
        close_frame(f);
        names_free(&f->names);
        return pyc_fail(err, r, "list", w->path);
    }
    w->frames[w->depth++] = *f;
    if (w->depth > OPEN_FRAMES)
        close_frame(&w->frames[w->depth - OPEN_FRAMES - 1]);
    return 0;
}

/* ---- is it the same as below? Each returns 1 for the same, 0 for different, -errno. ---- */

static int same_xattrs(PycWalk *w, int fd, int parent, int below_fd, int below, const char *name, PycError *err) {
    int r = pyc_xattrs_read(&w->ours, fd, parent, name, w->path, err);
    if (r == 0)
        r = pyc_xattrs_read(&w->theirs, below_fd, below, name, w->path, err);
    if (r < 0)
        return r;
    if (w->ours.count != w->theirs.count)
        return 0;
    for (size_t i = 0; i < w->ours.count; i++) {
        const PycXattr *one = &w->ours.items[i], *two = &w->theirs.items[i];
        if (strcmp(one->name, two->name) != 0 || one->size != two->size ||
            memcmp(one->value, two->value, one->size) != 0)
            return 0;
    }
    return 1;
}

static int same_link(PycWalk *w, int parent, int below, const char *name, PycError *err) {
    ssize_t one = readlinkat(parent, name, w->blocks, PATH_MAX);
    ssize_t two = readlinkat(below, name, w->blocks + BLOCK, PATH_MAX);
    if (one < 0 || two < 0)
        return pyc_fail(err, errno, "read the link", w->path);
    return one == two && memcmp(w->blocks, w->blocks + BLOCK, (size_t)one) == 0;
}

static ssize_t read_at(int fd, char *block, off_t offset) {
    size_t filled = 0;
    while (filled < BLOCK) {
        ssize_t n = pread(fd, block + filled, BLOCK - filled, offset + (off_t)filled);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        filled += (size_t)n;
    }
    return (ssize_t)filled;
}

/* Where the next data is at or after an offset; the end where there is none. */
static off_t next_data(int fd, off_t offset, off_t end) {
    off_t at = lseek(fd, offset, SEEK_DATA);
    return at >= 0 ? at : errno == ENXIO ? end : offset;
}

static int same_content(PycWalk *w, int one, int two, off_t size, PycError *err) {
    for (off_t offset = 0; offset < size;) {
        off_t a = next_data(one, offset, size), b = next_data(two, offset, size);
        offset = a < b ? a : b;
        if (offset >= size)
            break;
        ssize_t n = read_at(one, w->blocks, offset), m = read_at(two, w->blocks + BLOCK, offset);
        if (n < 0 || m < 0)
            return pyc_fail(err, (int)(n < 0 ? n : m), "compare the content of", w->path);
        if (n != m || memcmp(w->blocks, w->blocks + BLOCK, (size_t)n) != 0)
            return 0;
        if (n == 0)
            break;
        offset += n;
    }
    return 1;
}

static int same_status(const struct stat *a, const struct stat *b) {
    return a->st_mode == b->st_mode && a->st_uid == b->st_uid && a->st_gid == b->st_gid;
}

static int same_time(const struct stat *a, const struct stat *b) {
    return a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* Open a regular file of the tree, where its content is: elsewhere for one that was copied up without it. */
static int open_file(PycWalk *w, const Frame *f, const char *name, struct stat *st, int *ret_fd, PycError *err) {
    PYC_AUTO_FD fd = open_name(f->fd, name, O_RDONLY);
    if (fd < 0)
        return pyc_fail(err, fd, "open", w->path);
    char value[8];
    if (w->source.overlay && !f->merged && st->st_blocks * 512 < st->st_size &&
        has_xattr(fd, metacopy_name, value, sizeof value)) {
        if (w->source.merged < 0)
            return pyc_fail(err, EXDEV, "read what is kept in a lower layer of", w->path);
        pyc_close_fd(&fd);
        fd = open_beneath(w->source.merged, w->path, strlen(w->path), O_RDONLY | O_NONBLOCK | O_NOCTTY);
        if (fd < 0)
            return pyc_fail(err, fd, "open in the merged tree", w->path);
    }
    struct stat now;
    if (fstat(fd, &now) < 0)
        return pyc_fail(err, errno, "look at", w->path);
    if (!S_ISREG(now.st_mode))
        return pyc_fail(err, EBUSY, "read a file that turns into something else:", w->path);
    *st = now;
    *ret_fd = pyc_take_fd(&fd);
    return 0;
}

static int same_file(PycWalk *w, const Frame *f, const char *name, struct stat *st, PycError *err) {
    PYC_AUTO_FD one = -1;
    int r = open_file(w, f, name, st, &one, err);
    if (r < 0)
        return r;
    PYC_AUTO_FD two = open_name(f->below, name, O_RDONLY);
    if (two < 0)
        return pyc_fail(err, two, "open what lies below", w->path);
    r = same_xattrs(w, one, -1, two, -1, name, err);
    return r == 1 ? same_content(w, one, two, st->st_size, err) : r;
}

/* Anything but a directory, which is there below too. */
static int same_inode(PycWalk *w, const Frame *f, const char *name, struct stat *st, const struct stat *below,
                      PycError *err) {
    if (!same_status(st, below) || !same_time(st, below) || st->st_size != below->st_size)
        return 0;
    if (w->source.overlay && st->st_nlink > 1) /* the names that it got are told only together with it */
        return 0;
    if (S_ISREG(st->st_mode))
        return same_file(w, f, name, st, err);
    if (st->st_rdev != below->st_rdev && (S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode)))
        return 0;
    int r = S_ISLNK(st->st_mode) ? same_link(w, f->fd, f->below, name, err) : 1;
    return r == 1 ? same_xattrs(w, -1, f->fd, -1, f->below, name, err) : r;
}

/* ---- visiting ---- */

static void hold(PycWalk *w, const Frame *f, char kind, const struct stat *st, int fd) {
    w->file = fd;
    w->has_held = 1;
    w->held = (PycWalkItem){.kind = kind,
                            .path = w->path,
                            .name = w->path + f->path_size + (f->path_size > 0),
                            .parent = f->fd,
                            .fd = fd,
                            .own = 1,
                            .st = *st};
    w->tell = w->depth;
}

/* What an upper says about a name that is gone: nothing when it was not there below either. */
static int visit_deleted(PycWalk *w, const Frame *f, const char *name, int known) {
    struct stat st = {0};
    if (w->source.base >= 0 && !known && (!f->has_below || fstatat(f->below, name, &st, AT_SYMLINK_NOFOLLOW) < 0))
        return 0;
    hold(w, f, 'D', &st, -1);
    return 0;
}

static int visit_file(PycWalk *w, const Frame *f, const char *name, struct stat *st, PycError *err) {
    if (S_ISSOCK(st->st_mode) && w->source.contents)
        return 0; /* there is none in an archive */
    struct stat below;
    char kind = 'A';
    if (f->has_below && fstatat(f->below, name, &below, AT_SYMLINK_NOFOLLOW) == 0) {
        int r = same_inode(w, f, name, st, &below, err);
        if (is_gone(w, r))
            err->code = 0;
        if (r != 0)
            return r < 0 && !is_gone(w, r) ? r : 0;
        kind = 'C';
    } else if (f->has_below && errno != ENOENT) {
        return pyc_fail(err, errno, "look at what lies below", w->path);
    }
    PYC_AUTO_FD fd = -1;
    if (S_ISREG(st->st_mode) && w->source.contents) {
        int r = open_file(w, f, name, st, &fd, err);
        if (is_gone(w, r))
            err->code = 0;
        if (r < 0)
            return is_gone(w, r) ? 0 : r;
    }
    hold(w, f, kind, st, pyc_take_fd(&fd));
    return 0;
}

/* Read the marks of a directory in an upper; a redirected one is continued in the merged tree. */
static int read_marks(PycWalk *w, Frame *f, PycError *err) {
    char value[4] = "";
    if (has_xattr(f->fd, redirect_name, value, sizeof value)) {
        if (w->source.merged < 0)
            return pyc_fail(err, EXDEV, "read a directory that was moved from a lower layer:", w->path);
        pyc_close_fd(&f->fd);
        f->fd = open_beneath(w->source.merged, w->path, strlen(w->path), O_RDONLY | O_DIRECTORY);
        if (f->fd < 0)
            return pyc_fail(err, f->fd, "open in the merged tree", w->path);
        f->merged = f->full = 1;
    } else if (has_xattr(f->fd, opaque_name, value, sizeof value)) {
        f->full |= value[0] == 'y';
        f->odd_whiteouts = value[0] == 'x';
    }
    return 0;
}

/* Compare a directory with the one below it. */
static int compare_directory(PycWalk *w, Frame *f, PycError *err) {
    struct stat below;
    if (fstat(f->below, &below) < 0)
        return pyc_fail(err, errno, "look at what lies below", w->path);
    f->kind = 'C';
    int r = same_status(&f->st, &below);
    if (r == 1)
        r = same_xattrs(w, f->fd, -1, f->below, -1, "", err);
    f->own = r == 0 || (w->depth > 0 && !same_time(&f->st, &below)); /* a root has the time of the last start */
    return r < 0 ? r : 0;
}

/* Of a directory through which nothing is seen, an archive says so, instead of what is not seen. */
static int hide_below(PycWalk *w, Frame *f, PycError *err) {
    Names names = {0};
    int r = names_read(&names, f->below, BELOW_ONLY);
    f->hides = names.count > 0;
    f->own |= f->hides;
    names_free(&names);
    pyc_close_fd(&f->below);
    f->below = -1;
    f->has_below = 0;
    return r < 0 ? pyc_fail(err, r, "list what lies below", w->path) : 0;
}

/* Find what a directory covers. */
static int look_below(PycWalk *w, const Frame *parent, const char *name, Frame *f, PycError *err) {
    if (w->source.base < 0)
        f->hides = f->full && !parent->full;
    if (!parent->has_below)
        return 0;
    int below = open_name(parent->below, name, O_RDONLY | O_DIRECTORY);
    if (below == -ENOTDIR || below == -ELOOP)
        f->kind = 'C'; /* something else was there */
    if (below < 0)
        return below == -ENOENT || f->kind == 'C' ? 0 : pyc_fail(err, below, "open what lies below", w->path);
    f->below = below;
    f->has_below = 1;
    int r = compare_directory(w, f, err);
    return r == 0 && f->full && w->source.contents ? hide_below(w, f, err) : r;
}

static int visit_directory(PycWalk *w, const Frame *parent, const char *name, const struct stat *st, PycError *err) {
    if (w->source.skip_inode && st->st_dev == w->source.skip_dev && st->st_ino == w->source.skip_inode)
        return 0;
    Frame f = {
        .fd = open_name(parent->fd, name, O_RDONLY | O_DIRECTORY),
        .below = -1,
        .kind = 'A',
        .own = 1,
        .merged = parent->merged,
        .full = parent->full,
        .path_size = strlen(w->path),
    };
    if (f.fd < 0)
        return is_gone(w, f.fd) ? 0 : pyc_fail(err, f.fd, "open", w->path);
    int r = w->source.overlay && !f.merged ? read_marks(w, &f, err) : 0;
    if (r == 0 && fstat(f.fd, &f.st) < 0)
        r = pyc_fail(err, errno, "look at", w->path);
    if (r == 0)
        r = look_below(w, parent, name, &f, err);
    if (r < 0) {
        close_frame(&f);
        return r;
    }
    int own = f.own || f.hides;
    r = push(w, &f, err);
    if (r == 0 && own)
        w->tell = w->depth;
    return r;
}

static int is_odd_whiteout(PycWalk *w, const Frame *f, const char *name, const struct stat *st, int *ret_is,
                           PycError *err) {
    *ret_is = 0;
    if (!f->odd_whiteouts || !S_ISREG(st->st_mode) || st->st_size != 0)
        return 0;
    char value[4];
    PYC_AUTO_FD fd = open_name(f->fd, name, O_RDONLY);
    if (fd < 0)
        return is_gone(w, fd) ? 0 : pyc_fail(err, fd, "open", w->path);
    *ret_is = has_xattr(fd, whiteout_name, value, sizeof value);
    return 0;
}

static int visit(PycWalk *w, Frame *f, const char *entry, PycError *err) {
    const char *name = entry + 1;
    if ((size_t)snprintf(w->path + f->path_size, sizeof w->path - f->path_size, "%s%s", f->path_size ? "/" : "",
                         name) >= sizeof w->path - f->path_size)
        return pyc_fail(err, ENAMETOOLONG, "name something below", frame_path(w, f));
    int r = reopen(w, f, err);
    if (r < 0)
        return r;
    if (*entry == BELOW_ONLY)
        return visit_deleted(w, f, name, 1);
    struct stat st;
    if (fstatat(f->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : pyc_fail(err, errno, "look at", w->path); /* gone since it was listed */
    if (w->source.overlay && !f->merged) {
        int odd = 0;
        r = is_odd_whiteout(w, f, name, &st, &odd, err);
        if (r < 0)
            return r;
        if (odd || (S_ISCHR(st.st_mode) && st.st_rdev == 0))
            return visit_deleted(w, f, name, 0);
    }
    return S_ISDIR(st.st_mode) ? visit_directory(w, f, name, &st, err) : visit_file(w, f, name, &st, err);
}

/* ---- the way through ---- */

int pyc_walk_open(const PycWalkSource *source, PycWalk **ret_walk, PycError *err) {
    PycWalk *w = calloc(1, sizeof *w);
    if (!w)
        return pyc_fail(err, ENOMEM, "begin the walk", NULL);
    w->source = *source;
    w->file = -1;
    w->blocks = malloc(2 * BLOCK);
    Frame f = {.fd = -1,
               .below = -1,
               .kind = 'C',
               .has_below = source->base >= 0,
               .own = source->base < 0,
               .full = !source->overlay};
    int r = w->blocks ? reopen(w, &f, err) : pyc_fail(err, ENOMEM, "begin the walk", NULL);
    if (r == 0 && fstat(f.fd, &f.st) < 0)
        r = pyc_fail(err, errno, "look at the root of the tree", NULL);
    w->dev = f.st.st_dev;
    if (r == 0 && f.has_below)
        r = compare_directory(w, &f, err);
    if (r == 0)
        r = push(w, &f, err);
    else
        close_frame(&f);
    if (r < 0) {
        pyc_walk_free(w);
        return r;
    }
    w->tell = 1; /* the root comes always: a layer says what it is like */
    *ret_walk = w;
    return 0;
}

/* Give the next directory on the stack that is due, or the mark that it hides what lies below. */
static int tell(PycWalk *w, PycWalkItem *ret, PycError *err) {
    while (w->told < w->tell) {
        Frame *f = &w->frames[w->told];
        if (f->told && !f->hides) {
            w->told++;
            continue;
        }
        w->lent = f->fd < 0 && w->told + OPEN_FRAMES < w->depth ? w->told + 1 : 0;
        int r = reopen(w, f, err);
        if (r < 0)
            return r;
        const char *path = frame_path(w, f), *slash = strrchr(path, '/');
        *ret = (PycWalkItem){.kind = f->told ? 'O' : f->kind,
                             .path = path,
                             .name = slash ? slash + 1 : path,
                             .parent = -1,
                             .fd = f->fd,
                             .own = f->own,
                             .st = f->st};
        if (f->told)
            f->hides = 0;
        f->told = 1;
        return 1;
    }
    return 0;
}

int pyc_walk_next(PycWalk *w, PycWalkItem *ret_item, PycError *err) {
    for (;;) {
        if (w->lent)
            close_frame(&w->frames[w->lent - 1]);
        w->lent = 0;
        int r = tell(w, ret_item, err);
        if (r != 0)
            return r;
        if (w->has_held) {
            w->has_held = 0;
            *ret_item = w->held;
            return 1;
        }
        pyc_close_fd(&w->file);
        w->file = -1;
        if (w->depth == 0)
            return 0;
        Frame *f = top(w);
        if (f->next == f->names.count) {
            pop(w);
            w->tell = 0;
            continue;
        }
        r = visit(w, f, f->names.items[f->next++], err);
        if (r < 0)
            return r;
    }
}

void pyc_walk_free(PycWalk *w) {
    if (!w)
        return;
    while (w->depth > 0)
        pop(w);
    pyc_close_fd(&w->file);
    pyc_xattrs_free(&w->ours);
    pyc_xattrs_free(&w->theirs);
    free(w->frames);
    free(w->blocks);
    free(w);
}
