/* How a file with holes is cut into chunks of one size: each is a hole, lies in the tar, or is copied into the image.
 * pwrite(2).
 * Called by erofs.c.
 *
 * Small chunks make a long map (8 bytes each, holes too), large ones do not fit what the tar has, so that content is
 * copied and the image gets room for all of such a chunk, itself a hole. A few bytes at the end of a terabyte, and a disk
 * image with thousands of pieces, want different sizes: the cheapest is taken.
 */
#include "erofs_image.h"

#include <errno.h>
#include <unistd.h>

enum { ALIGNMENT = 4096, ROOM_IS_CHEAPER = 64 }; /* room in the image is a hole: not quite free, as files get copied */

typedef struct Run {
    uint64_t start, end; /* in the file */
    uint64_t at;         /* in the tar */
} Run;

typedef struct Runs {
    const PycTarMember *m;
    size_t next;
    uint64_t at;
} Runs;

/* The next content without a hole in it, whatever the pieces that the map names. */
static int next_run(Runs *runs, Run *ret) {
    const PycTarMember *m = runs->m;
    while (runs->next < m->n_segments && m->segments[runs->next].size == 0)
        runs->next++;
    if (runs->next == m->n_segments)
        return 0;
    const PycTarSegment *s = &m->segments[runs->next];
    *ret = (Run){.start = s->offset, .end = s->offset, .at = runs->at};
    for (; runs->next < m->n_segments && m->segments[runs->next].offset == ret->end; runs->next++) {
        ret->end += m->segments[runs->next].size;
        runs->at += m->segments[runs->next].size;
    }
    return 1;
}

static int in_step(const Run *run) { return (run->at - run->start) % PYC_EROFS_BLOCK == 0; }

/* Whether all of a chunk that the file has is in the run, and can be used where it is. */
static int is_direct(const Run *run, uint64_t chunk, int bits, uint64_t size) {
    uint64_t start = chunk << bits;
    return in_step(run) && run->start <= start && (run->end == size || run->end - start >= (uint64_t)1 << bits);
}

static uint64_t cost_of(const PycTarMember *m, int bits) {
    uint64_t cost = (((m->size - 1) >> bits) + 1) * 8, touched = 0, last = UINT64_MAX;
    Run run;
    for (Runs runs = {.m = m, .at = m->at}; next_run(&runs, &run);) {
        uint64_t first = run.start >> bits, final = (run.end - 1) >> bits;
        if (!in_step(&run)) {
            cost += run.end - run.start;
            touched += final - first + (first != last);
            last = final;
            continue;
        }
        if (!is_direct(&run, first, bits, m->size)) {
            uint64_t edge = (first + 1) << bits;
            cost += (run.end < edge ? run.end : edge) - run.start;
            touched += first != last;
            last = first;
        }
        if (final != first && !is_direct(&run, final, bits, m->size)) {
            cost += run.end - (final << bits);
            touched++;
            last = final;
        }
    }
    return cost + ((touched << bits) / ROOM_IS_CHEAPER);
}

uint8_t pyc_erofs_choose_chunks(const PycTarMember *m) {
    int best = 0;
    uint64_t least = UINT64_MAX;
    Run run;
    Runs runs = {.m = m, .at = m->at};
    if (next_run(&runs, &run) && run.start == 0 && run.end == m->size &&
        m->size <= (uint64_t)1 << PYC_EROFS_MAX_CHUNK_BITS)
        return 0;
    for (int bits = PYC_EROFS_BLOCK_BITS; bits <= PYC_EROFS_MAX_CHUNK_BITS; bits++) {
        uint64_t cost = cost_of(m, bits);
        if (cost <= least) {
            least = cost;
            best = bits;
        }
        if (m->size >> bits == 0)
            break;
    }
    return (uint8_t)best;
}

static int take_room(PycErofsImage *image, uint64_t size, uint64_t *ret_block, const char *path, PycError *err) {
    if (size >= ALIGNMENT)
        image->end = (image->end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    *ret_block = image->end >> PYC_EROFS_BLOCK_BITS;
    image->end += (size + PYC_EROFS_BLOCK - 1) / PYC_EROFS_BLOCK * PYC_EROFS_BLOCK;
    if (image->end >> PYC_EROFS_BLOCK_BITS >= UINT32_MAX)
        return pyc_fail(err, EFBIG, "keep the content of sparse files within 2 TiB", path);
    return 0;
}

int pyc_erofs_map_chunks(PycErofsImage *image, PycTree *tree, uint32_t inode, const PycTarMember *m, int *ret_copied,
                         PycError *err) {
    int bits = tree->inodes[inode].chunk_bits;
    uint32_t map = 0;
    int r = pyc_tree_add_map(tree, ((m->size - 1) >> bits) + 1, &map, err);
    if (r < 0)
        return r;
    tree->inodes[inode].value = map;
    uint64_t device = (uint64_t)tree->inodes[inode].device << 32;
    Run run;
    for (Runs runs = {.m = m, .at = m->at}; next_run(&runs, &run);) {
        for (uint64_t chunk = run.start >> bits; chunk <= (run.end - 1) >> bits; chunk++) {
            uint64_t *entry = &tree->maps[map + chunk], start = chunk << bits, block = 0;
            if (is_direct(&run, chunk, bits, m->size)) {
                *entry = device | (run.at + (start - run.start)) >> PYC_EROFS_BLOCK_BITS;
                continue;
            }
            *ret_copied = 1;
            if (*entry != PYC_TREE_HOLE)
                continue;
            uint64_t room = m->size - start < (uint64_t)1 << bits ? m->size - start : (uint64_t)1 << bits;
            r = take_room(image, room, &block, m->path, err);
            if (r < 0)
                return r;
            *entry = block;
        }
    }
    return 0;
}

int pyc_erofs_copy_content(const PycErofsImage *image, const PycTree *tree, uint32_t inode, uint64_t offset,
                           const uint8_t *data, size_t size, const char *path, PycError *err) {
    const PycInode *file = &tree->inodes[inode];
    while (size) {
        uint64_t start = offset >> file->chunk_bits << file->chunk_bits;
        uint64_t left = start + ((uint64_t)1 << file->chunk_bits) - offset;
        uint64_t entry = tree->maps[file->value + (offset >> file->chunk_bits)];
        ssize_t n = (ssize_t)(size < left ? size : (size_t)left);
        if (entry >> 32 == 0)
            n = pwrite(image->fd, data, (size_t)n, (off_t)((entry << PYC_EROFS_BLOCK_BITS) + (offset - start)));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return pyc_fail(err, errno, "write the content of", path);
        data += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}
