/* Unit tests of the tar reader and the layer applier: members built field by field, applied below a temporary directory.
 * mkdtemp(3). Run by `make check` under ASan and UBSan, by `make valgrind`.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "layer.h"
#include "tree.h"
#include "util.h"

static int failures;
static int root = -1;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s (errno %d)\n", __func__, __LINE__, #condition, errno);                          \
            failures++;                                                                                                \
        }                                                                                                              \
    } while (0)

/* An archive under construction. */
typedef struct Archive {
    uint8_t bytes[1 << 16];
    size_t size;
} Archive;

static void seal(uint8_t *header) {
    unsigned sum = 0;
    memset(header + 148, ' ', 8);
    for (int i = 0; i < 512; i++)
        sum += header[i];
    (void)snprintf((char *)header + 148, 8, "%06o", sum);
}

static uint8_t *add(Archive *a, char type, const char *name, const char *link, const char *content, size_t size) {
    uint8_t *header = a->bytes + a->size;
    memset(header, 0, 512);
    memcpy(header, name, strnlen(name, 100));
    memcpy(header + 100, "0000640", 8);
    memcpy(header + 108, "0000000", 8);
    memcpy(header + 116, "0000000", 8);
    (void)snprintf((char *)header + 124, 12, "%011zo", size);
    memcpy(header + 136, "00000000777", 12);
    header[156] = (uint8_t)type;
    memcpy(header + 157, link, strnlen(link, 100));
    memcpy(header + 257,
           "ustar\0"
           "00",
           8);
    seal(header);
    a->size += 512;
    if (size)
        memcpy(a->bytes + a->size, content, size);
    a->size += (size + 511) / 512 * 512;
    return header;
}

static void add_pax(Archive *a, const char *key, const char *value, size_t size) {
    char record[8192];
    size_t body = strlen(key) + size + 3, total = body;
    for (size_t before = 0; before != total;) {
        before = total;
        total = body + (size_t)snprintf(NULL, 0, "%zu", before);
    }
    int n = snprintf(record, sizeof record, "%zu %s=", total, key);
    memcpy(record + n, value, size);
    record[total - 1] = '\n';
    add(a, 'x', "pax", "", record, total);
}

