/* Fills a PycError; see error.h.
 * No kernel interface, no libc beyond memory writes: it runs between clone and execve.
 * Called by every file of the core.
 */
#include "error.h"

static void copy_text(char *dst, size_t size, const char *src) {
    size_t i = 0;
    for (; src && src[i] && i + 1 < size; i++)
        dst[i] = src[i];
    dst[i] = 0;
}

int pyc_fail(PycError *err, int code, const char *step, const char *path) {
    if (code < 0)
        code = -code;
    if (err && err->code == 0) {
        copy_text(err->step, sizeof err->step, step);
        copy_text(err->path, sizeof err->path, path);
        err->code = code;
    }
    return -code;
}
