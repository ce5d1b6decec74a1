/* Numbers, names, PAX records and sparse maps of tar headers; see tar_fields.h.
 * No kernel interface; memory: one array of xattr pointers and one of segments, both bounded.
 * Called by tar.c only.
 */
#include "tar_fields.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_XATTRS = 4096, MAX_SEGMENTS = 1 << 20, NSEC_DIGITS = 9 };

/* Where the fields of a header lie (POSIX ustar, then GNU's old sparse format). */
enum {
    NAME = 0,
    MODE = 100,
    UID = 108,
    GID = 116,
    SIZE = 124,
    MTIME = 136,
    CHECKSUM = 148,
    TYPE = 156,
    LINK = 157,
    MAGIC = 257,
    MAJOR = 329,
    MINOR = 337,
    PREFIX = 345,
    STAR_TRAILER = 508,
    OLD_MAP = 386,
    OLD_MAP_MORE = 482,
    OLD_REAL_SIZE = 483,
    OLD_BLOCK_MORE = 504,
};

int pyc_tar_text_reserve(PycTarText *text, size_t size) {
    if (size <= text->room)
        return 0;
    uint8_t *data = realloc(text->data, size);
    if (!data)
        return -ENOMEM;
    text->data = data;
    text->room = size;
    return 0;
}

void pyc_tar_text_free(PycTarText *text) { free(text->data); }

void pyc_tar_extra_clear(PycTarExtra *extra) {
    PycTarXattr *xattrs = extra->xattrs;
    size_t room = extra->room;
    memset(extra, 0, sizeof *extra);
    extra->xattrs = xattrs;
    extra->room = room;
}

void pyc_tar_extra_free(PycTarExtra *extra) { free(extra->xattrs); }

/* Grow an array by doubling; `limit` bounds it. */
static int make_room(void **items, size_t *room, size_t count, size_t item, size_t limit) {
    if (count < *room)
        return 0;
    if (count >= limit)
        return -EFBIG;
    size_t more = *room ? *room * 2 : 8;
    void *grown = realloc(*items, more * item);
    if (!grown)
        return -ENOMEM;
    *items = grown;
    *room = more;
    return 0;
}

int pyc_tar_segments_add(PycTarSegments *map, uint64_t offset, uint64_t size) {
    int r = make_room((void **)&map->items, &map->room, map->count, sizeof *map->items, MAX_SEGMENTS);
    if (r < 0)
        return r;
    map->items[map->count++] = (PycTarSegment){offset, size};
    return 0;
}

/* In order, apart, within the file, and together exactly what the archive holds. */
int pyc_tar_segments_valid(const PycTarSegments *map, uint64_t stored, uint64_t size) {
    uint64_t end = 0, total = 0;
    for (size_t i = 0; i < map->count; i++) {
        const PycTarSegment *s = &map->items[i];
        if (s->offset < end || s->offset > size || s->size > size - s->offset)
            return 0;
        end = s->offset + s->size;
        total += s->size;
    }
    return total == stored && size <= INT64_MAX;
}

void pyc_tar_segments_free(PycTarSegments *map) { free(map->items); }

/* A binary number: the first byte's top bit marks it, the rest is two's complement, big end first. */
static int read_base256(const uint8_t *field, size_t width, int64_t *ret) {
    uint8_t fill = field[0] & 0x40 ? 0xff : 0;
    uint64_t value = fill ? UINT64_MAX : 0;
    for (size_t i = 0; i < width; i++) {
        uint8_t byte = field[i];
        if (i == 0)
            byte = fill ? byte : byte & 0x7f;
        if (i + 8 < width && byte != fill)
            return -EOVERFLOW;
        value = value << 8 | byte;
    }
    if ((value >> 63 != 0) != (fill != 0))
        return -EOVERFLOW;
    *ret = (int64_t)value;
    return 0;
}

