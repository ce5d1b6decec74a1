/* When what was written reaches the disk.
 * sync_file_range(2), syncfs(2). Included by pyc.h; called by pycontainer.distribution.outflow and pycontainer.store.
 */
#ifndef PYC_SYNC_H
#define PYC_SYNC_H
#include "pyc.h"

/* Have the disk begin with a part of a file, without waiting for it. A hint: what it cannot do is left to a sync. */
PYC_API void pyc_write_soon(int fd, uint64_t offset, uint64_t size);
/* Wait until all of a file system is on its disk; returns 0 or -errno. */
PYC_API int pyc_sync_all(int fd);

#endif
