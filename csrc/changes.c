/* Turns what a walk finds into a list or into the members of a tar; see changes.h.
 * pread(2), readlinkat(2), lseek(2) with SEEK_HOLE.
 * Called through ffi; walks with walk.c, writes headers with tar_write.c.
 *
 * It is pulled: headers wait in a buffer of their own, content goes from the file right into the caller's.
 */
#include "changes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "tar_write.h"
#include "util.h"
#include "walk.h"

enum {
    BLOCK = 512,
    MIN_HOLES = 64 * 1024,      /* below that a map is not worth it */
    MAX_EXTENTS = 1 << 20,      /* as the reader of layers takes them */
    MAX_LINKS_BYTES = 256 << 20 /* of names that may get a hard link later */
};

/* The first name of a file that has more than one. */
typedef struct Link {
    uint64_t dev, inode;
    char *path; /* NULL: the place is free */
} Link;

typedef struct Links {
    Link *slots;
    size_t used, room;
    size_t bytes;
} Links;

struct PycChanges {
    PycChangesOptions options;
    PycChangesStats stats;
    PycWalk *walk;
    int root, base, merged;
    PycBytes pending;
    size_t taken; /* of pending */
    int failed, ended;
    Links links;
    PycXattrs xattrs;
    PycExtent *extents;
    size_t extents_room;
    char path[PATH_MAX + 16], target[PATH_MAX];
    /* the file whose content is being written: the walk's descriptor, good until the next item */
    int file;
    PycExtent whole;
    const PycExtent *extent;
    size_t n_extents;
    uint64_t padding;
};

/* ---- hard links ---- */

static Link *find_link(const Links *links, uint64_t dev, uint64_t inode) {
    uint64_t hash = (inode ^ (dev << 32)) * UINT64_C(0x9E3779B97F4A7C15);
    for (size_t i = (size_t)(hash >> 20) & (links->room - 1);; i = (i + 1) & (links->room - 1)) {
        Link *link = &links->slots[i];
        if (!link->path || (link->dev == dev && link->inode == inode))
            return link;
    }
}

static int grow_links(Links *links) {
    Links grown = {.room = links->room ? links->room * 2 : 256, .used = links->used, .bytes = links->bytes};
    grown.slots = calloc(grown.room, sizeof *grown.slots);
    if (!grown.slots)
        return -ENOMEM;
    for (size_t i = 0; i < links->room; i++)
        if (links->slots[i].path)
            *find_link(&grown, links->slots[i].dev, links->slots[i].inode) = links->slots[i];
    free(links->slots);
    *links = grown;
    return 0;
}

/* Set *ret_first to the name under which the file came already, or to NULL when this is the first. */
static int first_name(Links *links, const struct stat *st, const char *path, const char **ret_first) {
    *ret_first = NULL;
    if ((links->used + 1) * 2 > links->room && grow_links(links) < 0)
        return -ENOMEM;
    Link *link = find_link(links, st->st_dev, st->st_ino);
    if (link->path) {
        *ret_first = link->path;
        return 0;
    }
    size_t size = strlen(path) + 1;
    if (links->bytes + size > MAX_LINKS_BYTES)
        return -EFBIG;
    *link = (Link){.dev = st->st_dev, .inode = st->st_ino, .path = strdup(path)};
    if (!link->path)
        return -ENOMEM;
    links->used++;
    links->bytes += size;
    return 0;
}

static void free_links(Links *links) {
    for (size_t i = 0; i < links->room; i++)
        free(links->slots[i].path);
    free(links->slots);
}

/* ---- holes ---- */

static int add_extent(PycChanges *c, uint64_t offset, uint64_t size) {
    if (c->n_extents == c->extents_room) {
        size_t room = c->extents_room * 2 + 64;
        PycExtent *grown = realloc(c->extents, room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        c->extents = grown;
        c->extents_room = room;
    }
    if (c->n_extents >= MAX_EXTENTS)
        return -EFBIG;
    c->extents[c->n_extents++] = (PycExtent){offset, size};
    return 0;
}

/* Find the data of a file with holes, into c->extents; ret_sparse stays 0 for one that has none worth a map. */
static int find_extents(PycChanges *c, int fd, const struct stat *st, int *ret_sparse) {
    c->n_extents = 0;
    if (st->st_size - st->st_blocks * BLOCK < MIN_HOLES)
        return 0;
    for (off_t offset = 0; offset < st->st_size;) {
        off_t start = lseek(fd, offset, SEEK_DATA);
        if (start < 0 && errno == ENXIO)
            break;
        off_t end = start < 0 ? -1 : lseek(fd, start, SEEK_HOLE);
        if (end < 0)
            return -errno;
        end = end < st->st_size ? end : st->st_size;
        if (start < end) {
            int r = add_extent(c, (uint64_t)start, (uint64_t)(end - start));
            if (r < 0)
                return r;
        }
        offset = end > offset ? end : st->st_size;
    }
    const PycExtent *last = c->n_extents ? &c->extents[c->n_extents - 1] : NULL;
    *ret_sparse = 1;
    /* The end of the file as an empty extent, as GNU tar writes it. */
    return !last || last->offset + last->size < (uint64_t)st->st_size ? add_extent(c, (uint64_t)st->st_size, 0) : 0;
}

/* ---- members ---- */

static PycTarHead head_of(const PycChanges *c, const PycWalkItem *item) {
    const struct stat *st = &item->st;
    int device = S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode);
    return (PycTarHead){
        .path = c->path,
        .link = "",
        .mode = st->st_mode & 07777,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .mtime = st->st_mtim.tv_sec,
        .mtime_nsec = c->options.flags & PYC_CHANGES_SECONDS ? 0 : (uint32_t)st->st_mtim.tv_nsec,
        .major = device ? major(st->st_rdev) : 0,
        .minor = device ? minor(st->st_rdev) : 0,
        .xattrs = &c->xattrs,
    };
}

