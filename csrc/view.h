/* Read-only views of file system images: mounts that are attached nowhere and live as long as their descriptor.
 * Included by pyc.h.
 */
#ifndef PYC_VIEW_H
#define PYC_VIEW_H
#include "pyc.h"

/* Mount a file system, read-only, without set-uid programs and devices, attached nowhere. `options` are "key=value\0"
 * texts of `size` bytes together, the first of which names the source: `path` for errors.
 * Returns a descriptor or -errno. */
PYC_API int pyc_view_open(const char *kind, const char *options, size_t size, const char *path, PycError *err);

/* Attach a file to a free loop device, read-only; it is detached when the last user closes it. Writes the path of the
 * device, shorter than PYC_LOOP_NAME. Returns the device's descriptor, which keeps it until it is mounted, or -errno. */
enum { PYC_LOOP_NAME = 32 };
PYC_API int pyc_loop_open(const char *path, char *ret_device, PycError *err);

#endif
