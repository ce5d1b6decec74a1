/* The state machine of the tar push parser: blocks, extended headers, sparse maps, content; see tar.h.
 * No kernel interface, memory bounded by max_meta and MAX_SEGMENTS.
 * Called by layer.c and erofs.c; the fields of headers and records are read by tar_fields.c.
 */
#include "tar.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tar_fields.h"

typedef enum State {
    AT_HEADER,
    IN_META,    /* the payload of an extended header */
    IN_OLD_MAP, /* GNU 'S' extension blocks */
    IN_MAP,     /* the map that opens the content of a PAX 1.0 sparse member */
    IN_CONTENT,
    IN_PADDING, /* bytes to throw away up to the next header */
    AT_END,
} State;

struct PycTar {
    PycTarActions actions;
    void *self;
    uint64_t max_meta;
    State state;
    int failed; /* -errno of the first failure: nothing is parsed after it */
    int zero_blocks;
    uint64_t position;            /* bytes of the archive so far */
    uint8_t block[PYC_TAR_BLOCK]; /* a block that arrives in pieces */
    size_t have;
    uint64_t left;    /* bytes of payload or padding still to come */
    PycTarText *meta; /* where the payload goes */
    PycTarText pax, name, link;
    PycTarExtra extra;
    PycTarSegments map;
    PycTarMapText map_text;
    size_t segment;        /* the one being filled */
    uint64_t segment_done; /* bytes of it so far */
    uint64_t padding;      /* after the content */
    PycTarMember member;
    char path[258], target[101]; /* from the plain header */
};

int pyc_tar_open(const PycTarActions *actions, void *self, uint64_t max_meta, PycTar **ret_tar, PycError *err) {
    PycTar *tar = calloc(1, sizeof *tar);
    if (!tar)
        return pyc_fail(err, ENOMEM, "allocate the tar parser", NULL);
    tar->actions = *actions;
    tar->self = self;
    tar->max_meta = max_meta;
    *ret_tar = tar;
    return 0;
}

void pyc_tar_free(PycTar *tar) {
    if (!tar)
        return;
    pyc_tar_text_free(&tar->pax);
    pyc_tar_text_free(&tar->name);
    pyc_tar_text_free(&tar->link);
    pyc_tar_extra_free(&tar->extra);
    pyc_tar_segments_free(&tar->map);
    free(tar);
}

/* Gather a whole block: NULL while it is incomplete; no copy when it lies in the chunk. */
static const uint8_t *next_block(PycTar *tar, const uint8_t **data, size_t *size) {
    if (tar->have == 0 && *size >= PYC_TAR_BLOCK) {
        const uint8_t *block = *data;
        *data += PYC_TAR_BLOCK;
        *size -= PYC_TAR_BLOCK;
        tar->position += PYC_TAR_BLOCK;
        return block;
    }
    size_t want = PYC_TAR_BLOCK - tar->have;
    size_t take = *size < want ? *size : want;
    memcpy(tar->block + tar->have, *data, take);
    *data += take;
    *size -= take;
    tar->have += take;
    tar->position += take;
    if (tar->have < PYC_TAR_BLOCK)
        return NULL;
    tar->have = 0;
    return tar->block;
}

static uint64_t padding_of(uint64_t size) { return (PYC_TAR_BLOCK - size % PYC_TAR_BLOCK) % PYC_TAR_BLOCK; }

static void skip(PycTar *tar, uint64_t bytes) {
    tar->left = bytes;
    tar->state = bytes ? IN_PADDING : AT_HEADER;
}

static void forget_extended_headers(PycTar *tar) {
    tar->pax.size = tar->name.size = tar->link.size = 0;
    pyc_tar_extra_clear(&tar->extra);
    tar->map.count = 0;
}

static int end_member(PycTar *tar, PycError *err) {
    int r = tar->actions.end_member(tar->self, err);
    forget_extended_headers(tar);
    skip(tar, tar->padding);
    return r;
}

/* Announce the member and go on to its content; the sparse map, if any, is complete here. */
static int begin_content(PycTar *tar, PycError *err) {
    PycTarMember *m = &tar->member;
    if (m->sparse) {
        if (!pyc_tar_segments_valid(&tar->map, m->stored, m->size))
            return pyc_fail(err, EBADMSG, "read the sparse map", m->path);
    } else {
        tar->map.count = 0;
        if (pyc_tar_segments_add(&tar->map, 0, m->stored) < 0)
            return pyc_fail(err, ENOMEM, "read the sparse map", m->path);
    }
    m->at = tar->position;
    m->segments = tar->map.items;
    m->n_segments = tar->map.count;
    int r = tar->actions.member(tar->self, m, err);
    if (r < 0)
        return r;
    tar->segment = 0;
    tar->segment_done = 0;
    tar->left = m->stored;
    tar->state = IN_CONTENT;
    return tar->left ? 0 : end_member(tar, err);
}

