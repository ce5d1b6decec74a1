/* Writes tar headers; see tar_write.h.
 * No kernel interface, no libc beyond memory and number formatting.
 * Called by changes.c.
 */
#include "tar_write.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 512, NAME = 100, MAX_RECORDS = 1 << 20, MAX_ID = 1 << 21 };
#define MAX_OCTAL (UINT64_C(1) << 33)

static const char sparse_prefix[] = "GNUSparseFile.0/";
static const char pax_prefix[] = "PaxHeaders/";

static int reserve(PycBytes *out, size_t size) {
    if (out->size + size <= out->room)
        return 0;
    size_t room = (out->size + size) * 2;
    uint8_t *grown = realloc(out->data, room);
    if (!grown)
        return -ENOMEM;
    out->data = grown;
    out->room = room;
    return 0;
}

int pyc_bytes_put(PycBytes *out, const void *data, size_t size) {
    if (reserve(out, size) < 0)
        return -ENOMEM;
    if (size)
        memcpy(out->data + out->size, data, size);
    out->size += size;
    return 0;
}

int pyc_bytes_zeros(PycBytes *out, size_t size) {
    if (reserve(out, size) < 0)
        return -ENOMEM;
    if (size)
        memset(out->data + out->size, 0, size);
    out->size += size;
    return 0;
}

/* ---- PAX records ---- */

static size_t digits(size_t number) {
    size_t count = 1;
    while (number /= 10)
        count++;
    return count;
}

/* "LENGTH KEY=VALUE\n", where the length counts its own digits. */
static int put_record(PycBytes *out, const char *key, const void *value, size_t size) {
    size_t rest = strlen(key) + size + 3, length = rest + digits(rest);
    length = rest + digits(length);
    char number[32];
    int written = snprintf(number, sizeof number, "%zu ", length);
    int r = pyc_bytes_put(out, number, (size_t)written);
    r = r < 0 ? r : pyc_bytes_put(out, key, strlen(key));
    r = r < 0 ? r : pyc_bytes_put(out, "=", 1);
    r = r < 0 ? r : pyc_bytes_put(out, value, size);
    return r < 0 ? r : pyc_bytes_put(out, "\n", 1);
}

/* A key ends at the first "=": GNU tar writes "%3D" for it, and "%25" for "%". */
static int put_xattr(PycBytes *out, const PycXattr *xattr) {
    char key[sizeof "SCHILY.xattr." + 3 * 256] = "SCHILY.xattr."; /* XATTR_NAME_MAX is 255 */
    char *to = key + strlen(key);
    for (const char *from = xattr->name; *from && to < key + sizeof key - 4; from++) {
        if (*from == '=' || *from == '%')
            to = stpcpy(to, *from == '=' ? "%3D" : "%25");
        else
            *to++ = *from;
    }
    *to = 0;
    return put_record(out, key, xattr->value, xattr->size);
}

static int put_text(PycBytes *out, const char *key, const char *value) {
    return put_record(out, key, value, strlen(value));
}

static int put_number(PycBytes *out, const char *key, uint64_t value) {
    char text[32];
    (void)snprintf(text, sizeof text, "%" PRIu64, value);
    return put_text(out, key, text);
}

/* A decimal fraction; before 1970 it counts backwards: -1 s and 0.75 s after it is -0.25. */
static int put_time(PycBytes *out, int64_t seconds, uint32_t nsec) {
    const char *sign = seconds < 0 ? "-" : "";
    uint64_t whole = seconds < 0 ? (uint64_t) - (seconds + (nsec > 0)) : (uint64_t)seconds;
    uint32_t fraction = seconds < 0 && nsec ? 1000000000u - nsec : nsec;
    char text[64];
    int size = snprintf(text, sizeof text, "%s%" PRIu64 ".%09" PRIu32, sign, whole, fraction);
    while (text[size - 1] == '0')
        text[--size] = 0;
    if (text[size - 1] == '.')
        text[--size] = 0;
    return put_text(out, "mtime", text);
}

static int put_sparse(PycBytes *out, const PycTarHead *head) {
    int r = put_text(out, "GNU.sparse.major", "1");
    r = r < 0 ? r : put_text(out, "GNU.sparse.minor", "0");
    r = r < 0 ? r : put_text(out, "GNU.sparse.name", head->path);
    return r < 0 ? r : put_number(out, "GNU.sparse.realsize", head->size);
}

