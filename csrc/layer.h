/* Apply an image layer (a tar) to a directory, as the lower of an overlay, without ever leaving that directory.
 * openat2(2), mknodat(2), fsetxattr(2), futimens(3). OCI image spec, "layer.md".
 * Called by pycontainer.distribution.layer through cffi, with the GIL released.
 */
#ifndef PYC_LAYER_H
#define PYC_LAYER_H
#include "pyc.h"

enum {
    PYC_LAYER_PLAIN = 1,      /* an ordinary tree: whiteout names mean nothing */
    PYC_LAYER_USERXATTR = 2,  /* user.overlay.* instead of trusted.overlay.*, for overlays mounted with userxattr */
    PYC_LAYER_NO_DEVICES = 4, /* refuse device nodes */
    PYC_LAYER_NO_OWNERS = 8,  /* leave everything to the caller's ids */
    PYC_LAYER_BARE_END = 16,  /* accept an archive without its end marker: a digest vouches that it is complete */
};

typedef struct PycLayerOptions {
    uint32_t flags;
    uint64_t max_bytes;   /* of file content written; 0: no limit */
    uint64_t max_entries; /* members and missing parents; 0: no limit */
    uint64_t max_meta;    /* bytes of one PAX header or GNU long name; 0: 1 MiB */
    uint64_t max_tree;    /* bytes of memory for the tree of an index, see erofs.h; 0: no limit */
} PycLayerOptions;

typedef struct PycLayerStats {
    uint64_t entries;        /* members, whiteouts included */
    uint64_t bytes;          /* of file content written */
    uint64_t whiteouts;      /* names and directories hidden */
    uint64_t xattrs_dropped; /* refused for their meaning to the host, or not supported by the file system */
    uint64_t implied;        /* directories that the archive needed and did not describe, or more */
    uint32_t root_opaque;    /* the layer hides everything below it, which an xattr on its root cannot say */
} PycLayerStats;

typedef struct PycLayer PycLayer;

/* `dirfd` is duplicated. Nobody else may write below it until pyc_layer_free. */
PYC_API int pyc_layer_open(int dirfd, const PycLayerOptions *options, PycLayer **ret_layer, PycError *err);
/* Take the next bytes of the uncompressed archive. What follows its end is ignored. The first failure is final. */
PYC_API int pyc_layer_feed(PycLayer *layer, const uint8_t *data, size_t size, PycError *err);
/* Check that the archive is complete and set what had to wait. Does not sync. */
PYC_API int pyc_layer_finish(PycLayer *layer, PycLayerStats *ret_stats, PycError *err);
PYC_API void pyc_layer_free(PycLayer *layer);

#endif
