/* Writes the headers of tar archives: the same bytes for the same member. What ustar cannot say goes into PAX records
 * (pax(1) of POSIX.1-2017); attributes as SCHILY.xattr.*, holes in GNU's sparse format 1.0, times to the nanosecond.
 * No kernel interface. Called by changes.c.
 */
#ifndef PYC_TAR_WRITE_H
#define PYC_TAR_WRITE_H
#include "walk.h"

/* Bytes that wait to be taken. */
typedef struct PycBytes {
    uint8_t *data;
    size_t size, room;
} PycBytes;

typedef struct PycExtent {
    uint64_t offset, size;
} PycExtent;

typedef struct PycTarHead {
    char type; /* '0' file, '1' hard link, '2' symlink, '3' character, '4' block device, '5' directory, '6' fifo */
    const char *path; /* with a slash at the end of a directory's */
    const char *link; /* or "" */
    uint32_t mode;
    uint64_t uid, gid;
    int64_t mtime;
    uint32_t mtime_nsec;
    uint32_t major, minor;
    uint64_t size;            /* of the content */
    const PycXattrs *xattrs;  /* or NULL */
    const PycExtent *extents; /* where a file with holes has data; NULL: no holes */
    size_t n_extents;
} PycTarHead;

/* Append the blocks that come before the content: its map included, when it has holes. Returns 0 or -errno; stored: the
 * bytes of content that have to follow. */
int pyc_tar_put_head(PycBytes *out, const PycTarHead *head, uint64_t *ret_stored);
int pyc_bytes_put(PycBytes *out, const void *data, size_t size);
int pyc_bytes_zeros(PycBytes *out, size_t size);

#endif