/* All records that a member needs, by name; none for most members without fractions of seconds. */
static int put_records(PycBytes *out, const PycTarHead *head, uint64_t stored) {
    int r = head->extents ? put_sparse(out, head) : 0;
    for (size_t i = 0; r == 0 && head->xattrs && i < head->xattrs->count; i++)
        r = put_xattr(out, &head->xattrs->items[i]);
    if (r == 0 && head->gid >= MAX_ID)
        r = put_number(out, "gid", head->gid);
    if (r == 0 && strlen(head->link) > NAME)
        r = put_text(out, "linkpath", head->link);
    if (r == 0 && (head->mtime < 0 || (uint64_t)head->mtime >= MAX_OCTAL || head->mtime_nsec))
        r = put_time(out, head->mtime, head->mtime_nsec);
    if (r == 0 && !head->extents && strlen(head->path) > NAME)
        r = put_text(out, "path", head->path);
    if (r == 0 && stored >= MAX_OCTAL)
        r = put_number(out, "size", stored);
    if (r == 0 && head->uid >= MAX_ID)
        r = put_number(out, "uid", head->uid);
    return r;
}

/* ---- headers ---- */

static void put_octal(uint8_t *field, size_t size, uint64_t value) {
    char text[32];
    (void)snprintf(text, sizeof text, "%0*" PRIo64, (int)size - 1, value);
    memcpy(field, text, size);
}

static void put_name(uint8_t *field, const char *prefix, const char *name) {
    size_t before = strlen(prefix), size = strlen(name);
    memcpy(field, prefix, before);
    memcpy(field + before, name, size < NAME - before ? size : NAME - before);
}

static int put_block(PycBytes *out, const PycTarHead *head, const char *prefix, const char *name, uint64_t size) {
    uint8_t block[BLOCK] = {0};
    put_name(block, prefix, name);
    put_octal(block + 100, 8, head->mode);
    put_octal(block + 108, 8, head->uid < MAX_ID ? head->uid : 0);
    put_octal(block + 116, 8, head->gid < MAX_ID ? head->gid : 0);
    put_octal(block + 124, 12, size < MAX_OCTAL ? size : 0);
    int fits = head->mtime >= 0 && (uint64_t)head->mtime < MAX_OCTAL;
    put_octal(block + 136, 12, fits ? (uint64_t)head->mtime : 0);
    memset(block + 148, ' ', 8);
    block[156] = (uint8_t)head->type;
    put_name(block + 157, "", head->link);
    memcpy(block + 257, "ustar\00000", 8);
    put_octal(block + 329, 8, head->major);
    put_octal(block + 337, 8, head->minor);
    unsigned sum = 0;
    for (size_t i = 0; i < BLOCK; i++)
        sum += block[i];
    put_octal(block + 148, 7, sum);
    return pyc_bytes_put(out, block, BLOCK);
}

static int pad(PycBytes *out, size_t size) { return pyc_bytes_zeros(out, (BLOCK - size % BLOCK) % BLOCK); }

/* GNU's sparse map 1.0: decimal numbers, one a line, filled up to a block. */
static int put_map(PycBytes *out, const PycTarHead *head) {
    char line[64];
    size_t before = out->size;
    int size = snprintf(line, sizeof line, "%zu\n", head->n_extents);
    int r = pyc_bytes_put(out, line, (size_t)size);
    for (size_t i = 0; r == 0 && i < head->n_extents; i++) {
        size =
            snprintf(line, sizeof line, "%" PRIu64 "\n%" PRIu64 "\n", head->extents[i].offset, head->extents[i].size);
        r = pyc_bytes_put(out, line, (size_t)size);
    }
    return r < 0 ? r : pad(out, out->size - before);
}

int pyc_tar_put_head(PycBytes *out, const PycTarHead *head, uint64_t *ret_stored) {
    static const PycTarHead extended = {.type = 'x', .path = "", .link = "", .mode = 0644};
    PycBytes map = {0}, records = {0};
    uint64_t content = head->type == '0' ? head->size : 0;
    const char *slash = strrchr(head->path, '/');
    int r = 0;
    if (head->extents) {
        content = 0;
        for (size_t i = 0; i < head->n_extents; i++)
            content += head->extents[i].size;
        r = put_map(&map, head);
    }
    uint64_t stored = content + map.size;
    r = r < 0 ? r : put_records(&records, head, stored);
    if (r == 0 && records.size > MAX_RECORDS)
        r = -E2BIG;
    if (r == 0 && records.size) {
        r = put_block(out, &extended, pax_prefix, head->path, records.size);
        r = r < 0 ? r : pyc_bytes_put(out, records.data, records.size);
        r = r < 0 ? r : pad(out, records.size);
    }
    if (r == 0)
        r = head->extents ? put_block(out, head, sparse_prefix, slash ? slash + 1 : head->path, stored)
                          : put_block(out, head, "", head->path, stored);
    r = r < 0 ? r : pyc_bytes_put(out, map.data, map.size);
    free(map.data);
    free(records.data);
    if (r == 0)
        *ret_stored = content;
    return r;
}
