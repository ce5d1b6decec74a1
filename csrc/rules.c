/* Judges members of a layer before anything is made of them; see rules.h.
 * No kernel interface, no state.
 * Called by layer.c and erofs.c.
 */
#include "rules.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

static const char whiteout_prefix[] = ".wh.";
static const char aufs_prefix[] = ".wh..wh.";
static const char opaque_name[] = ".wh..wh..opq";

static int is_prefix(const char *prefix, const char *text) { return strncmp(text, prefix, strlen(prefix)) == 0; }

PycLayerOptions pyc_rules_defaults(const PycLayerOptions *options) {
    PycLayerOptions o = *options;
    o.max_bytes = o.max_bytes ? o.max_bytes : UINT64_MAX;
    o.max_entries = o.max_entries ? o.max_entries : UINT64_MAX;
    o.max_tree = o.max_tree ? o.max_tree : UINT64_MAX;
    o.max_meta = o.max_meta ? o.max_meta : 1 << 20;
    return o;
}

/* An overlay's own xattrs would let a layer redirect its directories anywhere in the lower ones; labels (selinux, ima,
 * smack) belong to the host's policy. */
int pyc_rules_foreign_xattr(const char *name) {
    if (is_prefix("trusted.overlay.", name) || is_prefix("user.overlay.", name))
        return 1;
    return is_prefix("security.", name) && strcmp(name, "security.capability") != 0;
}

/* AUFS kept its own files under names like ".wh..wh.plnk"; a whiteout that has children makes no sense. */
static int check_parts(const char *path, int *ret_skip, PycError *err) {
    for (const char *part = path; part; part = strchr(part, '/'), part = part ? part + 1 : NULL) {
        if (!is_prefix(whiteout_prefix, part))
            continue;
        if (is_prefix(aufs_prefix, part)) {
            *ret_skip = strcmp(part, opaque_name) != 0;
            if (*ret_skip)
                return 0;
        }
        if (strchr(part, '/'))
            return pyc_fail(err, EBADMSG, "use a whiteout as a directory", path);
    }
    return 0;
}

int pyc_rules_check(const PycLayerOptions *options, const PycTarMember *m, const char *path, uint64_t entries,
                    uint64_t bytes, int *ret_skip, PycError *err) {
    if (entries >= options->max_entries)
        return pyc_fail(err, EFBIG, "stay within the limit of entries", path);
    if (m->stored > options->max_bytes - bytes)
        return pyc_fail(err, EFBIG, "stay within the limit of bytes", path);
    if (m->uid >= UINT32_MAX || m->gid >= UINT32_MAX)
        return pyc_fail(err, EOVERFLOW, "use the owner (beyond 32 bits) of", path);
    int device = m->kind == PYC_TAR_CHAR || m->kind == PYC_TAR_BLOCKDEV;
    if (device && (m->major >= 1 << 12 || m->minor >= 1 << 20))
        return pyc_fail(err, EOVERFLOW, "use the device number of", path);
    if (pyc_rules_overlay(options))
        return check_parts(path, ret_skip, err);
    const char *slash = strrchr(path, '/');
    if (strlen(slash ? slash + 1 : path) > NAME_MAX) /* whiteouts may be longer, but here there are none */
        return pyc_fail(err, ENAMETOOLONG, "use the name", path);
    return 0;
}

int pyc_rules_mark(const PycLayerOptions *options, const PycTarMember *m, const char *base, const char *path,
                   PycMark *ret_mark, const char **ret_name, PycError *err) {
    *ret_mark = PYC_MARK_NONE;
    if (pyc_rules_overlay(options)) {
        if (strcmp(base, opaque_name) == 0) {
            *ret_mark = PYC_MARK_BELOW;
            return 0;
        }
        int prefixed = is_prefix(whiteout_prefix, base);
        /* A device 0/0 is what a whiteout is to the overlay. */
        if (prefixed || (m->kind == PYC_TAR_CHAR && m->major == 0 && m->minor == 0)) {
            const char *name = prefixed ? base + sizeof whiteout_prefix - 1 : base;
            if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
                return pyc_fail(err, EBADMSG, "read the whiteout", path);
            *ret_mark = PYC_MARK_NAME;
            *ret_name = name;
            return 0;
        }
    }
    if ((options->flags & PYC_LAYER_NO_DEVICES) && (m->kind == PYC_TAR_CHAR || m->kind == PYC_TAR_BLOCKDEV))
        return pyc_fail(err, EPERM, "refuse a device node", path);
    return 0;
}