static int begin_member(PycTar *tar, const uint8_t *block, PycError *err) {
    PycTarMember *m = &tar->member;
    int r = pyc_tar_read_member(block, &tar->extra, tar->path, tar->target, m, err);
    if (r < 0)
        return r;
    /* GNU's long names win over PAX ones, as in the other readers of layers. */
    if (tar->name.size)
        m->path = (const char *)tar->name.data;
    if (tar->link.size)
        m->link = (const char *)tar->link.data;
    tar->padding = padding_of(m->stored);
    m->xattrs = tar->extra.xattrs;
    m->n_xattrs = tar->extra.n_xattrs;
    if (block[156] == 'S') {
        m->sparse = 1;
        tar->map.count = 0;
        int more = pyc_tar_read_old_map(block, &tar->map, &m->size);
        if (more < 0)
            return pyc_fail(err, -more, "read the sparse map", m->path);
        if (more) {
            tar->state = IN_OLD_MAP;
            return 0;
        }
    } else if (m->kind == PYC_TAR_FILE && tar->extra.sparse) {
        m->sparse = 1;
        m->size = tar->extra.real_size;
        if (tar->extra.sparse == PYC_TAR_SPARSE_IN_CONTENT) {
            tar->map.count = 0;
            memset(&tar->map_text, 0, sizeof tar->map_text);
            tar->state = IN_MAP;
            return 0;
        }
    }
    return begin_content(tar, err);
}

static int begin_meta(PycTar *tar, PycTarText *meta, uint64_t size, PycError *err) {
    if (size > tar->max_meta)
        return pyc_fail(err, EFBIG, "keep an extended header within the limit", (const char *)tar->path);
    meta->size = 0;
    int r = pyc_tar_text_reserve(meta, (size_t)size + 1);
    if (r < 0)
        return pyc_fail(err, -r, "allocate an extended header", NULL);
    tar->meta = meta;
    tar->left = size;
    tar->padding = padding_of(size);
    tar->state = IN_META;
    return 0;
}

static int end_meta(PycTar *tar, PycError *err) {
    PycTarText *meta = tar->meta;
    meta->data[meta->size] = 0;
    if (meta == &tar->pax) {
        tar->map.count = 0;
        pyc_tar_extra_clear(&tar->extra); /* of two PAX headers in a row, the second counts */
        int r = pyc_tar_read_pax(meta, &tar->extra, &tar->map, err);
        if (r < 0)
            return r;
    }
    skip(tar, tar->padding);
    return 0;
}

static int is_zero(const uint8_t *block) { return block[0] == 0 && memcmp(block, block + 1, PYC_TAR_BLOCK - 1) == 0; }

static int read_header(PycTar *tar, const uint8_t *block, PycError *err) {
    if (is_zero(block)) {
        if (tar->pax.size || tar->name.size || tar->link.size)
            return pyc_fail(err, EBADMSG, "find the member of an extended header", NULL);
        if (++tar->zero_blocks == 2)
            tar->state = AT_END;
        return 0;
    }
    if (tar->zero_blocks)
        return pyc_fail(err, EBADMSG, "read past a lone zero block", NULL);
    if (!pyc_tar_checksum_good(block))
        return pyc_fail(err, EBADMSG, "check a header's checksum (is it a tar?)", NULL);
    uint64_t size = 0;
    switch (block[156]) {
    case 'x':
    case 'X':
    case 'L':
    case 'K':
    case 'g':
    case 'V':
        pyc_tar_read_name(block, tar->path);
        if (pyc_tar_read_size(block, &size) < 0)
            return pyc_fail(err, EBADMSG, "read the size field", tar->path);
        /* A global PAX header is skipped, as every engine does: it would let one header rename the members after it. */
        if (block[156] == 'g' || block[156] == 'V') {
            skip(tar, size + padding_of(size));
            return 0;
        }
        int r = begin_meta(tar, block[156] == 'L' ? &tar->name : block[156] == 'K' ? &tar->link : &tar->pax, size, err);
        return r < 0 || size ? r : end_meta(tar, err);
    default:
        return begin_member(tar, block, err);
    }
}