/* Apply it in pieces of `piece` bytes to an empty directory; returns what the layer returned. */
static int apply_in(const Archive *a, size_t piece, uint32_t flags, PycLayerStats *stats, PycError *err) {
    static const uint8_t end[1024];
    PycLayerOptions options = {.flags = flags, .max_bytes = 1 << 20, .max_entries = 100};
    PycLayer *layer = NULL;
    PYC_AUTO_FD here = openat(root, "layer", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (here >= 0)
        CHECK(pyc_remove_tree(root, "layer", NULL) == 0);
    pyc_close_fd(&here);
    CHECK(mkdirat(root, "layer", 0755) == 0);
    here = openat(root, "layer", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    memset(err, 0, sizeof *err);
    int r = pyc_layer_open(here, &options, &layer, err);
    for (size_t at = 0; r == 0 && at < a->size; at += piece)
        r = pyc_layer_feed(layer, a->bytes + at, a->size - at < piece ? a->size - at : piece, err);
    if (r == 0)
        r = pyc_layer_feed(layer, end, sizeof end, err);
    if (r == 0)
        r = pyc_layer_finish(layer, stats, err);
    else
        CHECK(pyc_layer_feed(layer, end, sizeof end, NULL) == r); /* the first failure is final */
    pyc_layer_free(layer);
    CHECK((r < 0) == (err->code != 0));
    return r;
}

static int apply(const Archive *a) {
    PycLayerStats stats;
    PycError err;
    int r = apply_in(a, 1000, 0, &stats, &err), again = apply_in(a, 7, 0, &stats, &err);
    CHECK(r == again); /* pieces make no difference */
    return r;
}

static struct stat look(const char *path) {
    char full[256];
    struct stat st = {0};
    (void)snprintf(full, sizeof full, "layer/%s", path);
    if (fstatat(root, full, &st, AT_SYMLINK_NOFOLLOW) < 0)
        st.st_mode = 0;
    return st;
}

static int is_opaque(const char *path) {
    char full[256], value[2] = "";
    (void)snprintf(full, sizeof full, "layer/%s", path);
    PYC_AUTO_FD fd = openat(root, full, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && fgetxattr(fd, "trusted.overlay.opaque", value, sizeof value) == 1 && value[0] == 'y';
}

static void kinds_and_attributes(void) {
    Archive a = {0};
    add(&a, '5', "dir/", "", "", 0);
    uint8_t *header = add(&a, '0', "dir/file", "", "hello", 5);
    memcpy(header + 100, "0004755", 8);
    memcpy(header + 108, "\x80\0\0\0\0\x10\0\1", 8); /* base-256: 1048577 */
    seal(header);
    add(&a, '1', "hard", "dir/file", "", 0);
    add(&a, '2', "soft", "/etc/passwd", "", 0);
    add(&a, '6', "fifo", "", "", 0);
    CHECK(apply(&a) == 0);
    struct stat st = look("dir/file");
    CHECK(st.st_mode == (S_IFREG | 04755) && st.st_uid == 1048577 && st.st_size == 5 && st.st_nlink == 2);
    CHECK(st.st_mtim.tv_sec == 0777 && look("hard").st_ino == st.st_ino);
    CHECK(S_ISLNK(look("soft").st_mode) && S_ISFIFO(look("fifo").st_mode));
    CHECK(look("dir").st_mtim.tv_sec == 0777);
}

static void pax_times_and_names(void) {
    Archive a = {0};
    add_pax(&a, "mtime", "-1.25", 5);
    add(&a, '0', "old", "", "", 0);
    add_pax(&a, "path", "from/pax", 8);
    add(&a, '0', "ignored", "", "", 0);
    add(&a, 'L', "././@LongLink", "", "from/gnu", 9);
    add(&a, '0', "ignored", "", "", 0);
    CHECK(apply(&a) == 0);
    struct stat st = look("old");
    CHECK(st.st_mtim.tv_sec == -2 && st.st_mtim.tv_nsec == 750000000);
    CHECK(look("from/pax").st_mode && look("from/gnu").st_mode && !look("ignored").st_mode);
    CHECK(look("from").st_mode == (S_IFDIR | 0755));
}

static void whiteouts(void) {
    Archive a = {0};
    PycLayerStats stats;
    PycError err;
    add(&a, '0', "dir/.wh.name", "", "", 0);
    add(&a, '0', "hidden/.wh..wh..opq", "", "", 0);
    add(&a, '0', ".wh.again", "", "", 0);
    add(&a, '0', "again/file", "", "", 0);
    add(&a, '5', "first", "", "", 0);
    add(&a, '0', ".wh.first", "", "", 0);
    add(&a, '5', ".wh..wh.plnk", "", "", 0);
    CHECK(apply_in(&a, 1000, 0, &stats, &err) == 0 && stats.whiteouts == 4 && !stats.root_opaque);
    CHECK(S_ISCHR(look("dir/name").st_mode) && look("dir/name").st_rdev == 0);
    CHECK(is_opaque("hidden") && is_opaque("again") && is_opaque("first") && !is_opaque("dir"));
    CHECK(!look(".wh..wh.plnk").st_mode && look("again/file").st_mode);
    static const char *const bad[] = {".wh.", ".wh..", ".wh...", ".wh.x/y", "dir/.wh.."};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        a.size = 0;
        add(&a, '0', bad[i], "", "", 0);
        CHECK(apply(&a) == -EBADMSG);
    }
}

static void the_last_member_wins(void) {
    Archive a = {0};
    add(&a, '0', "x/y/z", "", "", 0);
    add(&a, '0', "x", "", "now a file", 10);
    add(&a, '2', "link", "x", "", 0);
    add(&a, '0', "link", "", "new", 3);
    add(&a, '5', "file-then-dir", "", "", 0);
    add(&a, '0', "file-then-dir", "", "", 0);
    add(&a, '5', "file-then-dir", "", "", 0);
    add(&a, '0', "file-then-dir/in", "", "", 0);
    CHECK(apply(&a) == 0);
    CHECK(look("x").st_size == 10 && look("link").st_size == 3 && look("file-then-dir/in").st_mode);
}

static void nothing_leaves(void) {
    Archive a = {0};
    static const char *const climbing[] = {"../out", "a/../../out", "..", "a/.."};
    for (size_t i = 0; i < sizeof climbing / sizeof *climbing; i++) {
        a.size = 0;
        add(&a, '0', climbing[i], "", "", 0);
        CHECK(apply(&a) == -EXDEV);
        a.size = 0;
        add(&a, '1', "link", climbing[i], "", 0);
        CHECK(apply(&a) == -EXDEV);
    }
    a.size = 0;
    add(&a, '2', "up", "../../..", "", 0);
    add(&a, '2', "abs", "/new/place", "", 0);
    add(&a, '0', "up/out", "", "", 0);
    add(&a, '0', "abs/file", "", "", 0);
    add(&a, '0', "/absolute", "", "", 0);
    CHECK(apply(&a) == 0);
    CHECK(look("out").st_mode && look("new/place/file").st_mode && look("absolute").st_mode);
    CHECK(faccessat(root, "out", F_OK, AT_SYMLINK_NOFOLLOW) < 0);
    a.size = 0;
    add(&a, '2', "loop", "loop", "", 0);
    add(&a, '0', "loop/file", "", "", 0);
    CHECK(apply(&a) == -ELOOP);
    a.size = 0;
    add(&a, '1', "link", "missing", "", 0);
    CHECK(apply(&a) == -ENOENT);
}

static void foreign_xattrs_are_dropped(void) {
    Archive a = {0};
    PycLayerStats stats;
    PycError err;
    add_pax(&a, "SCHILY.xattr.trusted.overlay.redirect", "/etc", 4);
    add(&a, '5', "dir", "", "", 0);
    add_pax(&a, "SCHILY.xattr.user.overlay.opaque", "y", 1);
    add(&a, '5', "dir2", "", "", 0);
    CHECK(apply_in(&a, 1000, 0, &stats, &err) == 0 && stats.xattrs_dropped == 2);
    CHECK(!is_opaque("dir2"));
}

static void sparse_files(void) {
    Archive a = {0};
    char map[512] = "2\n0\n3\n100000\n4\n";
    char content[512 + 7];
    memcpy(content, map, sizeof map);
    memcpy(content + 512, "abcdefg", 7);
    char pax[512];
    int n = snprintf(
        pax, sizeof pax,
        "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n24 GNU.sparse.name=hole\n30 GNU.sparse.realsize=200000\n");
    add(&a, 'x', "pax", "", pax, (size_t)n);
    add(&a, '0', "GNUSparseFile.1/hole", "", content, sizeof content);
    CHECK(apply(&a) == 0);
    struct stat st = look("hole");
    CHECK(st.st_size == 200000 && st.st_blocks * 512 < 100000);
    content[2] = '9'; /* overlaps nothing, but the sum is wrong: 0 -> 9, then 3 bytes; the end moves, the order stays */
    content[4] = '5';
    a.size = 0;
    add(&a, 'x', "pax", "", pax, (size_t)n);
    add(&a, '0', "GNUSparseFile.1/hole", "", content, sizeof content);
    CHECK(apply(&a) == -EBADMSG);
}

static void broken_archives(void) {
    Archive a = {0};
    PycLayerStats stats;
    PycError err;
    add(&a, '0', "file", "", "x", 1)[0] = 'g';
    CHECK(apply(&a) == -EBADMSG); /* checksum */
    a.size = 0;
    add(&a, 'x', "pax", "", "12 path=a\n", 10);
    CHECK(apply(&a) == -EBADMSG);
    a.size = 0;
    add_pax(&a, "path", "a\0b", 3);
    add(&a, '0', "file", "", "", 0);
    CHECK(apply(&a) == -EBADMSG);
    a.size = 0;
    add(&a, 'Q', "file", "", "", 0);
    CHECK(apply(&a) == -EOPNOTSUPP);
    a.size = 0;
    uint8_t *header = add(&a, '0', "file", "", "", 0);
    memcpy(header + 124, "77777777777", 12); /* 8 GiB, more than the limit of bytes */
    seal(header);
    CHECK(apply(&a) == -EFBIG);
    memcpy(header + 124, "\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", 12);
    seal(header);
    CHECK(apply(&a) == -EBADMSG);
    a.size = 0;
    for (int i = 0; i < 101; i++)
        add(&a, '2', "same", "x", "", 0);
    CHECK(apply_in(&a, 1000, 0, &stats, &err) == -EFBIG);
}

static void devices_are_optional(void) {
    Archive a = {0};
    PycLayerStats stats;
    PycError err;
    uint8_t *header = add(&a, '3', "null", "", "", 0);
    memcpy(header + 329, "0000001", 8);
    memcpy(header + 337, "0000003", 8);
    seal(header);
    CHECK(apply_in(&a, 1000, PYC_LAYER_NO_DEVICES, &stats, &err) == -EPERM && strcmp(err.path, "null") == 0);
    if (geteuid() == 0)
        CHECK(apply(&a) == 0 && look("null").st_rdev == (1 << 8 | 3));
}

static void truncation_is_seen(void) {
    Archive a = {0};
    PycLayerOptions options = {0};
    add(&a, '0', "file", "", "content", 7);
    for (size_t size = 0; size <= a.size; size += 128) {
        for (uint32_t flags = 0; flags <= PYC_LAYER_BARE_END; flags += PYC_LAYER_BARE_END) {
            PycLayer *layer = NULL;
            PycLayerStats stats;
            options.flags = flags;
            CHECK(pyc_remove_tree(root, "layer", NULL) == 0 && mkdirat(root, "layer", 0755) == 0);
            PYC_AUTO_FD here = openat(root, "layer", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            CHECK(pyc_layer_open(here, &options, &layer, NULL) == 0);
            CHECK(pyc_layer_feed(layer, a.bytes, size, NULL) == 0);
            int whole = flags && (size == 0 || size == a.size);
            CHECK(pyc_layer_finish(layer, &stats, NULL) == (whole ? 0 : -EBADMSG));
            pyc_layer_free(layer);
        }
    }
}

int main(void) {
    char base[] = "/dev/shm/pyc-test-XXXXXX";
    if (!mkdtemp(base) || (root = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) {
        perror(base);
        return 1;
    }
    PycError err = {0};
    int probe = pyc_open_in_root(root, "/", O_RDONLY, &err);
    if (probe == -ENOSYS) {
        fprintf(stderr, "layer: skipped, openat2(2) is not available here\n");
        (void)pyc_remove_tree(AT_FDCWD, base, NULL);
        return 77;
    }
    pyc_close_fd(&probe);
    kinds_and_attributes();
    pax_times_and_names();
    whiteouts();
    the_last_member_wins();
    nothing_leaves();
    foreign_xattrs_are_dropped();
    sparse_files();
    broken_archives();
    devices_are_optional();
    truncation_is_seen();
    (void)close(root);
    (void)pyc_remove_tree(AT_FDCWD, base, NULL);
    fprintf(stderr, "%s\n", failures ? "FAILED" : "layer: all tests passed");
    return failures != 0;
}