static int read_number(const uint8_t *field, size_t width, int64_t *ret) {
    if (field[0] & 0x80)
        return read_base256(field, width, ret);
    size_t i = 0;
    uint64_t value = 0;
    while (i < width && (field[i] == ' ' || field[i] == 0))
        i++;
    for (; i < width && field[i] >= '0' && field[i] <= '7'; i++)
        value = value << 3 | (uint64_t)(field[i] - '0'); /* 12 digits at most: no overflow */
    if (i < width && field[i] != ' ' && field[i] != 0)
        return -EBADMSG;
    *ret = (int64_t)value;
    return 0;
}

static int read_unsigned(const uint8_t *field, size_t width, uint64_t *ret) {
    int64_t value = 0;
    if (read_number(field, width, &value) < 0 || value < 0)
        return -EBADMSG;
    *ret = (uint64_t)value;
    return 0;
}

/* Eight bytes at a time: this is most of the work of a header. */
int pyc_tar_checksum_good(const uint8_t *block) {
    const uint64_t low = 0x00ff00ff00ff00ff;
    int64_t want = 0, sum = 8 * ' ';
    uint64_t pairs = 0; /* four sums, of at most 128 bytes each */
    if (read_number(block + CHECKSUM, 8, &want) < 0)
        return 0;
    for (int i = 0; i < PYC_TAR_BLOCK; i += 8) {
        uint64_t word;
        memcpy(&word, block + i, 8);
        pairs += (word & low) + (word >> 8 & low);
    }
    for (; pairs; pairs >>= 16)
        sum += (int64_t)(pairs & 0xffff);
    for (int i = CHECKSUM; i < CHECKSUM + 8; i++)
        sum -= block[i]; /* which counts as blanks */
    if (sum == want)
        return 1;
    /* Old writers summed signed chars. */
    for (int i = 0; i < PYC_TAR_BLOCK; i++)
        sum -= block[i] & 0x80 && (i < CHECKSUM || i >= CHECKSUM + 8) ? 256 : 0;
    return sum == want;
}

int pyc_tar_read_size(const uint8_t *block, uint64_t *ret_size) {
    int r = read_unsigned(block + SIZE, 12, ret_size);
    return r < 0 || *ret_size > INT64_MAX - PYC_TAR_BLOCK ? -EBADMSG : 0;
}

static size_t copy_field(char *dst, const uint8_t *field, size_t width) {
    size_t n = strnlen((const char *)field, width);
    memcpy(dst, field, n);
    dst[n] = 0;
    return n;
}

void pyc_tar_read_name(const uint8_t *block, char ret_path[258]) {
    size_t n = 0;
    if (memcmp(block + MAGIC, "ustar", 6) == 0) { /* with its NUL: GNU has a blank there and no prefix */
        size_t width = memcmp(block + STAR_TRAILER, "tar", 4) == 0 ? 131 : 155;
        n = copy_field(ret_path, block + PREFIX, width);
        if (n)
            ret_path[n++] = '/';
    }
    copy_field(ret_path + n, block + NAME, 100);
}

static int read_kind(const uint8_t *block, const char *path, PycTarMember *ret) {
    size_t n = strlen(path);
    switch (block[TYPE]) {
    case 0: /* before POSIX a final slash was the mark of a directory */
        ret->kind = n && path[n - 1] == '/' ? PYC_TAR_DIRECTORY : PYC_TAR_FILE;
        return 0;
    case '0':
    case '7':
    case 'S':
        ret->kind = PYC_TAR_FILE;
        return 0;
    case '1':
        ret->kind = PYC_TAR_HARDLINK;
        return 0;
    case '2':
        ret->kind = PYC_TAR_SYMLINK;
        return 0;
    case '3':
        ret->kind = PYC_TAR_CHAR;
        return 0;
    case '4':
        ret->kind = PYC_TAR_BLOCKDEV;
        return 0;
    case '5':
    case 'D': /* GNU incremental: a directory whose content lists its names */
        ret->kind = PYC_TAR_DIRECTORY;
        return 0;
    case '6':
        ret->kind = PYC_TAR_FIFO;
        return 0;
    default:
        return -EOPNOTSUPP;
    }
}