static int more_content(PycTar *tar, const uint8_t **data, size_t *size, PycError *err) {
    const PycTarSegment *segment = &tar->map.items[tar->segment];
    while (segment->size == tar->segment_done) { /* total == left > 0, so that one with bytes follows */
        segment = &tar->map.items[++tar->segment];
        tar->segment_done = 0;
    }
    uint64_t want = segment->size - tar->segment_done;
    size_t take = *size < want ? *size : (size_t)want;
    int r = tar->actions.content(tar->self, segment->offset + tar->segment_done, *data, take, err);
    if (r < 0)
        return r;
    *data += take;
    *size -= take;
    tar->segment_done += take;
    tar->left -= take;
    tar->position += take;
    return tar->left ? 0 : end_member(tar, err);
}

static int more_meta(PycTar *tar, const uint8_t **data, size_t *size, PycError *err) {
    size_t take = *size < tar->left ? *size : (size_t)tar->left;
    memcpy(tar->meta->data + tar->meta->size, *data, take);
    tar->meta->size += take;
    *data += take;
    *size -= take;
    tar->left -= take;
    tar->position += take;
    return tar->left ? 0 : end_meta(tar, err);
}

static int more_map(PycTar *tar, const uint8_t *block, PycError *err) {
    PycTarMember *m = &tar->member;
    if (m->stored < PYC_TAR_BLOCK)
        return pyc_fail(err, EBADMSG, "read the sparse map", m->path);
    m->stored -= PYC_TAR_BLOCK;
    int more = pyc_tar_read_map_text(&tar->map_text, block, &tar->map);
    if (more < 0)
        return pyc_fail(err, -more, "read the sparse map", m->path);
    return more ? 0 : begin_content(tar, err);
}

static int more_old_map(PycTar *tar, const uint8_t *block, PycError *err) {
    int more = pyc_tar_read_old_map_more(block, &tar->map);
    if (more < 0)
        return pyc_fail(err, -more, "read the sparse map", tar->member.path);
    return more ? 0 : begin_content(tar, err);
}

static int step(PycTar *tar, const uint8_t **data, size_t *size, PycError *err) {
    size_t take;
    const uint8_t *block;
    switch (tar->state) {
    case IN_CONTENT:
        return more_content(tar, data, size, err);
    case IN_META:
        return more_meta(tar, data, size, err);
    case IN_PADDING:
        take = *size < tar->left ? *size : (size_t)tar->left;
        *data += take;
        *size -= take;
        tar->left -= take;
        tar->position += take;
        if (tar->left == 0)
            tar->state = AT_HEADER;
        return 0;
    case AT_END:
        *size = 0;
        return 0;
    default:
        block = next_block(tar, data, size);
        if (!block)
            return 0;
        return tar->state == AT_HEADER ? read_header(tar, block, err)
               : tar->state == IN_MAP  ? more_map(tar, block, err)
                                       : more_old_map(tar, block, err);
    }
}

int pyc_tar_feed(PycTar *tar, const uint8_t *data, size_t size, PycError *err) {
    if (tar->failed)
        return pyc_fail(err, tar->failed, "go on after a failure", NULL);
    while (size) {
        int r = step(tar, &data, &size, err);
        if (r < 0)
            return tar->failed = r;
    }
    return 0;
}

int pyc_tar_pass(PycTar *tar, uint64_t *ret_bytes, PycError *err) {
    uint64_t start = tar->position;
    if (tar->failed)
        return pyc_fail(err, tar->failed, "go on after a failure", NULL);
    if (tar->state == IN_CONTENT) {
        tar->position += tar->left;
        tar->left = 0;
        int r = end_member(tar, err);
        if (r < 0)
            return tar->failed = r;
    }
    if (tar->state == IN_PADDING) {
        tar->position += tar->left;
        skip(tar, 0);
    }
    *ret_bytes = tar->state == AT_END ? UINT64_MAX : tar->position - start;
    return 0;
}

int pyc_tar_finish(PycTar *tar, int bare_end, PycError *err) {
    if (tar->failed)
        return pyc_fail(err, tar->failed, "go on after a failure", NULL);
    if (tar->state == AT_END)
        return 0;
    int in_member = tar->state != AT_HEADER || tar->have || tar->pax.size || tar->name.size || tar->link.size;
    if (in_member)
        return pyc_fail(err, EBADMSG, "read on: the archive is cut short",
                        tar->state == IN_CONTENT ? tar->member.path : NULL);
    if (bare_end || tar->zero_blocks)
        return 0;
    return pyc_fail(err, EBADMSG, "find the end marker: the archive is cut short", NULL);
}
