/* libFuzzer target of the tar parser alone: what it hands out is consistent, whatever comes in and however it is cut.
 * No kernel interface, so that it also runs under a valgrind that does not know openat2(2).
 * Run by `make fuzz`, by `make check` and `make valgrind` with the seeds.
 */
#include <stdlib.h>
#include <string.h>

#include "tar.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_META = 1 << 16 };

/* What the parser said, folded into a number: equal for equal words. */
typedef struct Heard {
    uint64_t sum, stored, got, end;
    int open, result;
} Heard;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    return 0;
}

static void fold(Heard *heard, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        heard->sum = (heard->sum ^ ((const uint8_t *)data)[i]) * 1099511628211u;
}

static void insist(int condition) {
    if (!condition)
        abort();
}

static int on_member(void *self, const PycTarMember *m, PycError *err) {
    (void)err;
    Heard *heard = self;
    insist(!heard->open);
    heard->open = 1;
    heard->stored = m->stored;
    heard->got = heard->end = 0;
    insist(m->mode <= 07777 && m->mtime_nsec < 1000000000 && m->size <= INT64_MAX && m->stored <= m->size);
    fold(heard, m->path, strlen(m->path));
    fold(heard, m->link, strlen(m->link));
    fold(heard, &m->kind, sizeof m->kind);
    fold(heard, &m->uid, sizeof m->uid);
    fold(heard, &m->mtime, sizeof m->mtime);
    for (size_t i = 0; i < m->n_xattrs; i++) {
        fold(heard, m->xattrs[i].name, strlen(m->xattrs[i].name));
        fold(heard, m->xattrs[i].value, m->xattrs[i].size);
    }
    return 0;
}

static int on_content(void *self, uint64_t offset, const uint8_t *data, size_t size, PycError *err) {
    (void)err;
    Heard *heard = self;
    insist(heard->open && size && offset >= heard->end);
    heard->end = offset + size;
    heard->got += size;
    insist(heard->got <= heard->stored);
    fold(heard, data, size);
    return 0;
}

static int on_end(void *self, PycError *err) {
    (void)err;
    Heard *heard = self;
    insist(heard->open && heard->got == heard->stored);
    heard->open = 0;
    return 0;
}

static Heard parse(const uint8_t *data, size_t size, size_t piece) {
    static const PycTarActions actions = {on_member, on_content, on_end};
    Heard heard = {.sum = 14695981039346656037u};
    PycTar *tar = NULL;
    PycError err = {0};
    insist(pyc_tar_open(&actions, &heard, MAX_META, &tar, &err) == 0);
    for (size_t at = 0; heard.result == 0 && at < size; at += piece)
        heard.result = pyc_tar_feed(tar, data + at, size - at < piece ? size - at : piece, &err);
    if (heard.result == 0)
        heard.result = pyc_tar_finish(tar, 1, &err);
    insist((heard.result < 0) == (err.code != 0));
    pyc_tar_free(tar);
    return heard;
}

/* The first byte is there for the other target, which shares the seeds. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0)
        return 0;
    Heard whole = parse(data + 1, size - 1, size), pieces = parse(data + 1, size - 1, 1 + data[0] % 200);
    insist(whole.result == pieces.result && (whole.result < 0 || whole.sum == pieces.sum));
    return 0;
}