static int put_head(PycChanges *c, const PycTarHead *head, uint64_t *ret_stored, PycError *err) {
    int r = pyc_tar_put_head(&c->pending, head, ret_stored);
    c->stats.entries++;
    return r < 0 ? pyc_fail(err, r, "describe in an archive", c->path) : 0;
}

/* A deleted name, or all names in a directory: an empty file that tells. */
static int put_whiteout(PycChanges *c, const PycWalkItem *item, PycError *err) {
    size_t before = (size_t)(item->name - item->path);
    if (item->kind == 'O')
        (void)snprintf(c->path, sizeof c->path, "%s%s.wh..wh..opq", item->path, *item->path ? "/" : "");
    else
        (void)snprintf(c->path, sizeof c->path, "%.*s.wh.%s", (int)before, item->path, item->name);
    PycTarHead head = {.type = '0', .path = c->path, .link = ""};
    uint64_t stored;
    return put_head(c, &head, &stored, err);
}

static int put_file(PycChanges *c, const PycWalkItem *item, PycTarHead *head, PycError *err) {
    int sparse = 0, r = find_extents(c, item->fd, &item->st, &sparse);
    if (r < 0)
        return pyc_fail(err, r, "find the holes of", c->path);
    head->type = '0';
    head->size = (uint64_t)item->st.st_size;
    head->extents = sparse ? c->extents : NULL;
    head->n_extents = sparse ? c->n_extents : 0;
    uint64_t stored = 0;
    r = put_head(c, head, &stored, err);
    if (r < 0)
        return r;
    c->whole = (PycExtent){0, head->size};
    c->extent = sparse ? c->extents : &c->whole;
    c->n_extents = sparse ? c->n_extents : 1;
    c->file = item->fd;
    c->padding = (BLOCK - stored % BLOCK) % BLOCK;
    c->stats.bytes += stored;
    return 0;
}

static int put_other(PycChanges *c, const PycWalkItem *item, PycTarHead *head, PycError *err) {
    uint64_t stored;
    mode_t mode = item->st.st_mode;
    head->type = S_ISDIR(mode) ? '5' : S_ISCHR(mode) ? '3' : S_ISBLK(mode) ? '4' : S_ISFIFO(mode) ? '6' : '2';
    if (S_ISLNK(mode)) {
        ssize_t n = readlinkat(item->parent, item->name, c->target, sizeof c->target - 1);
        if (n < 0)
            return pyc_fail(err, errno, "read the link", c->path);
        c->target[n] = 0;
        head->link = c->target;
    }
    return put_head(c, head, &stored, err);
}

static int put_member(PycChanges *c, const PycWalkItem *item, PycError *err) {
    int is_dir = S_ISDIR(item->st.st_mode);
    if (c->options.flags & PYC_CHANGES_RESERVED && strncmp(item->name, ".wh.", 4) == 0)
        return pyc_fail(err, EINVAL, "put into a layer", item->path);
    (void)snprintf(c->path, sizeof c->path, "%s%s%s", *item->path ? "" : ".", item->path, is_dir ? "/" : "");
    PycTarHead head = head_of(c, item);
    if (!is_dir && item->st.st_nlink > 1) {
        int r = first_name(&c->links, &item->st, c->path, &head.link);
        if (r < 0)
            return pyc_fail(err, r, "remember the names of", c->path);
        if (head.link) {
            uint64_t stored;
            head.type = '1';
            head.xattrs = NULL;
            return put_head(c, &head, &stored, err);
        }
        head.link = "";
    }
    int r = pyc_xattrs_read(&c->xattrs, item->fd, item->parent, item->name, item->path, err);
    if (r < 0)
        return r;
    return S_ISREG(item->st.st_mode) ? put_file(c, item, &head, err) : put_other(c, item, &head, err);
}

/* ---- lines ---- */

