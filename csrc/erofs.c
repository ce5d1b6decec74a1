/* Turns the members of tars into a tree in memory, under the same rules as layer.c makes files of them; see erofs.h.
 * pread(2) of whole archives.
 * Called through ffi; parses with tar.c, judges with rules.c, keeps with erofs_tree.c, writes with erofs_write.c.
 *
 * Where a path or a link leads, what replaces what and what is refused is the same as in layer.c, so that it makes no
 * difference which of them a store uses.
 */
#include "erofs.h"

#include <errno.h>
#include <linux/posix_acl_xattr.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "erofs_disk.h"
#include "erofs_image.h"
#include "inside.h"
#include "rules.h"
#include "util.h"

enum {
    READ = 1 << 14,               /* of a whole archive at a time: a few files and their headers */
    MAX_XATTRS_SIZE = 4 * 0xff00, /* what an inode of erofs can count, and some for a mark of ours */
    MAX_XATTR_VALUE = 0xffff,
    MAX_TARGET = PATH_MAX - 1,
};
static const uint64_t free_maps = (uint64_t)64 << 20; /* bytes of chunk maps that any layer may bring */

struct PycErofs {
    PycLayerOptions options;
    PycErofsStats stats;
    PycErofsImage image;
    PycTree tree;
    PycTar *tar;
    uint32_t layers; /* to come, in all */
    uint32_t layer;  /* begun, from 1 */
    uint32_t base;   /* root of what the layers so far are together */
    uint64_t before; /* bytes of the archives so far */
    const PycTarMember *member;
    uint32_t parent;
    uint32_t copied; /* the file whose content goes into the image, or 0 */
    const char *base_name;
    char path[PATH_MAX];
    uint8_t *xattrs, *buffer;
};

static int on_member(void *self, const PycTarMember *member, PycError *err);
static int on_content(void *self, uint64_t offset, const uint8_t *data, size_t size, PycError *err);
static int on_end(void *self, PycError *err);

int pyc_erofs_open(int fd, const PycLayerOptions *options, uint32_t layers, PycErofs **ret_erofs, PycError *err) {
    PycErofs *e = calloc(1, sizeof *e);
    if (!e)
        return pyc_fail(err, ENOMEM, "allocate the index", NULL);
    e->options = pyc_rules_defaults(options);
    int r = pyc_tree_open(&e->tree, e->options.max_tree, err);
    if (r == 0 && (layers == 0 || layers > UINT16_MAX))
        r = pyc_fail(err, EINVAL, "index so many layers", NULL);
    if (r < 0) {
        pyc_erofs_free(e);
        return r;
    }
    e->layers = layers;
    e->tree.overlay = pyc_rules_overlay(&e->options);
    e->tree.uid = e->options.flags & PYC_LAYER_NO_OWNERS ? geteuid() : 0;
    e->tree.gid = e->options.flags & PYC_LAYER_NO_OWNERS ? getegid() : 0;
    e->image = (PycErofsImage){.fd = fd, .end = pyc_erofs_first_free(layers)};
    e->image.devices = calloc(layers, sizeof *e->image.devices);
    e->xattrs = malloc(MAX_XATTRS_SIZE);
    e->image.opaque = e->options.flags & PYC_LAYER_PLAIN       ? NULL
                      : e->options.flags & PYC_LAYER_USERXATTR ? "user.overlay.opaque"
                                                               : "trusted.overlay.opaque";
    if (!e->image.devices || !e->xattrs) {
        pyc_erofs_free(e);
        return pyc_fail(err, ENOMEM, "allocate the index", NULL);
    }
    *ret_erofs = e;
    return 0;
}

void pyc_erofs_free(PycErofs *e) {
    if (!e)
        return;
    pyc_tar_free(e->tar);
    pyc_tree_close(&e->tree);
    free(e->image.devices);
    free(e->xattrs);
    free(e->buffer);
    free(e);
}

static int begin_layer(PycErofs *e, PycError *err) {
    static const PycTarActions actions = {on_member, on_content, on_end};
    if (e->layer == e->layers)
        return pyc_fail(err, EINVAL, "index one more layer than was said", NULL);
    int r = pyc_tree_add_inode(&e->tree, S_IFDIR | 0755, &e->tree.root, err);
    if (r == 0 && !e->tree.implied)
        r = pyc_tree_add_inode(&e->tree, S_IFDIR | 0755, &e->tree.implied, err);
    if (r == 0)
        r = pyc_tar_open(&actions, e, e->options.max_meta, &e->tar, err);
    if (r < 0)
        return r;
    e->tree.inodes[e->tree.root].parent = e->tree.root;
    e->tree.made = 0;
    e->tree.max_made = e->options.max_entries;
    pyc_tree_forget(&e->tree);
    memset(&e->stats, 0, sizeof e->stats);
    e->layer++;
    return 0;
}

