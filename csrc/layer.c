/* Turns the members of a tar into files below one directory: owners, modes, xattrs, times, links, whiteouts; see layer.h.
 * openat(2), linkat(2), symlinkat(2), mknodat(2), fchown(2), fsetxattr(2), utimensat(2).
 * Called through ffi; parses with tar.c, judges with rules.c, resolves with inside.c.
 *
 * Two facts order the steps. chown clears setuid and security.capability, and so does a write by an ordinary user: so
 * content, owner, mode, xattrs, times, in this order. And the umask, a setgid parent or a default ACL may change what we
 * asked for: so every new inode is looked at once, and only what differs is set (a stat is cheaper than a chmod).
 */
#include "layer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "tar.h"
#include "inside.h"
#include "rules.h"
#include "util.h"

struct PycLayer {
    PycLayerOptions options;
    PycLayerStats stats;
    PycTar *tar;
    PycInside inside;
    uid_t uid; /* ours */
    gid_t gid;
    const PycTarMember *member;
    int parent;
    int file; /* the regular file being written, or -1 */
    const char *base;
    char path[PATH_MAX];
};

static int on_member(void *self, const PycTarMember *member, PycError *err);
static int on_content(void *self, uint64_t offset, const uint8_t *data, size_t size, PycError *err);
static int on_end(void *self, PycError *err);

int pyc_layer_open(int dirfd, const PycLayerOptions *options, PycLayer **ret_layer, PycError *err) {
    static const PycTarActions actions = {on_member, on_content, on_end};
    PycLayer *layer = calloc(1, sizeof *layer);
    if (!layer)
        return pyc_fail(err, ENOMEM, "allocate the layer", NULL);
    PycLayerOptions *o = &layer->options;
    *o = pyc_rules_defaults(options);
    layer->file = layer->inside.root = -1;
    layer->uid = geteuid();
    layer->gid = getegid();
    const char *opaque = o->flags & PYC_LAYER_PLAIN       ? NULL
                         : o->flags & PYC_LAYER_USERXATTR ? "user.overlay.opaque"
                                                          : "trusted.overlay.opaque";
    int r = pyc_inside_open(dirfd, opaque, o->max_entries, &layer->inside, err);
    if (r == 0)
        r = pyc_tar_open(&actions, layer, o->max_meta, &layer->tar, err);
    if (r < 0) {
        pyc_layer_free(layer);
        return r;
    }
    *ret_layer = layer;
    return 0;
}

void pyc_layer_free(PycLayer *layer) {
    if (!layer)
        return;
    pyc_close_fd(&layer->file);
    pyc_tar_free(layer->tar);
    pyc_inside_close(&layer->inside);
    free(layer);
}

int pyc_layer_feed(PycLayer *layer, const uint8_t *data, size_t size, PycError *err) {
    return pyc_tar_feed(layer->tar, data, size, err);
}

int pyc_layer_finish(PycLayer *layer, PycLayerStats *ret_stats, PycError *err) {
    int r = pyc_tar_finish(layer->tar, (layer->options.flags & PYC_LAYER_BARE_END) != 0, err);
    if (r == 0)
        r = pyc_inside_set_times(&layer->inside, err);
    if (r < 0)
        return r;
    layer->stats.implied = layer->inside.made;
    *ret_stats = layer->stats;
    return 0;
}

static int is_prefix(const char *prefix, const char *text) { return strncmp(text, prefix, strlen(prefix)) == 0; }

/* ---- what a new inode gets ---- */

/* `file` is a descriptor, or -1 for an inode that cannot be opened: then the path through /proc names it. */
static int set_xattrs(PycLayer *layer, int file, PycError *err) {
    const PycTarMember *m = layer->member;
    char name[NAME_MAX + 64];
    if (file < 0 && m->n_xattrs)
        (void)snprintf(name, sizeof name, "/proc/self/fd/%d/%s", layer->parent, layer->base);
    for (size_t i = 0; i < m->n_xattrs; i++) {
        const PycTarXattr *x = &m->xattrs[i];
        int r = pyc_rules_foreign_xattr(x->name) ? 1
                : file >= 0                      ? fsetxattr(file, x->name, x->value, x->size, 0)
                                                 : lsetxattr(name, x->name, x->value, x->size, 0);
        if (r == 0)
            continue;
        /* user.* cannot be on links and devices, trusted.* not by a user: an unprivileged image tool loses them too. */
        int optional = r == 1 || errno == EOPNOTSUPP || (errno == EPERM && !is_prefix("security.", x->name));
        if (!optional || (r < 0 && strcmp(x->name, "security.capability") == 0))
            return pyc_fail(err, errno, "set an extended attribute", layer->path);
        layer->stats.xattrs_dropped++;
    }
    return 0;
}

