/* The public structs and functions of the C core, as Python sees them (each *.cdef repeats its part for cffi).
 * Convention: `int f(inputs..., Type *ret_x, PycError *err)` returns 0 (or a count) or -errno; ret_ is untouched on failure.
 * Included by every file here and by the generated module.
 */
#ifndef PYC_H
#define PYC_H
#include <stddef.h>
#include <stdint.h>

#define PYC_API __attribute__((visibility("default")))

typedef struct PycError {
    int32_t code;    /* errno, positive; 0 when nothing failed */
    char step[64];   /* what was tried: "mount proc" */
    char path[1024]; /* on what, or "" */
} PycError;

#include "bpf.h"
#include "changes.h"
#include "counts.h"
#include "layer.h"
#include "erofs.h"
#include "probe.h"
#include "program.h"
#include "start.h"
#include "sync.h"
#include "tree.h"
#include "view.h"

#endif
