/* What a container changed, as a list or as a layer; and any tree as a tar. Read piece by piece, in bounded memory.
 * Interfaces of walk.h; pread(2), readlinkat(2), lseek(2). OCI image spec, "layer.md".
 * Called by pycontainer.distribution.changes through cffi, with the GIL released.
 */
#ifndef PYC_CHANGES_H
#define PYC_CHANGES_H
#include "pyc.h"

enum {
    PYC_CHANGES_LIST = 1,     /* "A", "C" or "D", a path and a NUL for each change, instead of an archive */
    PYC_CHANGES_UPPER = 2,    /* the tree is the upper directory of an overlay: its marks have their meaning */
    PYC_CHANGES_RESERVED = 4, /* refuse names that mean deletions in a layer */
    PYC_CHANGES_SECONDS = 8,  /* no fractions of seconds */
};

typedef struct PycChangesOptions {
    uint32_t flags;
    int32_t base; /* what lies below the upper, or the tree to compare a whole one with; -1: all counts as added */
    int32_t
        merged; /* both together, where moved directories and files copied up without content are read; -1: they fail */
    uint64_t skip_dev, skip_inode; /* a directory to leave out, or 0 */
} PycChangesOptions;

typedef struct PycChangesStats {
    uint64_t entries; /* members of the archive, or lines of the list */
    uint64_t bytes;   /* of content */
} PycChangesStats;

typedef struct PycChanges PycChanges;

/* `root` and the descriptors of the options are duplicated. */
PYC_API int pyc_changes_open(int root, const PycChangesOptions *options, PycChanges **ret_changes, PycError *err);
/* Fill a buffer. Returns 0; ret_size is less than `size` only at the end. The first failure is final. */
PYC_API int pyc_changes_read(PycChanges *changes, uint8_t *buffer, size_t size, size_t *ret_size, PycError *err);
PYC_API void pyc_changes_stats(const PycChanges *changes, PycChangesStats *ret_stats);
PYC_API void pyc_changes_free(PycChanges *changes);

#endif
