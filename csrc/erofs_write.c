/* Writes a tree as an erofs image: super block, devices, copied content, inodes, what does not fit beside them.
 * pwrite(2).
 * Called by erofs.c.
 *
 * Inodes lie directory by directory, so that what is listed together is read together. A first pass gives every inode
 * its place, the second writes them and the third the blocks of directories and long links, all in one direction.
 */
#include "erofs_image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "erofs_disk.h"
#include "util.h"

enum { WINDOW = 1 << 20, MAX_ENTRIES = PYC_EROFS_BLOCK / 13 };

typedef struct Writer {
    PycErofsImage *image;
    PycTree *tree;
    uint32_t *order; /* inodes by their place */
    size_t n_order, order_room;
    uint32_t *pending; /* directories whose content has no place yet */
    size_t n_pending, pending_room;
    uint32_t *sorting;
    size_t sorting_room;
    uint64_t meta;    /* where the inodes begin, in bytes */
    uint64_t cursor;  /* bytes of inodes so far */
    uint64_t blocks;  /* of data that is not beside its inode, so far */
    uint8_t *window;  /* bytes that wait to be written */
    uint64_t written; /* where the window goes */
    size_t used;
    uint8_t opaque[64]; /* the attribute as it is on disk */
    size_t opaque_size;
} Writer;

uint64_t pyc_erofs_first_free(uint32_t devices) {
    uint64_t end = PYC_EROFS_DEVICES_AT + (uint64_t)devices * sizeof(PycErofsSlot);
    return (end + 4095) / 4096 * 4096;
}

static int reserve(uint32_t **items, size_t *room, size_t need, PycError *err) {
    if (need <= *room)
        return 0;
    size_t more = *room * 2 > need ? *room * 2 : need + 1024;
    uint32_t *grown = realloc(*items, more * sizeof **items);
    if (!grown)
        return pyc_fail(err, ENOMEM, "allocate the image", NULL);
    *items = grown;
    *room = more;
    return 0;
}

/* ---- directories: names in order, "." and ".." among them, cut into blocks ---- */

static int compare_texts(const char *a, size_t a_size, const char *b, size_t b_size) {
    int r = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return r ? r : (a_size > b_size) - (a_size < b_size);
}

static int compare_names(const void *a, const void *b, void *context) {
    const PycTree *tree = context;
    const PycName *one = &tree->names[*(const uint32_t *)a], *two = &tree->names[*(const uint32_t *)b];
    return compare_texts(tree->texts + one->text, one->size, tree->texts + two->text, two->size);
}

/* Link the names of a directory anew, in order, without those that are gone. */
static int sort_names(Writer *w, uint32_t directory, PycError *err) {
    PycTree *tree = w->tree;
    size_t n = 0;
    for (uint32_t i = tree->inodes[directory].value; i; i = tree->names[i].next) {
        if (!tree->names[i].inode)
            continue;
        int r = reserve(&w->sorting, &w->sorting_room, n + 1, err);
        if (r < 0)
            return r;
        w->sorting[n++] = i;
    }
    if (n > 1)
        qsort_r(w->sorting, n, sizeof *w->sorting, compare_names, tree);
    uint32_t *link = &tree->inodes[directory].value;
    for (size_t i = 0; i < n; i++) {
        *link = w->sorting[i];
        link = &tree->names[w->sorting[i]].next;
    }
    *link = 0;
    return 0;
}

static const char dots_text[] = "..";

typedef struct Listing {
    const PycTree *tree;
    uint32_t directory, next;
    size_t dots; /* how many of "." and ".." came already */
} Listing;

static Listing list_directory(const PycTree *tree, uint32_t directory) {
    return (Listing){.tree = tree, .directory = directory, .next = tree->inodes[directory].value};
}

/* The next name, its text not terminated, and its size; 0 at the end. */
static size_t peek(const Listing *l, const char **ret_text, uint32_t *ret_inode) {
    const PycName *name = &l->tree->names[l->next];
    *ret_text = l->next ? l->tree->texts + name->text : NULL;
    *ret_inode = name->inode;
    size_t size = name->size, dots = l->dots + 1;
    if (l->dots < 2 && (!l->next || compare_texts(dots_text, dots, *ret_text, size) < 0)) {
        *ret_text = dots_text;
        *ret_inode = l->dots == 0 ? l->directory : l->tree->inodes[l->directory].parent;
        return dots;
    }
    return size;
}

