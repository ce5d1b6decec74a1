/* When what was written reaches the disk; see sync.h.
 * sync_file_range(2), syncfs(2). Called by pycontainer.distribution.outflow and pycontainer.store.
 */
#include "sync.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

void pyc_write_soon(int fd, uint64_t offset, uint64_t size) {
    /* Its errors are those of the file system: the sync that follows has them too. */
    (void)sync_file_range(fd, (off64_t)offset, (off64_t)size, SYNC_FILE_RANGE_WRITE);
}

int pyc_sync_all(int fd) { return syncfs(fd) < 0 ? -errno : 0; }
