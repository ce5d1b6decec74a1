/* A tree of files in memory, compact: what erofs.c builds from archives and erofs_write.c writes.
 * No kernel interface. Everything is an index into an array, so that 32 bits are enough: about 100 bytes an entry.
 * Called by erofs.c, erofs_merge.c and erofs_write.c.
 */
#ifndef PYC_EROFS_TREE_H
#define PYC_EROFS_TREE_H
#include <limits.h>
#include <sys/stat.h>

#include "error.h"

typedef struct PycInode {
    uint64_t size;
    int64_t mtime;
    uint32_t nsec, uid, gid;
    uint32_t links;  /* names that it has, counted when it is laid out; until then how deep a directory is */
    uint32_t xattrs; /* where in `xattrs`, in units of 4 bytes; 0: none */
    /* of a directory its first name; of a symbolic link where in `texts` its target is; of a device its number; of a
     * file the block of its device that it begins at, or where in `maps` its chunks are */
    uint32_t value;
    uint32_t parent; /* of a directory: the directory that it is in; of the root itself */
    uint32_t nid;    /* where it is in the image, in units of 32 bytes; 0: not laid out yet */
    uint32_t data;   /* block of the image with what does not fit beside it */
    uint16_t mode;
    uint16_t device;    /* which holds the content of a file, from 1; 0: the image itself */
    uint8_t described;  /* directory: by the archive itself, not only by names below it */
    uint8_t opaque;     /* directory: hides all that lower layers have in it */
    uint8_t chunk_bits; /* file with a map: of the size of its chunks; 0: all in one piece */
    uint8_t inlined;    /* the end of its data is beside it */
} PycInode;

typedef struct PycName {
    uint32_t chain;     /* the next of the same bucket */
    uint32_t hash;      /* of directory and text */
    uint32_t directory; /* that it is in */
    uint32_t next;      /* in that directory */
    uint32_t inode;     /* 0: there is no such name any more */
    uint32_t text;      /* where in `texts` */
    uint8_t size;
} PycName;

/* Arrays begin with an element that stands for nothing, so that 0 is no index. */
typedef struct PycTree {
    PycInode *inodes;
    PycName *names;
    char *texts;      /* names and targets, one after the other, targets with their NUL */
    uint32_t *xattrs; /* sets of entries as they are on disk, each after its size in bytes */
    uint64_t *maps;   /* chunks of files with holes: device << 32 | block; PYC_TREE_HOLE */
    uint32_t *buckets;
    size_t n_inodes, n_names, texts_size, n_xattrs, n_maps, n_buckets; /* the last a power of 2 */
    size_t inodes_room, names_room, texts_room, xattrs_room, maps_room;
    uint64_t memory, max_memory; /* bytes of all arrays */
    uint64_t secret;             /* of the hash: names that fall into one bucket cannot be chosen */
    uint32_t root;               /* of the layer that is being read */
    uint32_t implied;            /* a directory as it is made when nothing describes it, in no place */
    uint32_t uid, gid;           /* of what no archive describes */
    int overlay;                 /* a device 0/0 is a whiteout */
    uint64_t made;               /* directories because a path needed them */
    uint64_t max_made;
    /* the directory asked for last */
    uint32_t last;
    size_t last_size;
    char last_path[PATH_MAX];
    char *walk; /* room for a path and the links in it */
} PycTree;

#define PYC_TREE_HOLE UINT64_MAX

int pyc_tree_open(PycTree *tree, uint64_t max_memory, PycError *err);
void pyc_tree_close(PycTree *tree);

/* Each of these may move the arrays: keep indices, not pointers. They return 0 and -ENOMEM or -EFBIG, err filled. */
int pyc_tree_add_inode(PycTree *tree, uint16_t mode, uint32_t *ret_inode, PycError *err);
int pyc_tree_add_directory(PycTree *tree, uint32_t parent, uint32_t *ret_inode, const char *path, PycError *err);
int pyc_tree_add_text(PycTree *tree, const char *text, size_t size, uint32_t *ret_text, PycError *err);
int pyc_tree_add_xattrs(PycTree *tree, const uint8_t *entries, size_t size, uint32_t *ret_xattrs, PycError *err);
int pyc_tree_add_map(PycTree *tree, uint64_t chunks, uint32_t *ret_map, PycError *err);
/* The name in the directory, made if it is missing (with inode 0, nothing). */
int pyc_tree_name(PycTree *tree, uint32_t directory, const char *name, size_t size, uint32_t *ret_name, PycError *err);
/* The same when it is there and something has it; else 0. */
uint32_t pyc_tree_find(const PycTree *tree, uint32_t directory, const char *name, size_t size);

/* The directory `path` (of `size` bytes, clean) of the layer; symbolic links are followed as if its root were "/".
 * With `make`, what is missing is made. */
int pyc_tree_parent(PycTree *tree, const char *path, size_t size, int make, uint32_t *ret_directory, PycError *err);
/* A path may resolve to something else from now on. */
void pyc_tree_forget(PycTree *tree);

static inline int pyc_tree_is_whiteout(const PycTree *tree, uint32_t inode) {
    return tree->overlay && S_ISCHR(tree->inodes[inode].mode) && tree->inodes[inode].value == 0;
}

#endif