static void advance(Listing *l, const char *text) {
    if (text == dots_text)
        l->dots++;
    else
        l->next = l->tree->names[l->next].next;
}

static uint8_t type_of(uint16_t mode) {
    switch (mode & S_IFMT) {
    case S_IFREG:
        return 1;
    case S_IFDIR:
        return 2;
    case S_IFCHR:
        return 3;
    case S_IFBLK:
        return 4;
    case S_IFIFO:
        return 5;
    default:
        return 7;
    }
}

/* Fill a block with the next names; returns the bytes used, 0 at the end. `block` NULL: only count. */
static size_t next_block(Listing *l, uint8_t *block) {
    const char *texts[MAX_ENTRIES], *text;
    size_t sizes[MAX_ENTRIES], n = 0, used = 0, size;
    uint32_t inodes[MAX_ENTRIES], inode;
    while ((size = peek(l, &text, &inode)) && used + sizeof(PycErofsEntry) + size <= PYC_EROFS_BLOCK) {
        texts[n] = text;
        sizes[n] = size;
        inodes[n++] = inode;
        used += sizeof(PycErofsEntry) + size;
        advance(l, text);
    }
    size_t at = n * sizeof(PycErofsEntry);
    for (size_t i = 0; block && i < n; at += sizes[i++]) {
        const PycInode *of = &l->tree->inodes[inodes[i]];
        PycErofsEntry entry = {.nid = of->nid, .name = (uint16_t)at, .type = type_of(of->mode)};
        memcpy(block + i * sizeof entry, &entry, sizeof entry);
        memcpy(block + at, texts[i], sizes[i]);
    }
    return used;
}

/* ---- first pass: places ---- */

static size_t xattrs_size(const Writer *w, const PycInode *inode) {
    size_t size = w->tree->xattrs[inode->xattrs] + (inode->opaque ? w->opaque_size : 0);
    return size ? PYC_EROFS_XATTRS_HEAD + size : 0;
}