static int read_numbers(const uint8_t *block, const PycTarExtra *extra, PycTarMember *ret) {
    int64_t mode = 0;
    int bad = read_number(block + MODE, 8, &mode) < 0;
    bad |= extra->has_uid ? 0 : read_unsigned(block + UID, 8, &ret->uid) < 0;
    bad |= extra->has_gid ? 0 : read_unsigned(block + GID, 8, &ret->gid) < 0;
    bad |= extra->has_mtime ? 0 : read_number(block + MTIME, 12, &ret->mtime) < 0;
    bad |= extra->has_size ? 0 : pyc_tar_read_size(block, &ret->stored) < 0;
    if (ret->kind == PYC_TAR_CHAR || ret->kind == PYC_TAR_BLOCKDEV)
        bad |= read_unsigned(block + MAJOR, 8, &ret->major) < 0 || read_unsigned(block + MINOR, 8, &ret->minor) < 0;
    ret->mode = (uint32_t)mode & 07777;
    if (extra->has_uid)
        ret->uid = extra->uid;
    if (extra->has_gid)
        ret->gid = extra->gid;
    if (extra->has_size)
        ret->stored = extra->size;
    if (extra->has_mtime) {
        ret->mtime = extra->mtime;
        ret->mtime_nsec = extra->mtime_nsec;
    }
    return bad ? -EBADMSG : 0;
}

int pyc_tar_read_member(const uint8_t *block, const PycTarExtra *extra, char ret_path[258], char ret_link[101],
                        PycTarMember *ret_member, PycError *err) {
    PycTarMember m = {0};
    pyc_tar_read_name(block, ret_path);
    copy_field(ret_link, block + LINK, 100);
    m.path = extra->sparse && extra->sparse_name ? extra->sparse_name : extra->path ? extra->path : ret_path;
    m.link = extra->link ? extra->link : ret_link;
    if (read_kind(block, m.path, &m) < 0)
        return pyc_fail(err, EOPNOTSUPP, "read a member of an unknown type", m.path);
    if (read_numbers(block, extra, &m) < 0)
        return pyc_fail(err, EBADMSG, "read the numbers of a header", m.path);
    /* Links, devices and the like have no content, whatever their size field says: as the other readers of layers. */
    if (m.kind != PYC_TAR_FILE && block[TYPE] != 'D')
        m.stored = 0;
    m.size = m.stored;
    *ret_member = m;
    return 0;
}

static int read_decimal(const char *text, uint64_t *ret) {
    uint64_t value = 0;
    if (!*text)
        return -EBADMSG;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || value > (INT64_MAX - 9) / 10)
            return -EBADMSG;
        value = value * 10 + (uint64_t)(*text - '0');
    }
    *ret = value;
    return 0;
}

/* "-1.25" is 1.25 s before 1970: second -2 and 750,000,000 ns. */
static int read_time(char *text, int64_t *ret_sec, uint32_t *ret_nsec) {
    int negative = *text == '-';
    text += negative;
    char *dot = strchr(text, '.');
    uint32_t nsec = 0;
    if (dot) {
        *dot = 0;
        const char *digit = dot + 1;
        for (int i = 0; i < NSEC_DIGITS; i++)
            nsec = nsec * 10 + (*digit >= '0' && *digit <= '9' ? (uint32_t)(*digit++ - '0') : 0);
        if (digit[strspn(digit, "0123456789")])
            return -EBADMSG;
    }
    uint64_t sec = 0;
    if (read_decimal(text, &sec) < 0)
        return -EBADMSG;
    *ret_sec = negative ? -(int64_t)sec - (nsec > 0) : (int64_t)sec;
    *ret_nsec = negative && nsec ? 1000000000 - nsec : nsec;
    return 0;
}

/* GNU.sparse.map of format 0.1: "offset,size,offset,size". */
static int read_map_list(char *text, PycTarSegments *ret_map) {
    ret_map->count = 0;
    while (*text) {
        char *comma = strchr(text, ',');
        if (!comma)
            return -EBADMSG;
        *comma = 0;
        char *end = comma + 1 + strcspn(comma + 1, ",");
        int last = *end == 0;
        *end = 0;
        uint64_t offset = 0, size = 0;
        if (read_decimal(text, &offset) < 0 || read_decimal(comma + 1, &size) < 0)
            return -EBADMSG;
        int r = pyc_tar_segments_add(ret_map, offset, size);
        if (r < 0)
            return r;
        text = last ? end : end + 1;
    }
    return 0;
}

