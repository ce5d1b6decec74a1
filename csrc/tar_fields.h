/* Fields of tar headers, PAX records and sparse maps.
 * No kernel interface.
 * Called by tar.c only.
 */
#ifndef PYC_TAR_FIELDS_H
#define PYC_TAR_FIELDS_H
#include "tar.h"

typedef struct PycTarText {
    uint8_t *data;
    size_t size, room;
} PycTarText;

typedef struct PycTarSegments {
    PycTarSegment *items;
    size_t count, room;
} PycTarSegments;

typedef enum PycTarSparse {
    PYC_TAR_NOT_SPARSE,
    PYC_TAR_SPARSE_IN_HEADER,  /* PAX 0.0 and 0.1: the map is in the records */
    PYC_TAR_SPARSE_IN_CONTENT, /* PAX 1.0: it opens the content */
} PycTarSparse;

/* What a PAX header says about the next member; pointers go into its text. */
typedef struct PycTarExtra {
    const char *path, *link;
    int has_size, has_uid, has_gid, has_mtime;
    uint64_t size, uid, gid;
    int64_t mtime;
    uint32_t mtime_nsec;
    PycTarSparse sparse;
    const char *sparse_name;
    uint64_t real_size, sparse_major, sparse_minor;
    uint64_t pending_offset; /* of a 0.0 map, until its length arrives */
    int has_pending_offset;
    PycTarXattr *xattrs;
    size_t n_xattrs, room;
} PycTarExtra;

/* The decimal numbers of a PAX 1.0 map, read block by block. */
typedef struct PycTarMapText {
    uint64_t number, pairs, offset;
    int digits, has_pairs, has_offset;
} PycTarMapText;

int pyc_tar_text_reserve(PycTarText *text, size_t size);
void pyc_tar_text_free(PycTarText *text);
void pyc_tar_extra_clear(PycTarExtra *extra);
void pyc_tar_extra_free(PycTarExtra *extra);
int pyc_tar_segments_add(PycTarSegments *map, uint64_t offset, uint64_t size);
int pyc_tar_segments_valid(const PycTarSegments *map, uint64_t stored, uint64_t size);
void pyc_tar_segments_free(PycTarSegments *map);

int pyc_tar_checksum_good(const uint8_t *block);
int pyc_tar_read_size(const uint8_t *block, uint64_t *ret_size);
void pyc_tar_read_name(const uint8_t *block, char ret_path[258]);
int pyc_tar_read_member(const uint8_t *block, const PycTarExtra *extra, char ret_path[258], char ret_link[101],
                        PycTarMember *ret_member, PycError *err);
int pyc_tar_read_pax(PycTarText *text, PycTarExtra *ret_extra, PycTarSegments *ret_map, PycError *err);
/* The maps: 1 when more blocks follow, 0 when complete, -errno. */
int pyc_tar_read_old_map(const uint8_t *block, PycTarSegments *ret_map, uint64_t *ret_real_size);
int pyc_tar_read_old_map_more(const uint8_t *block, PycTarSegments *ret_map);
int pyc_tar_read_map_text(PycTarMapText *text, const uint8_t *block, PycTarSegments *ret_map);

#endif
