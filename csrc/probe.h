/* Questions to the running kernel: can this be done here, now, by this process? Included by pyc.h. */
#ifndef PYC_PROBE_H
#define PYC_PROBE_H
#include "pyc.h"

/* Operands are told beside each kind: text (parts end with NUL, `size` bytes in all), flags, fd. */
enum PycProbeKind {
    PYC_PROBE_UNSHARE = 1, /* flags: namespaces, see unshare(2) */
    PYC_PROBE_FILESYSTEM,  /* flags: namespaces to unshare first | text: type, then options "key" or "key=value" */
    PYC_PROBE_OVERLAY, /* flags: PycProbeOverlay | text: directory with lower/file lower2 upper work, then options */
    PYC_PROBE_IDMAP,   /* text: directory on the file system in question */
    PYC_PROBE_ENTRY_TYPES,    /* text: directory with a directory in it; does listing it tell types (d_type)? */
    PYC_PROBE_EROFS_FILE,     /* text: a regular file of 4096 zeros */
    PYC_PROBE_CLONE3,         /* flags of clone3(2) | fd: cgroup v2 directory to be born in, or -1 */
    PYC_PROBE_SECCOMP,        /* installs a filter that allows everything */
    PYC_PROBE_DEVICE_PROGRAM, /* loads a device program | fd: cgroup v2 directory to attach it to, or -1 */
    PYC_PROBE_NFTABLES,       /* asks nf_tables of a new net namespace for its generation */
    PYC_PROBE_RAISE_LIMIT,    /* raises a hard limit */
    PYC_PROBE_PIDFD,
    PYC_PROBE_OPENAT2,
    PYC_PROBE_MOUNT_SETATTR,
    PYC_PROBE_CLONE_DETACHED, /* open_tree(OPEN_TREE_CLONE) of a mount that is not attached anywhere */
    PYC_PROBE_LANDLOCK,       /* returns the version of its ABI */
    PYC_PROBE_TIME_AT_EXEC,   /* does execve enter the time namespace made by unshare? */
};

enum PycProbeOverlay {
    PYC_PROBE_LOWER_PLUS = 1,     /* one lower directory at a time: lowerdir+ */
    PYC_PROBE_LOWER_IDMAPPED = 2, /* the upper one of the lower directories is an idmapped mount */
};

/* Try it in a child process with its own descriptors and working directory, in throw-away namespaces where mounts or
 * networks are concerned. Nothing of the caller changes, other threads may run, and nothing is left but what is told
 * above of directories that the caller gave. Returns 0 (or what is told above) or -errno. */
PYC_API int pyc_probe(int32_t kind, const char *text, uint32_t size, uint64_t flags, int fd, PycError *err);

#endif
