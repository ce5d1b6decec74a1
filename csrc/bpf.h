/* Loading the eBPF device filter of a cgroup v2 group. Included by pyc.h. */
#ifndef PYC_BPF_H
#define PYC_BPF_H
#include "pyc.h"

/* Load a BPF_PROG_TYPE_CGROUP_DEVICE program of `size` bytes; returns its descriptor or -errno. */
PYC_API int pyc_load_device_filter(const uint8_t *code, uint64_t size, PycError *err);

#endif