int pyc_erofs_feed(PycErofs *e, const uint8_t *data, size_t size, PycError *err) {
    int r = e->tar ? 0 : begin_layer(e, err);
    return r < 0 ? r : pyc_tar_feed(e->tar, data, size, err);
}

int pyc_erofs_feed_file(PycErofs *e, int fd, PycError *err) {
    struct stat st;
    int r = e->tar ? 0 : begin_layer(e, err);
    if (r < 0)
        return r;
    if (!e->buffer && !(e->buffer = malloc(READ)))
        return pyc_fail(err, ENOMEM, "allocate the index", NULL);
    if (fstat(fd, &st) < 0)
        return pyc_fail(err, errno, "look at the archive", NULL);
    uint64_t size = (uint64_t)st.st_size;
    for (uint64_t at = 0, passed = 0; at != size; at += passed) {
        if (at > size)
            return pyc_fail(err, EBADMSG, "read on: the archive is cut short", e->path);
        ssize_t n = pread(fd, e->buffer, READ, (off_t)at);
        passed = 0;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return pyc_fail(err, errno, "read the archive", NULL);
        if (n == 0)
            return pyc_fail(err, EBADMSG, "read on: the archive became shorter", NULL);
        r = pyc_tar_feed(e->tar, e->buffer, (size_t)n, err);
        if (r == 0 && !e->copied)
            r = pyc_tar_pass(e->tar, &passed, err);
        if (r < 0)
            return r;
        if (passed == UINT64_MAX)
            return 0;
        passed += (uint64_t)n;
    }
    return 0;
}

static int merge_layer(PycErofs *e, PycError *err) {
    int r = e->base ? 0 : pyc_tree_add_inode(&e->tree, S_IFDIR | 0755, &e->base, err);
    if (r < 0)
        return r;
    e->tree.inodes[e->base].parent = e->base;
    return pyc_erofs_merge(&e->tree, &e->base, err);
}

int pyc_erofs_end(PycErofs *e, uint64_t size, const char *tag, PycErofsStats *ret_stats, PycError *err) {
    int r = e->tar ? 0 : begin_layer(e, err);
    if (r == 0)
        r = pyc_tar_finish(e->tar, (e->options.flags & PYC_LAYER_BARE_END) != 0, err);
    if (r < 0)
        return r;
    if (size >> PYC_EROFS_BLOCK_BITS >= UINT32_MAX)
        return pyc_fail(err, EFBIG, "index a layer beyond 2 TiB", NULL);
    pyc_tar_free(e->tar);
    e->tar = NULL;
    e->stats.implied = e->tree.made;
    e->before += size;
    r = e->layers == 1 ? 0 : merge_layer(e, err);
    if (r < 0)
        return r;
    if (e->layers == 1)
        e->base = e->tree.root;
    PycErofsDevice *device = &e->image.devices[e->image.n_devices++];
    device->blocks = (size + PYC_EROFS_BLOCK - 1) / PYC_EROFS_BLOCK;
    memcpy(device->tag, tag, strnlen(tag, sizeof device->tag));
    *ret_stats = e->stats;
    return 0;
}

int pyc_erofs_write(PycErofs *e, const uint8_t *uuid, uint64_t *ret_size, PycError *err) {
    if (e->image.n_devices != e->layers)
        return pyc_fail(err, EINVAL, "write the index once, after the last layer", NULL);
    e->tree.root = e->base;
    int r = pyc_erofs_write_image(&e->image, &e->tree, uuid, err);
    e->image.n_devices = 0; /* once */
    if (r == 0)
        *ret_size = e->image.end;
    return r;
}

/* ---- extended attributes ---- */

static int is_prefix(const char *prefix, const char *text) { return strncmp(text, prefix, strlen(prefix)) == 0; }

/* What the kernel would refuse to set, and might not expect to read. */
static int is_valid_value(const PycTarXattr *x) {
    uint32_t magic = 0, revision;
    if (x->size >= sizeof magic)
        memcpy(&magic, x->value, sizeof magic);
    if (is_prefix("system.", x->name))
        return x->size >= 4 && magic == POSIX_ACL_XATTR_VERSION && (x->size - 4) % 8 == 0;
    if (!is_prefix("security.", x->name))
        return 1;
    revision = magic & VFS_CAP_REVISION_MASK;
    return (revision == VFS_CAP_REVISION_2 && x->size == XATTR_CAPS_SZ_2) ||
           (revision == VFS_CAP_REVISION_3 && x->size == XATTR_CAPS_SZ_3);
}

