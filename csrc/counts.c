/* Reads what a control group has counted; see counts.h.
 * openat(2), read(2). Called by pycontainer.runtime.cgroups.
 */
#include "counts.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int read_file(int dir, const char *name, char *data, uint32_t room) {
    PYC_AUTO_FD fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    uint32_t size = 0;
    while (size < room) {
        ssize_t n = read(fd, data + size, room - size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        size += (uint32_t)n;
    }
    return (int)size;
}

void pyc_read_files(const int32_t *dirs, const char *names, uint32_t count, char *ret_data, uint32_t room,
                    int32_t *ret_sizes) {
    for (uint32_t i = 0; i < count; i++, names += strlen(names) + 1) {
        ret_sizes[i] = read_file(dirs[i], names, ret_data, room);
        if (ret_sizes[i] > 0) {
            ret_data += ret_sizes[i];
            room -= (uint32_t)ret_sizes[i];
        }
    }
}
