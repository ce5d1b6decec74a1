/* What a control group has counted: many small files read in one call, so that a caller's other threads go on meanwhile.
 * openat(2), read(2). Included by pyc.h; called by pycontainer.runtime.cgroups.
 */
#ifndef PYC_COUNTS_H
#define PYC_COUNTS_H
#include "pyc.h"

/* Read files, each below a directory of its own, into one buffer, one after the other.
 * names: NUL-terminated names, one after the other; ret_sizes: bytes of each, or -errno.
 * One that is longer than the room left is cut. */
PYC_API void pyc_read_files(const int32_t *dirs, const char *names, uint32_t count, char *ret_data, uint32_t room,
                            int32_t *ret_sizes);

#endif
