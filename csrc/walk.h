/* Walks a tree, or what differs between an overlay's upper directory and what lies below it, in the order of names.
 * openat2(2) with RESOLVE_BENEATH, readdir(3), listxattr(2); kernel's filesystems/overlayfs for the marks in an upper.
 * Called by changes.c. What it walks is hostile, but for moves of directories nobody should write to it meanwhile.
 */
#ifndef PYC_WALK_H
#define PYC_WALK_H
#include <limits.h>
#include <sys/stat.h>

#include "error.h"

typedef struct PycXattr {
    const char *name;
    const uint8_t *value;
    size_t size;
} PycXattr;

/* The extended attributes of an inode that belong to the content, sorted by name. Zeroed before the first use. */
typedef struct PycXattrs {
    PycXattr *items;
    size_t count;
    char *list; /* names as the kernel gives them */
    uint8_t *values;
    size_t items_room, list_room, values_room;
    int metacopy; /* among what was left out: the content is in a lower layer */
} PycXattrs;

typedef struct PycWalkSource {
    int root;     /* the tree, or the upper directory */
    int base;     /* what lies below an upper, or another whole tree to compare with; -1: all counts as added */
    int merged;   /* both as one tree: where redirects and metacopies are resolved; -1: these fail */
    int overlay;  /* the tree is an upper: its marks have their meaning */
    int contents; /* for an archive: files are opened, sockets left out, and directories that hide all below them come
                        with an 'O' instead of a 'D' for each name */
    uint64_t skip_dev, skip_inode; /* a directory to leave out, or 0 */
} PycWalkSource;

typedef struct PycWalkItem {
    char kind;        /* 'A'dded, 'C'hanged, 'D'eleted; 'O': the directory hides what lies below */
    const char *path; /* below the root, which is "" */
    const char *name; /* the last part of path; in `parent` */
    int parent;
    int fd;  /* of a regular file or a directory; -1 otherwise */
    int own; /* a directory that is different itself, not only something in it */
    struct stat st;
} PycWalkItem;

typedef struct PycWalk PycWalk;

/* The descriptors stay the caller's and must outlive the walk. */
int pyc_walk_open(const PycWalkSource *source, PycWalk **ret_walk, PycError *err);
/* Returns 1 with the next item, whose pointers and descriptors are good until the next call; 0 at the end. */
int pyc_walk_next(PycWalk *walk, PycWalkItem *ret_item, PycError *err);
void pyc_walk_free(PycWalk *walk);

/* Read the attributes of an open inode, or, with fd -1, of `name` in `parent`, which is not followed. */
int pyc_xattrs_read(PycXattrs *xattrs, int fd, int parent, const char *name, const char *path, PycError *err);
void pyc_xattrs_free(PycXattrs *xattrs);

#endif