static uint64_t align(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

/* The end of some data beside its inode: wholly in the block that the inode ends in, as all kernels like it. */
static int try_inline(uint64_t at, size_t head, size_t tail) {
    uint64_t end_of_inode = at + sizeof(PycErofsInode), edge = align(end_of_inode, PYC_EROFS_BLOCK);
    return at + head + tail <= edge;
}

/* Give an inode with `size` bytes of data, directory or link, its place. */
static void place_data(Writer *w, PycInode *inode, size_t head) {
    size_t tail = inode->size % PYC_EROFS_BLOCK;
    uint64_t blocks = inode->size / PYC_EROFS_BLOCK;
    uint64_t next = align(w->cursor, PYC_EROFS_BLOCK);
    inode->inlined = tail != 0;
    if (tail && !try_inline(w->cursor, head, tail)) {
        /* Go on in the next block, unless that costs more than a block of its own for the data. */
        if (try_inline(next, head, tail) && next - w->cursor < PYC_EROFS_BLOCK - tail)
            w->cursor = next;
        else
            inode->inlined = 0;
    }
    inode->data = blocks || (tail && !inode->inlined) ? (uint32_t)w->blocks : pyc_erofs_nowhere;
    w->blocks += blocks + (!inode->inlined && tail);
    inode->nid = (uint32_t)(w->cursor / PYC_EROFS_SLOT);
    w->cursor += head + (inode->inlined ? tail : 0);
}

static uint64_t chunks_of(const PycInode *inode) {
    return inode->size == 0 ? 0 : inode->chunk_bits ? ((inode->size - 1) >> inode->chunk_bits) + 1 : 1;
}

static int place(Writer *w, uint32_t i, PycError *err) {
    PycInode *inode = &w->tree->inodes[i];
    size_t head = sizeof(PycErofsInode) + xattrs_size(w, inode);
    int r = reserve(&w->order, &w->order_room, w->n_order + 1, err);
    if (r < 0)
        return r;
    w->order[w->n_order++] = i;
    if (S_ISDIR(inode->mode)) {
        inode->links = 2;
        r = sort_names(w, i, err);
        if (r < 0)
            return r;
        Listing list = list_directory(w->tree, i);
        uint64_t full = 0;
        size_t used = 0;
        for (size_t n; (n = next_block(&list, NULL)); used = n)
            full += used ? PYC_EROFS_BLOCK : 0;
        inode->size = full + used;
    }
    if (S_ISDIR(inode->mode) || S_ISLNK(inode->mode)) {
        place_data(w, inode, head);
    } else {
        inode->nid = (uint32_t)(w->cursor / PYC_EROFS_SLOT);
        w->cursor += S_ISREG(inode->mode) ? align(head, sizeof(PycErofsChunk)) + chunks_of(inode) * 8 : head;
    }
    w->cursor = align(w->cursor, PYC_EROFS_SLOT);
    if (w->cursor / PYC_EROFS_SLOT >= UINT32_MAX || w->blocks >= UINT32_MAX)
        return pyc_fail(err, EFBIG, "keep the index within 128 GiB", NULL);
    return 0;
}

/* Places for all that is in a directory, next to each other; its directories wait. */
static int place_names(Writer *w, uint32_t directory, PycError *err) {
    PycTree *tree = w->tree;
    size_t first = w->n_pending;
    for (uint32_t i = tree->inodes[directory].value; i; i = tree->names[i].next) {
        uint32_t inode = tree->names[i].inode;
        int r = tree->inodes[inode].nid ? 0 : place(w, inode, err);
        if (r < 0)
            return r;
        if (!S_ISDIR(tree->inodes[inode].mode)) {
            tree->inodes[inode].links++;
            continue;
        }
        tree->inodes[directory].links++;
        r = reserve(&w->pending, &w->pending_room, w->n_pending + 1, err);
        if (r < 0)
            return r;
        w->pending[w->n_pending++] = inode;
    }
    for (size_t a = first, b = w->n_pending; a + 1 < b; a++, b--) { /* the first is the next one */
        uint32_t swap = w->pending[a];
        w->pending[a] = w->pending[b - 1];
        w->pending[b - 1] = swap;
    }
    return 0;
}

static int place_all(Writer *w, PycError *err) {
    w->cursor = PYC_EROFS_SLOT; /* nothing is inode 0 */
    int r = place(w, w->tree->root, err);
    if (r == 0)
        r = place_names(w, w->tree->root, err);
    while (r == 0 && w->n_pending)
        r = place_names(w, w->pending[--w->n_pending], err);
    return r;
}

/* ---- second and third pass: bytes ---- */

static int write_all(int fd, const uint8_t *data, size_t size, uint64_t at, PycError *err) {
    while (size) {
        ssize_t n = pwrite(fd, data, size, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return pyc_fail(err, errno, "write the index", NULL);
        data += n;
        size -= (size_t)n;
        at += (uint64_t)n;
    }
    return 0;
}

static int flush(Writer *w, PycError *err) {
    int r = write_all(w->image->fd, w->window, w->used, w->written, err);
    w->written += w->used;
    w->used = 0;
    return r;
}

/* `data` NULL: zeros. */
static int put(Writer *w, const void *data, size_t size, PycError *err) {
    const uint8_t *from = data;
    while (size) {
        size_t take = WINDOW - w->used < size ? WINDOW - w->used : size;
        if (from) {
            memcpy(w->window + w->used, from, take);
            from += take;
        } else {
            memset(w->window + w->used, 0, take);
        }
        w->used += take;
        size -= take;
        if (w->used == WINDOW) {
            int r = flush(w, err);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

/* Zeros up to this place of the image. */
static int pad(Writer *w, uint64_t to, PycError *err) { return put(w, NULL, (size_t)(to - w->written - w->used), err); }

static int put_xattrs(Writer *w, const PycInode *inode, PycError *err) {
    static const uint8_t head[PYC_EROFS_XATTRS_HEAD];
    const uint32_t *set = &w->tree->xattrs[inode->xattrs];
    if (!xattrs_size(w, inode))
        return 0;
    int r = put(w, head, sizeof head, err);
    if (r == 0)
        r = put(w, set + 1, *set, err);
    return r < 0 || !inode->opaque ? r : put(w, w->opaque, w->opaque_size, err);
}

static int put_chunks(Writer *w, const PycInode *inode, PycError *err) {
    int r = pad(w, align(w->written + w->used, sizeof(PycErofsChunk)), err);
    for (uint64_t i = 0; r == 0 && i < chunks_of(inode); i++) {
        uint64_t entry =
            inode->chunk_bits ? w->tree->maps[inode->value + i] : (uint64_t)inode->device << 32 | inode->value;
        PycErofsChunk chunk = {.device = (uint16_t)(entry >> 32), .block = (uint32_t)entry};
        if (entry == PYC_TREE_HOLE)
            chunk = (PycErofsChunk){.block = pyc_erofs_nowhere};
        r = put(w, &chunk, sizeof chunk, err);
    }
    return r;
}

/* The blocks of a directory from the `first` byte on, without zeros after the last. */
static int put_listing(Writer *w, uint32_t i, uint64_t first, uint64_t end, PycError *err) {
    Listing list = list_directory(w->tree, i);
    int r = 0;
    uint8_t block[PYC_EROFS_BLOCK];
    for (uint64_t at = 0; r == 0 && at < end; at += PYC_EROFS_BLOCK) {
        size_t used = next_block(&list, at < first ? NULL : block);
        if (at < first)
            continue;
        memset(block + used, 0, sizeof block - used);
        r = put(w, block, end - at < PYC_EROFS_BLOCK ? (size_t)(end - at) : PYC_EROFS_BLOCK, err);
    }
    return r;
}

static int put_data(Writer *w, uint32_t i, uint64_t first, uint64_t end, PycError *err) {
    const PycInode *inode = &w->tree->inodes[i];
    return S_ISDIR(inode->mode) ? put_listing(w, i, first, end, err)
                                : put(w, w->tree->texts + inode->value + first, (size_t)(end - first), err);
}

static uint32_t where_of(const PycInode *inode, uint32_t data_block, int *ret_layout) {
    *ret_layout = PYC_EROFS_PLAIN;
    switch (inode->mode & S_IFMT) {
    case S_IFREG:
        if (!inode->size)
            return pyc_erofs_nowhere;
        *ret_layout = PYC_EROFS_CHUNKS;
        if (inode->chunk_bits)
            return PYC_EROFS_CHUNKS_INDEXED | (uint32_t)(inode->chunk_bits - PYC_EROFS_BLOCK_BITS);
        for (uint32_t bits = 0;; bits++)
            if ((inode->size - 1) >> PYC_EROFS_BLOCK_BITS >> bits == 0)
                return PYC_EROFS_CHUNKS_INDEXED | bits;
    case S_IFDIR:
    case S_IFLNK:
        *ret_layout = inode->inlined ? PYC_EROFS_INLINE : PYC_EROFS_PLAIN;
        return inode->data == pyc_erofs_nowhere ? inode->data : inode->data + data_block;
    default:
        return inode->value;
    }
}

static int put_inode(Writer *w, uint32_t i, uint32_t data_block, PycError *err) {
    const PycInode *inode = &w->tree->inodes[i];
    size_t xattrs = xattrs_size(w, inode);
    int layout;
    uint32_t where = where_of(inode, data_block, &layout);
    PycErofsInode disk = {
        .format = (uint16_t)(1 | layout << 1),
        .xattrs = (uint16_t)(xattrs ? (xattrs - PYC_EROFS_XATTRS_HEAD) / 4 + 1 : 0),
        .mode = inode->mode,
        .size = inode->size,
        .where = where,
        .number = inode->nid,
        .uid = inode->uid,
        .gid = inode->gid,
        .mtime = inode->mtime,
        .nsec = inode->nsec,
        .links = inode->links,
    };
    int r = pad(w, w->meta + (uint64_t)inode->nid * PYC_EROFS_SLOT, err);
    if (r == 0)
        r = put(w, &disk, sizeof disk, err);
    if (r == 0)
        r = put_xattrs(w, inode, err);
    if (r < 0)
        return r;
    if (S_ISREG(inode->mode))
        return put_chunks(w, inode, err);
    if (!inode->inlined)
        return 0;
    return put_data(w, i, inode->size / PYC_EROFS_BLOCK * PYC_EROFS_BLOCK, inode->size, err);
}

static int put_everything(Writer *w, PycError *err) {
    uint64_t data = align(w->meta + w->cursor, PYC_EROFS_BLOCK);
    int r = 0;
    if ((data >> PYC_EROFS_BLOCK_BITS) + w->blocks >= UINT32_MAX)
        return pyc_fail(err, EFBIG, "keep the index within 2 TiB", NULL);
    for (size_t i = 0; r == 0 && i < w->n_order; i++)
        r = put_inode(w, w->order[i], (uint32_t)(data >> PYC_EROFS_BLOCK_BITS), err);
    for (size_t i = 0; r == 0 && i < w->n_order; i++) {
        const PycInode *inode = &w->tree->inodes[w->order[i]];
        if ((!S_ISDIR(inode->mode) && !S_ISLNK(inode->mode)) || inode->data == pyc_erofs_nowhere)
            continue;
        r = pad(w, data + (uint64_t)inode->data * PYC_EROFS_BLOCK, err);
        if (r == 0)
            r = put_data(w, w->order[i], 0,
                         inode->inlined ? inode->size / PYC_EROFS_BLOCK * PYC_EROFS_BLOCK : inode->size, err);
    }
    w->image->end = data + w->blocks * PYC_EROFS_BLOCK;
    if (r == 0)
        r = pad(w, w->image->end, err);
    return r < 0 ? r : flush(w, err);
}

/* ---- the first block ---- */

static int write_super(const Writer *w, const uint8_t uuid[16], PycError *err) {
    const PycErofsImage *image = w->image;
    size_t size = PYC_EROFS_DEVICES_AT + image->n_devices * sizeof(PycErofsSlot);
    PYC_AUTO_FREE uint8_t *head = calloc(1, size);
    if (!head)
        return pyc_fail(err, ENOMEM, "allocate the image", NULL);
    PycErofsSuper super = {
        .magic = pyc_erofs_magic,
        .compatible = PYC_EROFS_HAS_MTIME,
        .block_bits = PYC_EROFS_BLOCK_BITS,
        .root_nid = (uint16_t)w->tree->inodes[w->tree->root].nid,
        .inodes = w->n_order,
        .blocks = (uint32_t)(image->end >> PYC_EROFS_BLOCK_BITS),
        .meta_block = (uint32_t)(w->meta >> PYC_EROFS_BLOCK_BITS),
        .incompatible = PYC_EROFS_HAS_CHUNKS | PYC_EROFS_HAS_DEVICES,
        .devices = (uint16_t)image->n_devices,
        .device_slot = PYC_EROFS_DEVICES_AT / sizeof(PycErofsSlot),
    };
    memcpy(super.uuid, uuid, sizeof super.uuid);
    uint64_t mapped = super.blocks;
    for (uint32_t i = 0; i < image->n_devices; i++) {
        PycErofsSlot slot = {.blocks = (uint32_t)image->devices[i].blocks};
        memcpy(slot.tag, image->devices[i].tag, sizeof slot.tag);
        if (mapped + slot.blocks < UINT32_MAX)
            slot.mapped = (uint32_t)mapped;
        mapped += slot.blocks;
        memcpy(head + PYC_EROFS_DEVICES_AT + i * sizeof slot, &slot, sizeof slot);
    }
    memcpy(head + PYC_EROFS_SUPER_AT, &super, sizeof super);
    return write_all(image->fd, head, size, 0, err);
}

static void name_opaque(Writer *w) {
    const char *rest = NULL;
    uint8_t index = w->image->opaque ? pyc_erofs_xattr_index(w->image->opaque, &rest) : 0;
    if (!index)
        return;
    size_t length = strlen(rest);
    pyc_erofs_xattr_head(w->opaque, (uint8_t)length, index, 1);
    memcpy(w->opaque + 4, rest, length);
    w->opaque[4 + length] = 'y';
    w->opaque_size = pyc_erofs_xattr_size(w->opaque);
}

int pyc_erofs_write_image(PycErofsImage *image, PycTree *tree, const uint8_t uuid[16], PycError *err) {
    uint64_t meta = align(image->end, 4096);
    Writer w = {.image = image, .tree = tree, .meta = meta, .written = meta, .window = malloc(WINDOW)};
    int r = w.window ? 0 : pyc_fail(err, ENOMEM, "allocate the image", NULL);
    name_opaque(&w);
    if (r == 0)
        r = place_all(&w, err);
    if (r == 0)
        r = put_everything(&w, err);
    if (r == 0)
        r = write_super(&w, uuid, err);
    free(w.window);
    free(w.order);
    free(w.pending);
    free(w.sorting);
    return r;
}