/* Whether an inode of this kind can have the attribute, and how it is named on disk. */
static int can_have(const PycTarXattr *x, PycTarKind kind, uint8_t *ret_index, const char **ret_rest) {
    if (pyc_rules_foreign_xattr(x->name))
        return 0;
    if (is_prefix("user.", x->name) && kind != PYC_TAR_FILE && kind != PYC_TAR_DIRECTORY)
        return 0;
    *ret_index = pyc_erofs_xattr_index(x->name, ret_rest);
    int acl = *ret_index == PYC_EROFS_XATTR_ACL_ACCESS || *ret_index == PYC_EROFS_XATTR_ACL_DEFAULT;
    return *ret_index && !(acl && kind == PYC_TAR_SYMLINK);
}

/* Of two with one name the later counts. */
static size_t drop_entry(uint8_t *entries, size_t size, const uint8_t *one) {
    for (size_t at = 0, gone; at < size; at += gone) {
        gone = pyc_erofs_xattr_size(entries + at);
        if (entries[at] == one[0] && entries[at + 1] == one[1] && memcmp(entries + at + 4, one + 4, one[0]) == 0) {
            memmove(entries + at, entries + at + gone, size - at - gone);
            return size - gone;
        }
    }
    return size;
}

/* Add the member's attributes to those that the inode has: a directory that comes twice keeps the first ones too. */
static int set_xattrs(PycErofs *e, uint32_t inode, PycError *err) {
    const PycTarMember *m = e->member;
    if (!m->n_xattrs)
        return 0;
    const uint32_t *before = &e->tree.xattrs[e->tree.inodes[inode].xattrs];
    size_t size = *before;
    int changed = 0;
    memcpy(e->xattrs, before + 1, size);
    for (size_t i = 0; i < m->n_xattrs; i++) {
        const PycTarXattr *x = &m->xattrs[i];
        uint8_t index = 0, one[4 + NAME_MAX];
        const char *rest = NULL;
        if (!can_have(x, m->kind, &index, &rest)) {
            e->stats.xattrs_dropped++;
            continue;
        }
        size_t length = strlen(rest), need = (4 + length + x->size + 3) / 4 * 4;
        if (strlen(x->name) > XATTR_NAME_MAX || x->size > MAX_XATTR_VALUE)
            return pyc_fail(err, E2BIG, "set an extended attribute", e->path);
        if (!is_valid_value(x) || (!length && strchr(x->name, 0)[-1] == '.'))
            return pyc_fail(err, EINVAL, "set an extended attribute", e->path);
        pyc_erofs_xattr_head(one, (uint8_t)length, index, (uint16_t)x->size);
        memcpy(one + 4, rest, length);
        size = drop_entry(e->xattrs, size, one);
        if (size + need > MAX_XATTRS_SIZE)
            return pyc_fail(err, E2BIG, "set so many extended attributes", e->path);
        memcpy(e->xattrs + size, one, 4 + length);
        memcpy(e->xattrs + size + 4 + length, x->value, x->size);
        memset(e->xattrs + size + 4 + length + x->size, 0, need - 4 - length - x->size);
        size += need;
        changed = 1;
    }
    return !changed ? 0 : pyc_tree_add_xattrs(&e->tree, e->xattrs, size, &e->tree.inodes[inode].xattrs, err);
}

/* ---- making inodes ---- */

static int set_status(PycErofs *e, uint32_t inode, PycError *err) {
    const PycTarMember *m = e->member;
    PycInode *i = &e->tree.inodes[inode];
    i->mode = (uint16_t)((i->mode & S_IFMT) | m->mode);
    i->mtime = m->mtime;
    i->nsec = m->mtime_nsec;
    if (!(e->options.flags & PYC_LAYER_NO_OWNERS)) {
        i->uid = (uint32_t)m->uid;
        i->gid = (uint32_t)m->gid;
    }
    i->described = 1;
    return set_xattrs(e, inode, err);
}

