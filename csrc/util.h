/* Clean-up attributes for file descriptors and memory.
 * close(2), free(3). Included by every file that holds either.
 */
#ifndef PYC_UTIL_H
#define PYC_UTIL_H
#include <stdlib.h>
#include <unistd.h>

#define PYC_CLEANUP(f) __attribute__((cleanup(f)))
#define PYC_AUTO_FD PYC_CLEANUP(pyc_close_fd) int
#define PYC_AUTO_FREE PYC_CLEANUP(pyc_free_ptr)

static inline void pyc_close_fd(const int *fd) {
    if (*fd >= 0)
        (void)close(*fd);
}

static inline void pyc_free_ptr(void *p) { free(*(void **)p); }

/* Hand a descriptor over to a new owner: the cleanup attribute will not close it. */
static inline int pyc_take_fd(int *fd) {
    int taken = *fd;
    *fd = -1;
    return taken;
}

#endif
