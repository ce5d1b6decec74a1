/* Index image layers (tars) as an erofs file system whose files have their content in the tars themselves, unpacked
 * nowhere: what the kernel mounts with the index as source and each tar as a further device.
 * pwrite(2), pread(2). Linux, Documentation/filesystems/erofs.rst; OCI image spec, "layer.md".
 * Called by pycontainer.distribution.erofs through cffi, with the GIL released.
 */
#ifndef PYC_EROFS_H
#define PYC_EROFS_H
#include "pyc.h"

enum { PYC_EROFS_TAG = 64 };

typedef struct PycErofsStats {
    uint64_t entries;        /* members, whiteouts included */
    uint64_t bytes;          /* of file content */
    uint64_t whiteouts;      /* names and directories hidden */
    uint64_t xattrs_dropped; /* refused for their meaning to the host, or that no file system would take */
    uint64_t implied;        /* directories that the archive needs and does not describe, or more */
    uint32_t root_opaque;    /* the layer hides everything below it, which an xattr on its root cannot say */
} PycErofsStats;

typedef struct PycErofs PycErofs;
struct PycLayerOptions; /* of layer.h */

/* `fd` is an empty regular file, the index to be; it stays the caller's. `layers` archives are to come, the lowest
 * first. One alone gives a lower of an overlay, with whiteouts; more are merged, and nothing of what is hidden stays.
 * The limits are those of each layer. */
PYC_API int pyc_erofs_open(int fd, const struct PycLayerOptions *options, uint32_t layers, PycErofs **ret_erofs,
                           PycError *err);
/* Take the next bytes of the uncompressed archive. The first failure is final. */
PYC_API int pyc_erofs_feed(PycErofs *erofs, const uint8_t *data, size_t size, PycError *err);
/* Take a whole archive from a file, of which little more than the headers is read. */
PYC_API int pyc_erofs_feed_file(PycErofs *erofs, int fd, PycError *err);
/* End one layer. `size` is that of the tar as a file; `tag` of at most 64 characters names it in the index. */
PYC_API int pyc_erofs_end(PycErofs *erofs, uint64_t size, const char *tag, PycErofsStats *ret_stats, PycError *err);
/* Write the index. The same archives and uuid give the same bytes. Does not sync. */
PYC_API int pyc_erofs_write(PycErofs *erofs, const uint8_t *uuid, uint64_t *ret_size, PycError *err);
PYC_API void pyc_erofs_free(PycErofs *erofs);

#endif