/* The content is in the tar, except where its pieces do not fall on blocks. */
static int place_content(PycErofs *e, uint32_t inode, PycError *err) {
    const PycTarMember *m = e->member;
    PycInode *i = &e->tree.inodes[inode];
    i->size = m->size;
    i->device = (uint16_t)e->layer;
    if (m->size == 0)
        return 0;
    if ((m->at + m->stored) >> PYC_EROFS_BLOCK_BITS >= UINT32_MAX)
        return pyc_fail(err, EFBIG, "reach content beyond 2 TiB of a layer", e->path);
    i->chunk_bits = pyc_erofs_choose_chunks(m);
    if (!i->chunk_bits) {
        i->value = (uint32_t)(m->at >> PYC_EROFS_BLOCK_BITS);
        return 0;
    }
    uint64_t chunks = ((m->size - 1) >> i->chunk_bits) + 1;
    if ((e->tree.n_maps + chunks) * sizeof *e->tree.maps > free_maps + e->before + m->at)
        return pyc_fail(err, EFBIG, "keep the maps of sparse files within the limit", e->path);
    int copied = 0;
    int r = pyc_erofs_map_chunks(&e->image, &e->tree, inode, m, &copied, err);
    e->copied = copied ? inode : 0;
    return r;
}

static const uint16_t kinds[] = {
    [PYC_TAR_FILE] = S_IFREG,     [PYC_TAR_SYMLINK] = S_IFLNK,   [PYC_TAR_CHAR] = S_IFCHR,
    [PYC_TAR_BLOCKDEV] = S_IFBLK, [PYC_TAR_DIRECTORY] = S_IFDIR, [PYC_TAR_FIFO] = S_IFIFO,
};