static int put_line(PycChanges *c, const PycWalkItem *item, PycError *err) {
    if (!*item->path && !item->own)
        return 0; /* the root's time alone is nobody's change */
    int r = pyc_bytes_put(&c->pending, &item->kind, 1);
    r = r < 0 ? r : pyc_bytes_put(&c->pending, item->path, strlen(item->path) + 1);
    c->stats.entries++;
    return r < 0 ? pyc_fail(err, r, "list", item->path) : 0;
}

/* ---- the way through ---- */

static int duplicate(int fd, int *ret_fd) {
    *ret_fd = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return fd >= 0 && *ret_fd < 0 ? -errno : 0;
}

int pyc_changes_open(int root, const PycChangesOptions *options, PycChanges **ret_changes, PycError *err) {
    PycChanges *c = calloc(1, sizeof *c);
    if (!c)
        return pyc_fail(err, ENOMEM, "begin the list of changes", NULL);
    c->options = *options;
    c->root = c->base = c->merged = c->file = -1;
    int r = duplicate(root, &c->root);
    r = r < 0 ? r : duplicate(options->base, &c->base);
    r = r < 0 ? r : duplicate(options->merged, &c->merged);
    if (r < 0)
        r = pyc_fail(err, r, "keep the directories open", NULL);
    PycWalkSource source = {
        .root = c->root,
        .base = c->base,
        .merged = c->merged,
        .overlay = (options->flags & PYC_CHANGES_UPPER) != 0,
        .contents = !(options->flags & PYC_CHANGES_LIST),
        .skip_dev = options->skip_dev,
        .skip_inode = options->skip_inode,
    };
    if (r == 0)
        r = pyc_walk_open(&source, &c->walk, err);
    if (r < 0) {
        pyc_changes_free(c);
        return r;
    }
    *ret_changes = c;
    return 0;
}

/* Make the next item wait in `pending`; at the end, the two blocks that end an archive. */
static int put_next(PycChanges *c, PycError *err) {
    PycWalkItem item;
    c->pending.size = c->taken = 0;
    c->file = -1;
    int r = pyc_walk_next(c->walk, &item, err);
    if (r < 0)
        return r;
    int list = (c->options.flags & PYC_CHANGES_LIST) != 0;
    if (r == 0) {
        c->ended = 1;
        return list ? 0 : pyc_bytes_zeros(&c->pending, (size_t)2 * BLOCK);
    }
    if (list)
        return put_line(c, &item, err);
    return item.kind == 'D' || item.kind == 'O' ? put_whiteout(c, &item, err) : put_member(c, &item, err);
}

/* Read content into the caller's buffer; returns how much. */
static ssize_t read_content(PycChanges *c, uint8_t *buffer, size_t size, PycError *err) {
    PycExtent rest = *c->extent;
    if (rest.size == 0) {
        c->n_extents--;
        if (c->n_extents == 0) {
            c->file = -1;
            c->pending.size = c->taken = 0;
            return pyc_bytes_zeros(&c->pending, (size_t)c->padding);
        }
        c->extent++;
        return 0;
    }
    ssize_t n = pread(c->file, buffer, rest.size < size ? (size_t)rest.size : size, (off_t)rest.offset);
    if (n < 0 && errno == EINTR)
        return 0;
    if (n < 0)
        return pyc_fail(err, errno, "read", c->path);
    if (n == 0)
        return pyc_fail(err, EBUSY, "read a file that becomes shorter meanwhile:", c->path);
    rest = (PycExtent){rest.offset + (uint64_t)n, rest.size - (uint64_t)n};
    if (c->extent == &c->whole)
        c->whole = rest;
    else
        c->extents[c->extent - c->extents] = rest;
    return n;
}

int pyc_changes_read(PycChanges *c, uint8_t *buffer, size_t size, size_t *ret_size, PycError *err) {
    size_t filled = 0;
    if (c->failed)
        return pyc_fail(err, EINVAL, "go on after a failure", NULL);
    while (filled < size) {
        size_t waiting = c->pending.size - c->taken;
        if (waiting) {
            size_t n = waiting < size - filled ? waiting : size - filled;
            memcpy(buffer + filled, c->pending.data + c->taken, n);
            c->taken += n;
            filled += n;
            continue;
        }
        if (c->file < 0 && c->ended)
            break;
        ssize_t n = c->file >= 0 ? read_content(c, buffer + filled, size - filled, err) : put_next(c, err);
        if (n < 0) {
            c->failed = 1;
            return pyc_fail(err, (int)n, "make the archive", NULL);
        }
        filled += (size_t)n;
    }
    *ret_size = filled;
    return 0;
}

void pyc_changes_stats(const PycChanges *c, PycChangesStats *ret_stats) { *ret_stats = c->stats; }

void pyc_changes_free(PycChanges *c) {
    if (!c)
        return;
    pyc_walk_free(c->walk);
    pyc_close_fd(&c->root);
    pyc_close_fd(&c->base);
    pyc_close_fd(&c->merged);
    free_links(&c->links);
    pyc_xattrs_free(&c->xattrs);
    free(c->pending.data);
    free(c->extents);
    free(c);
}
