/* Removing directory trees that hostile programs filled. Included by pyc.h and by the helper. */
#ifndef PYC_TREE_H
#define PYC_TREE_H
#include "pyc.h"

/* Remove `name` below dirfd and all in it, symlinks not followed, mount points not crossed; any depth, two descriptors.
 * A missing name is no failure. */
PYC_API int pyc_remove_tree(int dirfd, const char *name, PycError *err);

/* Remove a cgroup and the cgroups below it, waiting up to `wait_ms` for processes that are being killed to be gone. */
PYC_API int pyc_remove_cgroup(int dirfd, const char *name, int wait_ms, PycError *err);

/* Open a path as a process with `root` as its root directory would: symlinks and ".." cannot lead out. openat2(2).
 * Returns a descriptor or -errno. */
PYC_API int pyc_open_in_root(int root, const char *path, int flags, PycError *err);

#endif