/* As new_encode_dev() of the kernel has it. */
static uint32_t device_number(const PycTarMember *m) {
    uint32_t major = (uint32_t)m->major, minor = (uint32_t)m->minor;
    return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

static int fill_inode(PycErofs *e, uint32_t inode, PycError *err) {
    const PycTarMember *m = e->member;
    size_t length = strlen(m->link);
    uint32_t text = 0;
    int r = set_status(e, inode, err);
    if (r < 0)
        return r;
    switch (m->kind) {
    case PYC_TAR_FILE:
        return place_content(e, inode, err);
    case PYC_TAR_SYMLINK:
        if (!length || length > MAX_TARGET)
            return pyc_fail(err, length ? ENAMETOOLONG : ENOENT, "make the symlink", e->path);
        r = pyc_tree_add_text(&e->tree, m->link, length + 1, &text, err);
        e->tree.inodes[inode].value = text;
        e->tree.inodes[inode].size = length;
        e->tree.inodes[inode].mode = S_IFLNK | 0777;
        return r;
    case PYC_TAR_CHAR:
    case PYC_TAR_BLOCKDEV:
        e->tree.inodes[inode].value = device_number(m);
        return 0;
    default:
        return 0;
    }
}

/* Something may have the name already: of two members, the last counts. Paths through a directory or a link that goes
 * lead elsewhere from now on. */
static void put(PycErofs *e, uint32_t name, uint32_t inode) {
    mode_t before = e->tree.inodes[e->tree.names[name].inode].mode;
    if (S_ISDIR(before) || S_ISLNK(before))
        pyc_tree_forget(&e->tree);
    e->tree.names[name].inode = inode;
}

static int make_inode(PycErofs *e, PycError *err) {
    const PycTarMember *m = e->member;
    uint32_t name = 0, inode = 0;
    int r = pyc_tree_name(&e->tree, e->parent, e->base_name, strlen(e->base_name), &name, err);
    if (r < 0)
        return r;
    uint32_t before = e->tree.names[name].inode;
    if (m->kind == PYC_TAR_DIRECTORY && S_ISDIR(e->tree.inodes[before].mode)) {
        e->tree.made -= !e->tree.inodes[before].described;
        return fill_inode(e, before, err);
    }
    r = m->kind == PYC_TAR_DIRECTORY ? pyc_tree_add_directory(&e->tree, e->parent, &inode, e->path, err)
                                     : pyc_tree_add_inode(&e->tree, kinds[m->kind], &inode, err);
    if (r < 0)
        return r;
    if (m->kind == PYC_TAR_DIRECTORY) {
        /* Deleted, then made anew in the same layer: a directory that shows nothing of the one below. */
        e->tree.inodes[inode].opaque = before && pyc_tree_is_whiteout(&e->tree, before);
    }
    put(e, name, inode);
    return fill_inode(e, inode, err);
}

static int make_hardlink(PycErofs *e, PycError *err) {
    char target[PATH_MAX];
    size_t size = 0;
    uint32_t from = 0, name = 0;
    int r = pyc_inside_clean(e->member->link, target, &size, err);
    if (r < 0)
        return r;
    char *slash = memrchr(target, '/', size);
    const char *last = slash ? slash + 1 : target;
    r = pyc_tree_parent(&e->tree, target, slash ? (size_t)(slash - target) : 0, 0, &from, err);
    if (r == 0)
        r = pyc_tree_name(&e->tree, e->parent, e->base_name, strlen(e->base_name), &name, err);
    if (r < 0)
        return r;
    uint32_t source = size ? pyc_tree_find(&e->tree, from, last, strlen(last)) : 0;
    uint32_t inode = size ? e->tree.names[source].inode : e->tree.root;
    if (!inode)
        return pyc_fail(err, ENOENT, "find the target of the hard link", e->path);
    if (S_ISDIR(e->tree.inodes[inode].mode) || pyc_tree_is_whiteout(&e->tree, inode))
        return pyc_fail(err, EPERM, "hard-link to a directory or whiteout", e->path);
    if (e->tree.names[name].inode == inode)
        return 0;
    /* What it replaces may be a directory with the target in it. */
    int replaced = S_ISDIR(e->tree.inodes[e->tree.names[name].inode].mode);
    for (uint32_t above = from; replaced && above != e->tree.root; above = e->tree.inodes[above].parent)
        if (above == e->tree.names[name].inode)
            return pyc_fail(err, ENOENT, "make the hard link", e->path);
    put(e, name, inode);
    return 0;
}

/* ---- whiteouts ---- */

static int hide_name(PycErofs *e, const char *hidden, PycError *err) {
    uint32_t name = 0, inode = 0;
    e->stats.whiteouts++;
    int r = pyc_tree_name(&e->tree, e->parent, hidden, strlen(hidden), &name, err);
    if (r < 0)
        return r;
    uint32_t before = e->tree.names[name].inode;
    /* A whiteout hides what lower layers have, not what this one brings: a file hides that anyway. */
    if (before) {
        e->tree.inodes[before].opaque = S_ISDIR(e->tree.inodes[before].mode);
        return 0;
    }
    r = pyc_tree_add_inode(&e->tree, S_IFCHR, &inode, err);
    if (r == 0)
        e->tree.names[name].inode = inode;
    return r;
}

static int hide_below(PycErofs *e) {
    e->stats.whiteouts++;
    e->tree.inodes[e->parent].opaque = 1;
    if (e->parent == e->tree.root) /* also through a link */
        e->stats.root_opaque = 1;
    return 0;
}

/* ---- members ---- */

static int on_member(void *self, const PycTarMember *m, PycError *err) {
    PycErofs *e = self;
    size_t size = 0;
    int skip = 0;
    e->member = m;
    e->copied = 0;
    int r = pyc_inside_clean(m->path, e->path, &size, err);
    if (r == 0)
        r = pyc_rules_check(&e->options, m, e->path, e->stats.entries + e->tree.made, e->stats.bytes, &skip, err);
    if (r < 0 || skip)
        return r;
    e->stats.entries++;
    if (size == 0 && m->kind != PYC_TAR_DIRECTORY)
        return pyc_fail(err, EISDIR, "replace the root by something else", m->path);
    if (size == 0)
        return set_status(e, e->tree.root, err);
    char *slash = memrchr(e->path, '/', size);
    e->base_name = slash ? slash + 1 : e->path;
    r = pyc_tree_parent(&e->tree, e->path, slash ? (size_t)(slash - e->path) : 0, 1, &e->parent, err);
    PycMark mark = PYC_MARK_NONE;
    const char *hidden = NULL;
    if (r == 0)
        r = pyc_rules_mark(&e->options, m, e->base_name, e->path, &mark, &hidden, err);
    if (r < 0)
        return r;
    if (mark != PYC_MARK_NONE)
        return mark == PYC_MARK_BELOW ? hide_below(e) : hide_name(e, hidden, err);
    if (m->kind == PYC_TAR_FILE)
        e->stats.bytes += m->stored;
    return m->kind == PYC_TAR_HARDLINK ? make_hardlink(e, err) : make_inode(e, err);
}

static int on_content(void *self, uint64_t offset, const uint8_t *data, size_t size, PycError *err) {
    PycErofs *e = self;
    return e->copied ? pyc_erofs_copy_content(&e->image, &e->tree, e->copied, offset, data, size, e->path, err) : 0;
}

static int on_end(void *self, PycError *err) {
    (void)err;
    ((PycErofs *)self)->copied = 0;
    return 0;
}
