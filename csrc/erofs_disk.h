/* What is where in an erofs image, version 1, as far as we write it.
 * Linux, Documentation/filesystems/erofs.rst, "On-disk details".
 * Called by erofs.c and erofs_write.c.
 */
#ifndef PYC_EROFS_DISK_H
#define PYC_EROFS_DISK_H
#include <linux/limits.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "erofs is little-endian, and so is what is written here"
#endif

enum {
    PYC_EROFS_SUPER_AT = 1024,
    PYC_EROFS_DEVICES_AT = 1152, /* right behind the super block, and a multiple of the slots' size */
    PYC_EROFS_SLOT = 32,         /* of inodes */
};
static const uint32_t pyc_erofs_magic = 0xe0f5e1e2;

/* A feature that an old kernel may ignore. There is one more, a checksum of the super block: programs of erofs-utils crash
 * over it when blocks are smaller than 1024 bytes, and mkfs.erofs leaves it out then. */
enum { PYC_EROFS_HAS_MTIME = 2 };
enum { PYC_EROFS_HAS_CHUNKS = 4, PYC_EROFS_HAS_DEVICES = 8 }; /* features that it has to know */

typedef struct PycErofsSuper {
    uint32_t magic, checksum, compatible;
    uint8_t block_bits, extra_slots;
    uint16_t root_nid;
    uint64_t inodes, build_time;
    uint32_t build_nsec, blocks, meta_block, xattr_block;
    uint8_t uuid[16], label[16];
    uint32_t incompatible;
    uint16_t compression, devices, device_slot; /* the last: where the table is, in units of 128 bytes */
    uint8_t directory_block_bits, unused[37];
} PycErofsSuper;
_Static_assert(sizeof(PycErofsSuper) == 128, "the size of the super block");

typedef struct PycErofsSlot {
    char tag[64];
    uint32_t blocks, mapped; /* mapped: where it would be if all were one device */
    uint8_t unused[56];
} PycErofsSlot;
_Static_assert(sizeof(PycErofsSlot) == 128, "the size of a device slot");

/* How the data of an inode lies: `format` is 1 (this long form), and one of these from bit 1 on. */
enum { PYC_EROFS_PLAIN = 0, PYC_EROFS_INLINE = 2, PYC_EROFS_CHUNKS = 4 };
enum { PYC_EROFS_CHUNKS_INDEXED = 0x20 };
static const uint32_t pyc_erofs_nowhere = UINT32_MAX;

typedef struct PycErofsInode {
    uint16_t format, xattrs; /* xattrs: 0, or words of 4 bytes beyond the first 12 bytes, and 1 */
    uint16_t mode, unused;
    uint64_t size;
    uint32_t where; /* block, device number or chunk format */
    uint32_t number, uid, gid;
    int64_t mtime;
    uint32_t nsec, links;
    uint8_t unused2[16];
} PycErofsInode;
_Static_assert(sizeof(PycErofsInode) == 64, "the size of an inode");

enum { PYC_EROFS_XATTRS_HEAD = 12 }; /* all zero, as we neither share attributes nor filter names */

typedef struct PycErofsChunk {
    uint16_t unused, device;
    uint32_t block;
} PycErofsChunk;

typedef struct __attribute__((packed)) PycErofsEntry {
    uint64_t nid;
    uint16_t name; /* where in the block */
    uint8_t type, unused;
} PycErofsEntry;
_Static_assert(sizeof(PycErofsEntry) == 12, "the size of a directory entry");

enum {
    PYC_EROFS_XATTR_USER = 1,
    PYC_EROFS_XATTR_ACL_ACCESS = 2,
    PYC_EROFS_XATTR_ACL_DEFAULT = 3,
    PYC_EROFS_XATTR_TRUSTED = 4,
    PYC_EROFS_XATTR_SECURITY = 6,
};

/* The number for the beginning of an attribute's name, and the rest; 0: there is none. */
static inline uint8_t pyc_erofs_xattr_index(const char *name, const char **ret_rest) {
    static const struct {
        const char *prefix;
        uint8_t index, whole;
    } known[] = {
        {"user.", PYC_EROFS_XATTR_USER, 0},
        {"trusted.", PYC_EROFS_XATTR_TRUSTED, 0},
        {"security.", PYC_EROFS_XATTR_SECURITY, 0},
        {"system.posix_acl_access", PYC_EROFS_XATTR_ACL_ACCESS, 1},
        {"system.posix_acl_default", PYC_EROFS_XATTR_ACL_DEFAULT, 1},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t n = strlen(known[i].prefix);
        if (strncmp(name, known[i].prefix, n) == 0 && (!known[i].whole || !name[n])) {
            *ret_rest = name + n;
            return known[i].index;
        }
    }
    return 0;
}

/* An attribute: length of the name's rest, number of its prefix, size of the value; then both, padded to 4 bytes. */
static inline void pyc_erofs_xattr_head(uint8_t *entry, uint8_t length, uint8_t index, uint16_t size) {
    entry[0] = length;
    entry[1] = index;
    memcpy(entry + 2, &size, sizeof size);
}

static inline size_t pyc_erofs_xattr_size(const uint8_t *entry) {
    uint16_t size;
    memcpy(&size, entry + 2, sizeof size);
    return ((size_t)4 + entry[0] + size + 3) / 4 * 4;
}

#endif