static int read_sparse(const char *key, char *value, PycTarExtra *x, PycTarSegments *ret_map) {
    uint64_t number = 0;
    if (strcmp(key, "name") == 0) {
        x->sparse_name = value;
        return 0;
    }
    if (strcmp(key, "map") == 0) {
        x->sparse = PYC_TAR_SPARSE_IN_HEADER;
        return read_map_list(value, ret_map);
    }
    if (read_decimal(value, &number) < 0)
        return -EBADMSG;
    if (strcmp(key, "major") == 0)
        x->sparse_major = number;
    else if (strcmp(key, "minor") == 0)
        x->sparse_minor = number;
    else if (strcmp(key, "size") == 0 || strcmp(key, "realsize") == 0)
        x->real_size = number;
    else if (strcmp(key, "numblocks") == 0)
        x->sparse = PYC_TAR_SPARSE_IN_HEADER;
    else if (strcmp(key, "offset") == 0) {
        x->pending_offset = number;
        x->has_pending_offset = 1;
    } else if (strcmp(key, "numbytes") == 0) {
        if (!x->has_pending_offset)
            return -EBADMSG;
        x->has_pending_offset = 0;
        x->sparse = PYC_TAR_SPARSE_IN_HEADER;
        return pyc_tar_segments_add(ret_map, x->pending_offset, number);
    }
    if (x->sparse_major > 1 || (x->sparse_major == 1 && x->sparse_minor > 0))
        return -EOPNOTSUPP;
    if (x->sparse_major == 1)
        x->sparse = PYC_TAR_SPARSE_IN_CONTENT;
    return 0;
}

/* GNU tar writes "=" and "%" in the names of xattrs as "%3D" and "%25", since a record's key ends at the first "=". */
static void unescape(char *name) {
    char *to = name;
    for (; *name; name++) {
        int equals = strncmp(name, "%3D", 3) == 0, percent = strncmp(name, "%25", 3) == 0;
        *to++ = equals ? '=' : *name;
        if (equals || percent)
            name += 2;
    }
    *to = 0;
}

static int add_xattr(PycTarExtra *x, char *name, const char *value, size_t size) {
    if (!*name)
        return -EBADMSG;
    unescape(name);
    int r = make_room((void **)&x->xattrs, &x->room, x->n_xattrs, sizeof *x->xattrs, MAX_XATTRS);
    if (r < 0)
        return r;
    x->xattrs[x->n_xattrs++] = (PycTarXattr){name, (const uint8_t *)value, size};
    return 0;
}

/* One record, both parts NUL-terminated in place. An empty value leaves the plain header's word standing. */
static int read_record(char *key, char *value, size_t size, PycTarExtra *x, PycTarSegments *ret_map) {
    static const char xattr[] = "SCHILY.xattr.", sparse[] = "GNU.sparse.";
    if (strncmp(key, xattr, sizeof xattr - 1) == 0)
        return add_xattr(x, key + sizeof xattr - 1, value, size);
    int text = strcmp(key, "path") == 0 || strcmp(key, "linkpath") == 0 || strncmp(key, sparse, sizeof sparse - 1) == 0;
    int number =
        strcmp(key, "size") == 0 || strcmp(key, "uid") == 0 || strcmp(key, "gid") == 0 || strcmp(key, "mtime") == 0;
    if (!(text || number) || size == 0)
        return 0; /* atime, ctime, user names, comments: not part of a layer */
    if (strlen(value) != size)
        return -EBADMSG; /* a NUL inside: two readers would see two names */
    if (strncmp(key, sparse, sizeof sparse - 1) == 0)
        return read_sparse(key + sizeof sparse - 1, value, x, ret_map);
    switch (key[0]) {
    case 'p':
        x->path = value;
        return 0;
    case 'l':
        x->link = value;
        return 0;
    case 's':
        x->has_size = 1;
        return read_decimal(value, &x->size) < 0 || x->size > INT64_MAX - PYC_TAR_BLOCK ? -EBADMSG : 0;
    case 'u':
        x->has_uid = 1;
        return read_decimal(value, &x->uid);
    case 'g':
        x->has_gid = 1;
        return read_decimal(value, &x->gid);
    default:
        x->has_mtime = 1;
        return read_time(value, &x->mtime, &x->mtime_nsec);
    }
}

