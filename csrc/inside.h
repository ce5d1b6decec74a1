/* Work inside one directory that nothing leaves: parents resolved and made under a root, times set later.
 * openat2(2) with RESOLVE_IN_ROOT, mkdirat(2), unlinkat(2).
 * Called by layer.c. Nobody else may write below the root meanwhile.
 */
#ifndef PYC_INSIDE_H
#define PYC_INSIDE_H
#include <limits.h>
#include <sys/stat.h>
#include <time.h>

#include "error.h"

enum { PYC_INSIDE_SLOTS = 16 };

typedef struct PycInsideSlot {
    int fd; /* -1: empty */
    uint64_t used;
    size_t size; /* of path; SIZE_MAX: forgotten, the descriptor may still be in use */
    uint32_t hash;
    char path[PATH_MAX];
} PycInsideSlot;

/* The times of a directory, to be set when nothing is written into it any more. */
typedef struct PycInsideTime {
    uint64_t inode;
    int64_t sec;
    uint32_t nsec;
    uint16_t shared, rest; /* bytes of the path in common with the one before, and after that */
} PycInsideTime;

typedef struct PycInside {
    int root;
    const char *opaque; /* xattr that marks a directory as hiding the lower ones; NULL: no overlay */
    uint64_t made;      /* directories made because a path needed them */
    uint64_t max_made;
    uint64_t clock;
    PycInsideSlot *slots; /* PYC_INSIDE_SLOTS of the parents used last */
    PycInsideTime *times;
    size_t n_times, times_room;
    char *names; /* the rests, one after the other */
    size_t names_size, names_room;
    size_t last_size;
    char last[PATH_MAX];
} PycInside;

int pyc_inside_open(int dirfd, const char *opaque, uint64_t max_made, PycInside *ret_inside, PycError *err);
void pyc_inside_close(PycInside *in);

/* Clean an archive's name: no leading, double or final slash, no "."; refuses ".." and what is too long. */
int pyc_inside_clean(const char *name, char ret_path[PATH_MAX], size_t *ret_size, PycError *err);
/* The directory `path` (of `size` bytes, clean) below the root; symbolic links are followed as if the root were "/".
 * With `make`, what is missing is made (0755, our own ids). The descriptor (O_PATH) stays `in`'s;
 * it is good until 15 other parents were asked for. */
int pyc_inside_parent(PycInside *in, const char *path, size_t size, int make, int *ret_fd, PycError *err);
/* Make way for something else named `name` in `parent`. */
int pyc_inside_remove(PycInside *in, int parent, const char *name, const struct stat *st, const char *path,
                      PycError *err);
int pyc_inside_mark_opaque(PycInside *in, int parent, const char *name, const char *path, PycError *err);

int pyc_inside_remember_time(PycInside *in, const char *path, uint64_t inode, struct timespec time, PycError *err);
int pyc_inside_set_times(PycInside *in, PycError *err);

static inline int pyc_inside_is_whiteout(const struct stat *st) { return S_ISCHR(st->st_mode) && st->st_rdev == 0; }

#endif
