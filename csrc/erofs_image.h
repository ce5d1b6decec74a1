/* The parts of the erofs writer, between each other: how holes become chunks, how layers become one, how a tree becomes
 * an image. pwrite(2).
 * Called by erofs.c.
 */
#ifndef PYC_EROFS_IMAGE_H
#define PYC_EROFS_IMAGE_H
#include "erofs.h"
#include "erofs_tree.h"
#include "tar.h"

enum {
    PYC_EROFS_BLOCK = 512, /* as in tar, where content begins at each multiple of it */
    PYC_EROFS_BLOCK_BITS = 9,
    PYC_EROFS_MAX_CHUNK_BITS = 40, /* 9, and what fits into 5 bits */
};

typedef struct PycErofsDevice {
    char tag[PYC_EROFS_TAG];
    uint64_t blocks;
} PycErofsDevice;

/* An index under construction: content that cannot be used where it lies in a tar is written to it at once. */
typedef struct PycErofsImage {
    int fd;
    uint64_t end; /* of what is written, or is to be */
    PycErofsDevice *devices;
    uint32_t n_devices;
    const char *opaque; /* xattr that marks a directory as hiding the lower ones; NULL: no overlay */
} PycErofsImage;

/* Where content may begin, behind the super block and the table of devices. */
uint64_t pyc_erofs_first_free(uint32_t devices);

/* Size of the chunks of a file, as a power of 2: what costs least. 0: it is all in one piece. */
uint8_t pyc_erofs_choose_chunks(const PycTarMember *m);
/* Fill the map of a file; ret_copied: some content has to be copied into the image. */
int pyc_erofs_map_chunks(PycErofsImage *image, PycTree *tree, uint32_t inode, const PycTarMember *m, int *ret_copied,
                         PycError *err);
int pyc_erofs_copy_content(const PycErofsImage *image, const PycTree *tree, uint32_t inode, uint64_t offset,
                           const uint8_t *data, size_t size, const char *path, PycError *err);

/* Put the layer at tree->root onto the one at `base`, as an overlay would; whiteouts end here. */
int pyc_erofs_merge(PycTree *tree, uint32_t *base, PycError *err);

int pyc_erofs_write_image(PycErofsImage *image, PycTree *tree, const uint8_t uuid[16], PycError *err);

#endif
