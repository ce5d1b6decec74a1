/* libFuzzer target of the erofs writer: any bytes, indexed alone or merged, give an image in which all is where it should
 * be, the same bytes however they are cut, or an error.
 * memfd_create(2).
 * Run by `make fuzz`, by `make check` and `make valgrind` with the seeds.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "../erofs_disk.h"
#include "erofs.h"
#include "util.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { BLOCK = 512, MAX_SEEN = 1 << 14 };

static void insist(int condition, const char *what) {
    if (condition)
        return;
    fprintf(stderr, "not so: %s (errno %d)\n", what, errno);
    abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    return 0;
}

/* ---- a reader of what was written, which believes nothing ---- */

typedef struct Image {
    const uint8_t *bytes; /* from the inodes on */
    uint64_t size, start; /* of these bytes; where they are in the file */
    uint32_t device_blocks[2];
    uint32_t devices;
    uint64_t seen[MAX_SEEN];
    size_t n_seen;
} Image;

static const void *at(const Image *image, uint64_t offset, uint64_t size) {
    insist(offset <= image->size && size <= image->size - offset, "inside the image");
    return image->bytes + offset;
}

/* Data of a directory or link: whole blocks first, the rest beside the inode. */
static const uint8_t *data_at(const Image *image, const PycErofsInode *inode, uint64_t after, uint64_t offset,
                              uint64_t *ret_size) {
    int inlined = inode->format >> 1 == PYC_EROFS_INLINE;
    uint64_t whole = inlined ? inode->size / BLOCK * BLOCK : inode->size;
    *ret_size = inode->size - offset < BLOCK ? inode->size - offset : BLOCK;
    if (offset < whole)
        return at(image, (uint64_t)inode->where * BLOCK - image->start + offset, *ret_size);
    insist(after / BLOCK == (after + *ret_size - 1) / BLOCK, "data beside an inode is in one block");
    return at(image, after, *ret_size);
}

static void check_inode(Image *image, uint64_t nid, uint64_t parent, int depth);

static void check_directory(Image *image, const PycErofsInode *inode, uint64_t after, uint64_t nid, uint64_t parent,
                            int depth) {
    char last[BLOCK] = "";
    int dots = 0;
    for (uint64_t offset = 0, size = 0; offset < inode->size; offset += size) {
        const uint8_t *block = data_at(image, inode, after, offset, &size);
        PycErofsEntry entry, next;
        memcpy(&entry, block, sizeof entry);
        size_t count = entry.name / sizeof entry;
        insist(count && entry.name % sizeof entry == 0 && entry.name < size, "a block has names");
        for (size_t i = 0; i < count; i++, entry = next) {
            size_t end = size;
            if (i + 1 < count) {
                memcpy(&next, block + (i + 1) * sizeof next, sizeof next);
                end = next.name;
            }
            insist(entry.name < end && end <= size, "a name is in its block");
            size_t length = strnlen((const char *)block + entry.name, end - entry.name);
            insist(length && length <= 255, "the length of a name");
            char name[BLOCK] = "";
            memcpy(name, block + entry.name, length);
            insist(strcmp(last, name) < 0, "names are in order");
            strcpy(last, name);
            if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
                dots++;
                insist(entry.nid == (name[1] ? parent : nid), "where the dots lead");
                continue;
            }
            check_inode(image, entry.nid, nid, depth + 1);
        }
    }
    insist(dots == 2, "both dots are there");
}

static void check_chunks(const Image *image, const PycErofsInode *inode, uint64_t after) {
    uint64_t bits = (inode->where & 0x1f) + 9, count = ((inode->size - 1) >> bits) + 1;
    insist(inode->where & PYC_EROFS_CHUNKS_INDEXED, "chunks name their device");
    after = (after + 7) / 8 * 8;
    for (uint64_t i = 0; i < count; i++) {
        PycErofsChunk chunk;
        memcpy(&chunk, at(image, after + i * 8, 8), sizeof chunk);
        if (chunk.block == pyc_erofs_nowhere)
            continue;
        uint64_t left = inode->size - (i << bits),
                 blocks = (left < (uint64_t)1 << bits ? left + 511 : (uint64_t)1 << bits) / BLOCK;
        uint64_t end = chunk.device ? image->device_blocks[chunk.device - 1] : image->start / BLOCK;
        insist(chunk.device <= image->devices && chunk.block + blocks <= end, "content is in its device");
    }
}