/* What differs between the inode as it was made and as the archive has it. */
typedef struct Change {
    int owner, mode;
} Change;

static Change compare(const PycLayer *layer, const struct stat *st) {
    const PycTarMember *m = layer->member;
    int owner = !(layer->options.flags & PYC_LAYER_NO_OWNERS) && (st->st_uid != m->uid || st->st_gid != m->gid);
    return (Change){owner, (st->st_mode & 07777) != m->mode || (owner && m->mode & 06000)};
}

static struct timespec mtime_of(const PycTarMember *m) {
    return (struct timespec){.tv_sec = m->mtime, .tv_nsec = m->mtime_nsec};
}

/* Everything but a regular file: by name, never through a link. */
static int finish_special(PycLayer *layer, int with_time, struct stat *st, PycError *err) {
    const PycTarMember *m = layer->member;
    if (fstatat(layer->parent, layer->base, st, AT_SYMLINK_NOFOLLOW) < 0)
        return pyc_fail(err, errno, "look at the new", layer->path);
    Change change = compare(layer, st);
    if (change.owner && fchownat(layer->parent, layer->base, (uid_t)m->uid, (gid_t)m->gid, AT_SYMLINK_NOFOLLOW) < 0)
        return pyc_fail(err, errno, "set the owner of", layer->path);
    if (change.mode && !S_ISLNK(st->st_mode) && fchmodat(layer->parent, layer->base, m->mode, 0) < 0)
        return pyc_fail(err, errno, "set the mode of", layer->path);
    if (m->n_xattrs) {
        PYC_AUTO_FD dir = S_ISDIR(st->st_mode)
                              ? openat(layer->parent, layer->base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                              : -1;
        int r = set_xattrs(layer, dir, err);
        if (r < 0)
            return r;
    }
    struct timespec times[2] = {mtime_of(m), mtime_of(m)};
    if (with_time && utimensat(layer->parent, layer->base, times, AT_SYMLINK_NOFOLLOW) < 0)
        return pyc_fail(err, errno, "set the times of", layer->path);
    return 0;
}

static int finish_file(PycLayer *layer, PycError *err) {
    const PycTarMember *m = layer->member;
    PYC_AUTO_FD file = pyc_take_fd(&layer->file);
    struct stat st;
    if (m->sparse && ftruncate(file, (off_t)m->size) < 0)
        return pyc_fail(err, errno, "set the size of", layer->path);
    if (fstat(file, &st) < 0)
        return pyc_fail(err, errno, "look at the new", layer->path);
    Change change = compare(layer, &st);
    if (change.owner && fchown(file, (uid_t)m->uid, (gid_t)m->gid) < 0)
        return pyc_fail(err, errno, "set the owner of", layer->path);
    if (change.mode && fchmod(file, m->mode) < 0)
        return pyc_fail(err, errno, "set the mode of", layer->path);
    int r = set_xattrs(layer, file, err);
    if (r < 0)
        return r;
    struct timespec times[2] = {mtime_of(m), mtime_of(m)};
    if (futimens(file, times) < 0)
        return pyc_fail(err, errno, "set the times of", layer->path);
    if (close(pyc_take_fd(&file)) < 0) /* a network file system may only now say that it is full */
        return pyc_fail(err, errno, "write", layer->path);
    return 0;
}

/* ---- making inodes ---- */

/* Something has the name already: of two members, the last counts. ret_kept: a directory stays, and gets the new
 * member's attributes. ret_hidden: it was a whiteout, so that a directory in its place has to be opaque. */
static int make_way(PycLayer *layer, int *ret_kept, int *ret_hidden, PycError *err) {
    struct stat st;
    if (fstatat(layer->parent, layer->base, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return pyc_fail(err, errno, "look at the existing", layer->path);
    if (layer->member->kind == PYC_TAR_DIRECTORY && S_ISDIR(st.st_mode)) {
        *ret_kept = 1;
        return 0;
    }
    *ret_hidden = layer->inside.opaque && pyc_inside_is_whiteout(&st);
    return pyc_inside_remove(&layer->inside, layer->parent, layer->base, &st, layer->path, err);
}

static int is_same_inode(int parent_a, const char *a, int parent_b, const char *b) {
    struct stat one, two;
    return fstatat(parent_a, a, &one, AT_SYMLINK_NOFOLLOW) == 0 &&
           fstatat(parent_b, b, &two, AT_SYMLINK_NOFOLLOW) == 0 && one.st_dev == two.st_dev && one.st_ino == two.st_ino;
}

static int make_hardlink(PycLayer *layer, PycError *err) {
    char target[PATH_MAX];
    size_t size = 0;
    int from = -1;
    int r = pyc_inside_clean(layer->member->link, target, &size, err);
    if (r < 0)
        return r;
    char *slash = memrchr(target, '/', size);
    const char *name = slash ? slash + 1 : target;
    r = pyc_inside_parent(&layer->inside, target, slash ? (size_t)(slash - target) : 0, 0, &from, err);
    if (r < 0)
        return r;
    struct stat st;
    if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return pyc_fail(err, errno, "find the target of the hard link", layer->path);
    if (S_ISDIR(st.st_mode) || (layer->inside.opaque && pyc_inside_is_whiteout(&st)))
        return pyc_fail(err, EPERM, "hard-link to a directory or whiteout", layer->path);
    for (int again = 0;; again = 1) {
        if (linkat(from, name, layer->parent, layer->base, 0) == 0)
            return 0;
        if (errno != EEXIST || again)
            return pyc_fail(err, errno, "make the hard link", layer->path);
        if (is_same_inode(from, name, layer->parent, layer->base))
            return 0;
        int kept = 0, hidden = 0;
        r = make_way(layer, &kept, &hidden, err);
        if (r < 0)
            return r;
    }
}

static int make_once(PycLayer *layer) {
    const PycTarMember *m = layer->member;
    mode_t mode = m->mode & 0777;
    dev_t device = makedev((unsigned)m->major, (unsigned)m->minor);
    switch (m->kind) {
    case PYC_TAR_FILE:
        layer->file = openat(layer->parent, layer->base, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
        return layer->file < 0 ? -errno : 0;
    case PYC_TAR_SYMLINK:
        return symlinkat(m->link, layer->parent, layer->base) < 0 ? -errno : 0;
    case PYC_TAR_DIRECTORY:
        return mkdirat(layer->parent, layer->base, mode) < 0 ? -errno : 0;
    case PYC_TAR_FIFO:
        return mknodat(layer->parent, layer->base, S_IFIFO | mode, 0) < 0 ? -errno : 0;
    case PYC_TAR_CHAR:
        return mknodat(layer->parent, layer->base, S_IFCHR | mode, device) < 0 ? -errno : 0;
    default:
        return mknodat(layer->parent, layer->base, S_IFBLK | mode, device) < 0 ? -errno : 0;
    }
}

static const char *const make_steps[] = {
    [PYC_TAR_FILE] = "create the file",
    [PYC_TAR_HARDLINK] = "make the hard link",
    [PYC_TAR_SYMLINK] = "make the symlink",
    [PYC_TAR_CHAR] = "make the device node",
    [PYC_TAR_BLOCKDEV] = "make the device node",
    [PYC_TAR_DIRECTORY] = "make the directory",
    [PYC_TAR_FIFO] = "make the fifo",
};

static int make_inode(PycLayer *layer, PycError *err) {
    const PycTarMember *m = layer->member;
    int kept = 0, hidden = 0;
    int r = make_once(layer);
    if (r == -EEXIST) {
        r = make_way(layer, &kept, &hidden, err);
        if (r < 0)
            return r;
        r = kept ? 0 : make_once(layer);
    }
    if (r < 0)
        return pyc_fail(err, -r, make_steps[m->kind], layer->path);
    if (m->kind == PYC_TAR_FILE)
        return 0; /* the rest follows its content */
    struct stat st;
    r = finish_special(layer, m->kind != PYC_TAR_DIRECTORY, &st, err);
    if (r == 0 && hidden && m->kind == PYC_TAR_DIRECTORY)
        r = pyc_inside_mark_opaque(&layer->inside, layer->parent, layer->base, layer->path, err);
    if (r == 0 && m->kind == PYC_TAR_DIRECTORY)
        r = pyc_inside_remember_time(&layer->inside, layer->path, st.st_ino, mtime_of(m), err);
    return r;
}

/* ---- whiteouts ---- */

static int hide_name(PycLayer *layer, const char *name, PycError *err) {
    layer->stats.whiteouts++;
    if (mknodat(layer->parent, name, S_IFCHR, 0) == 0)
        return 0;
    struct stat st;
    if (errno != EEXIST || fstatat(layer->parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return pyc_fail(err, errno, "make the whiteout", layer->path);
    /* A whiteout hides what lower layers have, not what this one brings: a file hides that anyway. */
    return S_ISDIR(st.st_mode) ? pyc_inside_mark_opaque(&layer->inside, layer->parent, name, layer->path, err) : 0;
}

static int hide_below(PycLayer *layer, PycError *err) {
    layer->stats.whiteouts++;
    if (is_same_inode(layer->parent, ".", layer->inside.root, ".")) /* also through a link */
        layer->stats.root_opaque = 1;
    return pyc_inside_mark_opaque(&layer->inside, layer->parent, ".", layer->path, err);
}

/* ---- members ---- */

/* "./": the root itself, which exists. */
static int apply_root(PycLayer *layer, PycError *err) {
    if (layer->member->kind != PYC_TAR_DIRECTORY)
        return pyc_fail(err, EISDIR, "replace the root by something else", layer->member->path);
    layer->parent = layer->inside.root;
    layer->base = ".";
    struct stat st;
    int r = finish_special(layer, 0, &st, err);
    return r < 0 ? r : pyc_inside_remember_time(&layer->inside, "", st.st_ino, mtime_of(layer->member), err);
}

static int on_member(void *self, const PycTarMember *m, PycError *err) {
    PycLayer *layer = self;
    size_t size = 0;
    int skip = 0;
    layer->member = m;
    int r = pyc_inside_clean(m->path, layer->path, &size, err);
    if (r == 0)
        r = pyc_rules_check(&layer->options, m, layer->path, layer->stats.entries + layer->inside.made,
                            layer->stats.bytes, &skip, err);
    if (r < 0 || skip)
        return r;
    layer->stats.entries++;
    if (size == 0)
        return apply_root(layer, err);
    char *slash = memrchr(layer->path, '/', size);
    layer->base = slash ? slash + 1 : layer->path;
    r = pyc_inside_parent(&layer->inside, layer->path, slash ? (size_t)(slash - layer->path) : 0, 1, &layer->parent,
                          err);
    PycMark mark = PYC_MARK_NONE;
    const char *hidden = NULL;
    if (r == 0)
        r = pyc_rules_mark(&layer->options, m, layer->base, layer->path, &mark, &hidden, err);
    if (r < 0)
        return r;
    if (mark != PYC_MARK_NONE)
        return mark == PYC_MARK_BELOW ? hide_below(layer, err) : hide_name(layer, hidden, err);
    return m->kind == PYC_TAR_HARDLINK ? make_hardlink(layer, err) : make_inode(layer, err);
}

static int on_content(void *self, uint64_t offset, const uint8_t *data, size_t size, PycError *err) {
    PycLayer *layer = self;
    if (layer->file < 0)
        return 0; /* of a whiteout, say */
    layer->stats.bytes += size;
    while (size) {
        ssize_t n = pwrite(layer->file, data, size, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return pyc_fail(err, errno, "write", layer->path);
        data += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static int on_end(void *self, PycError *err) {
    PycLayer *layer = self;
    return layer->file < 0 ? 0 : finish_file(layer, err);
}
