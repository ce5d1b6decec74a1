/* What a layer may say, whoever takes it: its limits, owners and devices, the names that are marks, the attributes that
 * are not for it to set. No kernel interface. OCI image spec, "layer.md".
 * Called by layer.c and erofs.c.
 */
#ifndef PYC_RULES_H
#define PYC_RULES_H
#include "layer.h"
#include "tar.h"

typedef enum PycMark {
    PYC_MARK_NONE,
    PYC_MARK_NAME,  /* the layer hides one name of those below */
    PYC_MARK_BELOW, /* it hides all that is in the directory below */
} PycMark;

static inline int pyc_rules_overlay(const PycLayerOptions *options) { return !(options->flags & PYC_LAYER_PLAIN); }

/* Replace the zeros that mean "no limit" or "the usual one". */
PycLayerOptions pyc_rules_defaults(const PycLayerOptions *options);

/* Check the limits, owner and device of a member; `entries` and `bytes` so far, `path` clean. ret_skip: AUFS kept its
 * own files under such a name. */
int pyc_rules_check(const PycLayerOptions *options, const PycTarMember *m, const char *path, uint64_t entries,
                    uint64_t bytes, int *ret_skip, PycError *err);
/* Whether a member, by its last name, is a mark of what is hidden; ret_name of which name. */
int pyc_rules_mark(const PycLayerOptions *options, const PycTarMember *m, const char *base, const char *path,
                   PycMark *ret_mark, const char **ret_name, PycError *err);
/* Names that mean something to the host and not to the image. */
int pyc_rules_foreign_xattr(const char *name);

#endif