static void check_inode(Image *image, uint64_t nid, uint64_t parent, int depth) {
    PycErofsInode inode;
    memcpy(&inode, at(image, nid * PYC_EROFS_SLOT, sizeof inode), sizeof inode);
    insist((inode.format & 1) && inode.links, "an inode");
    uint64_t after = nid * PYC_EROFS_SLOT + sizeof inode;
    if (inode.xattrs) {
        uint64_t size = PYC_EROFS_XATTRS_HEAD + ((uint64_t)inode.xattrs - 1) * 4, used = PYC_EROFS_XATTRS_HEAD;
        const uint8_t *set = at(image, after, size);
        while (used < size)
            used += pyc_erofs_xattr_size(set + used);
        insist(used == size && size > PYC_EROFS_XATTRS_HEAD, "attributes fill their room");
        after += size;
    }
    if (S_ISDIR(inode.mode)) {
        for (size_t i = 0; i < image->n_seen; i++)
            insist(image->seen[i] != nid, "a directory has one name");
        insist(image->n_seen < MAX_SEEN, "no more directories than members");
        image->seen[image->n_seen++] = nid;
        insist(inode.size > 0, "a directory has names");
        if (depth < 200)
            check_directory(image, &inode, after, nid, parent, depth);
    } else if (S_ISLNK(inode.mode)) {
        insist(inode.size > 0 && inode.size < 4096, "the length of a link");
        for (uint64_t offset = 0, size = 0; offset < inode.size; offset += size)
            insist(!memchr(data_at(image, &inode, after, offset, &size), 0, 1), "a link's target");
    } else if (S_ISREG(inode.mode) && inode.size) {
        insist(inode.format >> 1 == PYC_EROFS_CHUNKS, "a file has chunks");
        check_chunks(image, &inode, after);
    }
}

static void check_image(int fd, uint64_t size, uint64_t *ret_sum) {
    static Image image;
    PycErofsSuper super;
    PycErofsSlot slot;
    memset(&image, 0, sizeof image);
    insist(pread(fd, &super, sizeof super, PYC_EROFS_SUPER_AT) == sizeof super, "read the super block");
    insist(super.magic == pyc_erofs_magic && (uint64_t)super.blocks * BLOCK == size, "the super block");
    image.start = (uint64_t)super.meta_block * BLOCK;
    image.size = size - image.start;
    image.devices = super.devices;
    for (uint32_t i = 0; i < super.devices; i++) {
        insist(pread(fd, &slot, sizeof slot, PYC_EROFS_DEVICES_AT + (off_t)(i * sizeof slot)) == sizeof slot, "read");
        image.device_blocks[i] = slot.blocks;
    }
    void *map = mmap(NULL, image.size, PROT_READ, MAP_SHARED, fd, (off_t)image.start);
    insist(map != MAP_FAILED, "map the image");
    image.bytes = map;
    check_inode(&image, super.root_nid, super.root_nid, 0);
    for (uint64_t i = 0; i < image.size; i++)
        *ret_sum = (*ret_sum ^ image.bytes[i]) * 1099511628211u;
    munmap(map, image.size);
}

/* ---- the target ---- */

static int new_file(void) {
    int fd = memfd_create("pyc-fuzz", MFD_CLOEXEC);
    insist(fd >= 0, "make a file");
    return fd;
}

typedef struct Part {
    const uint8_t *data;
    size_t size;
} Part;

/* Index one or two archives, in pieces (0: from a file); returns what the writer returned. */
static int index_parts(const Part *parts, uint32_t count, uint32_t flags, size_t piece, uint64_t *ret_sum) {
    static const uint8_t uuid[16];
    struct PycLayerOptions options = {
        .flags = flags, .max_bytes = 1 << 20, .max_entries = 1000, .max_meta = 1 << 16, .max_tree = 1 << 22};
    PycErofs *erofs = NULL;
    PycErofsStats stats = {0};
    PycError err = {0};
    uint64_t size = 0;
    PYC_AUTO_FD fd = new_file();
    int r = pyc_erofs_open(fd, &options, count, &erofs, &err);
    for (uint32_t i = 0; r == 0 && i < count; i++) {
        const Part *part = &parts[i];
        if (piece == 0) {
            PYC_AUTO_FD file = new_file();
            insist(write(file, part->data, part->size) == (ssize_t)part->size, "write the archive");
            r = pyc_erofs_feed_file(erofs, file, &err);
        }
        for (size_t done = 0; piece && r == 0 && done < part->size; done += piece)
            r = pyc_erofs_feed(erofs, part->data + done, part->size - done < piece ? part->size - done : piece, &err);
        if (r == 0)
            r = pyc_erofs_end(erofs, part->size, "tag", &stats, &err);
        insist(stats.bytes <= options.max_bytes && stats.entries <= options.max_entries, "within the limits");
    }
    if (r == 0)
        r = pyc_erofs_write(erofs, uuid, &size, &err);
    insist((r < 0) == (err.code != 0) && (r == 0 || err.step[0]), "a failure has a reason");
    pyc_erofs_free(erofs);
    if (r == 0)
        check_image(fd, size, ret_sum);
    return r;
}

/* The first byte chooses options and whether there are two archives. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0)
        return 0;
    size_t half = data[0] & 0x40 ? (size - 1) / 2 / BLOCK * BLOCK : size - 1;
    Part parts[] = {{data + 1, half}, {data + 1 + half, size - 1 - half}};
    uint32_t count = data[0] & 0x20 ? 2 : 1, flags = (data[0] & 0x1f) | (count == 2 ? PYC_LAYER_BARE_END : 0);
    uint64_t whole = 0, pieces = 0, file = 0;
    int r = index_parts(parts, count, flags, size, &whole);
    int again = index_parts(parts, count, flags, data[0] & 0x80 ? 61 : 4096, &pieces);
    insist(r == again && whole == pieces, "pieces make no difference");
    again = index_parts(parts, count, flags, 0, &file);
    insist((r < 0) == (again < 0) && whole == file, "a file makes no difference");
    return 0;
}
