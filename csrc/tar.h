/* A push parser of tar archives (ustar, PAX, GNU, star): feed it chunks, it calls back for members and their content.
 * No kernel interface at all, so that it can be fuzzed alone. Formats: pax(1) of POSIX.1-2017, GNU tar manual appendix D.
 * Called by layer.c and erofs.c.
 */
#ifndef PYC_TAR_H
#define PYC_TAR_H
#include "error.h"

enum { PYC_TAR_BLOCK = 512 };

typedef struct PycTarXattr {
    const char *name;
    const uint8_t *value;
    size_t size;
} PycTarXattr;

/* Kinds of members; other type flags are folded into these or refused. */
typedef enum PycTarKind {
    PYC_TAR_FILE,
    PYC_TAR_HARDLINK,
    PYC_TAR_SYMLINK,
    PYC_TAR_CHAR,
    PYC_TAR_BLOCKDEV,
    PYC_TAR_DIRECTORY,
    PYC_TAR_FIFO,
} PycTarKind;

/* A run of bytes of a file that the archive holds; what is between two of them is a hole. */
typedef struct PycTarSegment {
    uint64_t offset, size;
} PycTarSegment;

/* One member; the pointers live until its end_member call has returned. */
typedef struct PycTarMember {
    const char *path;
    const char *link; /* target of a hard or symbolic link, "" otherwise */
    PycTarKind kind;
    uint32_t mode; /* permission bits with setuid, setgid and sticky */
    uint64_t uid, gid;
    int64_t mtime;
    uint32_t mtime_nsec;
    uint64_t major, minor;
    uint64_t size;   /* of the file, holes included */
    uint64_t stored; /* bytes of content in the archive */
    uint64_t at;     /* where in the archive the first of them is; they are all in a row */
    int sparse;
    const PycTarSegment *segments; /* what of the file they are, in order; one for a file without holes */
    size_t n_segments;
    const PycTarXattr *xattrs;
    size_t n_xattrs;
} PycTarMember;

/* What the owner of the parser does with it; each returns 0 or -errno with *err filled, which stops the parser. */
typedef struct PycTarActions {
    int (*member)(void *self, const PycTarMember *member, PycError *err);
    int (*content)(void *self, uint64_t offset, const uint8_t *data, size_t size, PycError *err);
    int (*end_member)(void *self, PycError *err);
} PycTarActions;

typedef struct PycTar PycTar;

/* `max_meta` bounds the bytes of one extended header (PAX records, GNU long name) kept in memory. */
int pyc_tar_open(const PycTarActions *actions, void *self, uint64_t max_meta, PycTar **ret_tar, PycError *err);
int pyc_tar_feed(PycTar *tar, const uint8_t *data, size_t size, PycError *err);
/* Go over what comes next and has no meaning to the parser (content, padding, what follows the end), without its
 * content actions; the next bytes to feed are so many further on. UINT64_MAX after the end of the archive. */
int pyc_tar_pass(PycTar *tar, uint64_t *ret_bytes, PycError *err);
/* Check that the archive is complete; `bare_end` accepts one that lacks the two zero blocks. */
int pyc_tar_finish(PycTar *tar, int bare_end, PycError *err);
void pyc_tar_free(PycTar *tar);

#endif