int pyc_tar_read_pax(PycTarText *text, PycTarExtra *ret_extra, PycTarSegments *ret_map, PycError *err) {
    size_t at = 0;
    while (at < text->size) {
        size_t size = 0, i = at;
        for (; i < text->size && text->data[i] >= '0' && text->data[i] <= '9' && size <= text->size; i++)
            size = size * 10 + (size_t)(text->data[i] - '0');
        size_t end = at + size;
        if (i == at || i >= text->size || text->data[i] != ' ' || size > text->size - at || end <= i + 1)
            return pyc_fail(err, EBADMSG, "read the length of a PAX record", NULL);
        char *key = (char *)text->data + i + 1;
        char *last = (char *)text->data + end - 1;
        char *equals = memchr(key, '=', (size_t)(last - key));
        if (*last != '\n' || !equals || equals == key || memchr(key, 0, (size_t)(equals - key)))
            return pyc_fail(err, EBADMSG, "read a PAX record", NULL);
        *equals = 0;
        *last = 0;
        int r = read_record(key, equals + 1, (size_t)(last - equals - 1), ret_extra, ret_map);
        if (r < 0)
            return pyc_fail(err, -r, "read the PAX record", key);
        at = end;
    }
    return 0;
}

static int read_old_pairs(const uint8_t *field, int count, PycTarSegments *ret_map) {
    for (int i = 0; i < count; i++, field += 24) {
        uint64_t offset = 0, size = 0;
        if (field[12] == 0)
            return 0;
        if (read_unsigned(field, 12, &offset) < 0 || read_unsigned(field + 12, 12, &size) < 0)
            return -EBADMSG;
        int r = pyc_tar_segments_add(ret_map, offset, size);
        if (r < 0)
            return r;
    }
    return 0;
}

int pyc_tar_read_old_map(const uint8_t *block, PycTarSegments *ret_map, uint64_t *ret_real_size) {
    if (read_unsigned(block + OLD_REAL_SIZE, 12, ret_real_size) < 0)
        return -EBADMSG;
    int r = read_old_pairs(block + OLD_MAP, 4, ret_map);
    return r < 0 ? r : block[OLD_MAP_MORE] != 0;
}

int pyc_tar_read_old_map_more(const uint8_t *block, PycTarSegments *ret_map) {
    int r = read_old_pairs(block, 21, ret_map);
    return r < 0 ? r : block[OLD_BLOCK_MORE] != 0;
}

int pyc_tar_read_map_text(PycTarMapText *text, const uint8_t *block, PycTarSegments *ret_map) {
    for (int i = 0; i < PYC_TAR_BLOCK; i++) {
        if (block[i] >= '0' && block[i] <= '9' && text->number <= (INT64_MAX - 9) / 10) {
            text->number = text->number * 10 + (uint64_t)(block[i] - '0');
            text->digits++;
            continue;
        }
        if (block[i] != '\n' || text->digits == 0)
            return -EBADMSG;
        uint64_t number = text->number;
        text->number = 0;
        text->digits = 0;
        if (!text->has_pairs) {
            text->has_pairs = 1;
            text->pairs = number;
        } else if (!text->has_offset) {
            text->has_offset = 1;
            text->offset = number;
        } else {
            text->has_offset = 0;
            text->pairs--;
            int r = pyc_tar_segments_add(ret_map, text->offset, number);
            if (r < 0)
                return r;
        }
        if (text->pairs == 0 && !text->has_offset)
            return 0;
    }
    return 1;
}
