/* The one error shape of the C core: which step, on which path, with which errno.
 * No kernel interface. Used by every file here and, through ffi, by pycontainer._ffi.
 */
#ifndef PYC_ERROR_H
#define PYC_ERROR_H
#include "pyc.h"

/* Record a failure and return -code. `step` is a short constant phrase ("mount proc"); `path` may be NULL.
 * Keeps the first failure: a clean-up that fails later must not hide the cause. Safe after clone (no libc). */
int pyc_fail(PycError *err, int code, const char *step, const char *path);

#endif
