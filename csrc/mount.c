/* The steps that build the container's view of files: mounts as descriptors, attached inside the new root.
 * fsopen(2), fsconfig(2), fsmount(2), open_tree(2), mount_setattr(2), move_mount(2), openat2(2), pivot_root(2).
 * Run by program.c. After PIVOT "/" is the container's root, so no path of an image can lead out of it.
 */
#include "program.h"
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#define MNT_DETACH 2

enum { NAME_SIZE = 4096 };

static long open_in_root(int root, const char *path, uint64_t flags, uint64_t resolve) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
    long rc;
    do
        rc = sys(SYS_openat2, root, path[0] ? path : ".", &how, sizeof how);
    while (rc == -EAGAIN || rc == -EINTR); /* a rename raced with the walk, see openat2(2) */
    return rc;
}

/* Make a missing target and all that is missing above it: every step of the walk is confined by the kernel. */
static long make_target(int root, const char *path, unsigned flags) {
    char part[NAME_SIZE];
    size_t n = text_length(path);
    if (n >= sizeof part)
        return -ENAMETOOLONG;
    size_t i = 0;
    while (path[i] == '/')
        i++;
    long dir = open_in_root(root, ".", O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT);
    while (dir >= 0 && i < n) {
        size_t start = i;
        while (i < n && path[i] != '/')
            i++;
        size_t end = i;
        while (i < n && path[i] == '/')
            i++;
        int last = i >= n;
        /* Open the whole prefix from the root each time: ".." and symlinks then mean what they mean inside. */
        __builtin_memcpy(part, path, end);
        part[end] = 0;
        long next = open_in_root(root, part, O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
        if (next == -ENOENT) {
            __builtin_memcpy(part, path + start, end - start);
            part[end - start] = 0;
            long rc = last && (flags & PYC_MAKE_FILE) ? sys(SYS_mknodat, dir, part, S_IFREG | 0644, 0)
                                                      : sys(SYS_mkdirat, dir, part, 0755);
            next = rc < 0 && rc != -EEXIST ? rc : open_in_root((int)dir, part, O_PATH | O_NOFOLLOW, RESOLVE_BENEATH);
        }
        sys_close(dir);
        dir = next;
    }
    return dir;
}

/* Open a target below root, the current directory by default, as O_PATH; make what is missing if asked to. */
static long open_target(int root, const char *path, unsigned flags) {
    uint64_t nofollow = flags & PYC_NOFOLLOW ? O_NOFOLLOW : 0;
    long fd = open_in_root(root, path, O_PATH | nofollow, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    if (fd != -ENOENT || !(flags & (PYC_MAKE_DIR | PYC_MAKE_FILE)))
        return fd;
    return make_target(root, path, flags);
}

static int32_t parse_number(const char *text) {
    int negative = *text == '-';
    int32_t n = 0;
    for (text += negative; *text >= '0' && *text <= '9'; text++)
        n = n * 10 + (*text - '0');
    return negative ? -n : n;
}

/* One option: "key=value", "key@-n" for a result of an earlier step, or "flag". */
static long configure_one(const Machine *m, int fs, const char *option) {
    char key[64];
    size_t k = 0;
    while (option[k] && option[k] != '=' && !(option[k] == '@' && option[k + 1] == '-') && k + 1 < sizeof key) {
        key[k] = option[k];
        k++;
    }
    key[k] = 0;
    if (option[k] == '=')
        return sys(SYS_fsconfig, fs, FSCONFIG_SET_STRING, key, option + k + 1, 0);
    if (option[k] == '@')
        return sys(SYS_fsconfig, fs, FSCONFIG_SET_FD, key, 0, machine_fd(m, parse_number(option + k + 1)));
    return sys(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, key, 0, 0);
}

static long configure(const Machine *m, int fs, const char *options, uint32_t len) {
    uint32_t i = 0;
    while (i < len) {
        long rc = configure_one(m, fs, options + i);
        if (rc < 0)
            return rc;
        i += (uint32_t)text_length(options + i) + 1;
    }
    return 0;
}

static long mount_new(const Machine *m, const PycStep *s) {
    long fs = sys(SYS_fsopen, machine_text(m, s->s1), FSOPEN_CLOEXEC);
    if (fs < 0)
        return fs;
    long rc = configure(m, (int)fs, machine_text(m, s->s2), s->len);
    if (rc == 0)
        rc = sys(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0);
    if (rc == 0)
        rc = sys(SYS_fsmount, fs, FSMOUNT_CLOEXEC, s->a);
    sys_close(fs);
    return rc;
}

static long set_attributes(const Machine *m, const PycStep *s) {
    struct mount_attr attr = {.attr_set = s->a, .attr_clr = s->b, .propagation = s->c};
    int userns = machine_fd(m, s->fd2);
    if (userns >= 0) {
        attr.attr_set |= MOUNT_ATTR_IDMAP;
        attr.userns_fd = (__u64)userns;
    }
    unsigned flags = AT_EMPTY_PATH | (s->flags & PYC_RECURSIVE ? AT_RECURSIVE : 0);
    return sys(SYS_mount_setattr, machine_fd(m, s->fd), machine_text(m, s->s1), flags, &attr, sizeof attr);
}

static long attach(const Machine *m, const PycStep *s) {
    int mount = machine_fd(m, s->fd);
    unsigned flags = s->flags;
    long rc = 0;
    if (flags & PYC_MAKE_LIKE) {
        struct stat st;
        rc = sys(SYS_newfstatat, mount, "", &st, AT_EMPTY_PATH);
        flags |= S_ISDIR(st.st_mode) ? PYC_MAKE_DIR : PYC_MAKE_FILE;
    }
    long target = rc < 0 ? rc : open_target(machine_fd(m, s->fd2), machine_text(m, s->s1), flags);
    if (target < 0)
        return target;
    /* What lies over files of /proc decides what the kernel seems to say, and where writes to it go (CVE-2025-52881). */
    struct statfs fs;
    if (flags & PYC_NOT_PROC) {
        rc = sys(SYS_fstatfs, target, &fs);
        if (rc == 0 && fs.f_type == PROC_SUPER_MAGIC)
            rc = -EXDEV;
    }
    if (rc == 0)
        rc = sys(SYS_move_mount, mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    sys_close(target);
    return rc;
}

/* Clone the mount behind an open path and lay it over `target`, which is open too: no name is looked up twice. */
static long cover(int source, int target) {
    long tree = sys(SYS_open_tree, source, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0)
        return tree;
    long rc = sys(SYS_move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    sys_close(tree);
    return rc;
}

/* Before Linux 6.15 a mount that is attached nowhere cannot be cloned: its first use attaches it, later ones clone it. */
static long cover_with_empty(int empty, int target) {
    long rc = cover(empty, target);
    return rc == -EINVAL ? sys(SYS_move_mount, empty, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
                         : rc;
}

/* The image must not choose what covers a masked file: it has to be the null device (CVE-2025-31133). */
static long check_null(int fd) {
    struct stat st;
    long rc = sys(SYS_newfstatat, fd, "", &st, AT_EMPTY_PATH);
    if (rc < 0)
        return rc;
    return S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3) ? 0 : -ENODEV;
}

static long mask(const Machine *m, const PycStep *s) {
    long target = open_in_root(AT_FDCWD, machine_text(m, s->s1), O_PATH, RESOLVE_NO_MAGICLINKS);
    if (target < 0)
        return target;
    struct stat st;
    long rc = sys(SYS_newfstatat, target, "", &st, AT_EMPTY_PATH);
    int dir = S_ISDIR(st.st_mode);
    if (rc == 0 && !dir)
        rc = check_null(machine_fd(m, s->fd));
    if (rc == 0)
        rc = dir ? cover_with_empty(machine_fd(m, s->fd2), (int)target) : cover(machine_fd(m, s->fd), (int)target);
    sys_close(target);
    return rc;
}

static long make_read_only(const Machine *m, const PycStep *s) {
    long target = open_in_root(AT_FDCWD, machine_text(m, s->s1), O_PATH, RESOLVE_NO_MAGICLINKS);
    if (target < 0)
        return target;
    long tree = sys(SYS_open_tree, target, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    long rc = tree;
    if (tree >= 0) {
        struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
        rc = sys(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr);
        if (rc == 0)
            rc = sys(SYS_move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
        sys_close(tree);
    }
    sys_close(target);
    return rc;
}

/* pivot_root(".", ".") stacks the old root on the new one, from where it is dropped; see pivot_root(2), NOTES. */
static long pivot(const Machine *m, const PycStep *s) {
    int root = machine_fd(m, s->fd);
    const char *place = machine_text(m, s->s1);
    long rc = place[0] ? sys(SYS_move_mount, root, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH) : 0;
    if (rc == 0)
        rc = sys(SYS_fchdir, root);
    if (rc == 0)
        rc = sys(SYS_pivot_root, ".", ".");
    if (rc == 0)
        rc = sys(SYS_umount2, ".", MNT_DETACH);
    if (rc == 0)
        rc = sys(SYS_chdir, "/");
    return rc;
}

/* A working directory that is not there is made, as docker does; one that is there keeps its owner. */
static long make_directory(const Machine *m, const PycStep *s) {
    long fd = open_in_root(AT_FDCWD, machine_text(m, s->s1), O_PATH, RESOLVE_NO_MAGICLINKS);
    if (fd == -ENOENT) {
        fd = open_target(AT_FDCWD, machine_text(m, s->s1), PYC_MAKE_DIR);
        if (fd >= 0 && (s->b || s->c)) {
            long rc = sys(SYS_fchownat, fd, "", s->b, s->c, AT_EMPTY_PATH);
            if (rc < 0) {
                sys_close(fd);
                return rc;
            }
        }
    }
    if (fd < 0)
        return fd;
    sys_close(fd);
    return 0;
}

/* The files of a tmpfs with tmpcopyup; where nothing is covered there is nothing to copy. */
static long fill_tmpfs(const Machine *m, const PycStep *s) {
    int root = machine_fd(m, s->fd2);
    long from =
        open_in_root(root, machine_text(m, s->s1), O_RDONLY | O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    if (from < 0)
        return from == -ENOENT ? 0 : from;
    struct statfs fs;
    long rc = sys(SYS_fstatfs, from, &fs);
    if (rc == 0)
        rc = fs.f_type == PROC_SUPER_MAGIC || fs.f_type == SYSFS_MAGIC
                 ? -EXDEV
                 : copy_up((int)from, machine_fd(m, s->fd), (int)s->a);
    sys_close(from);
    return rc;
}

long run_mount_step(Machine *m, const PycStep *s) {
    switch (s->op) {
    case PYC_OP_FSMOUNT:
        return mount_new(m, s);
    case PYC_OP_OPEN_TREE:
        return sys(SYS_open_tree, machine_fd(m, s->fd), machine_text(m, s->s1), s->a | OPEN_TREE_CLOEXEC);
    case PYC_OP_SETATTR:
        return set_attributes(m, s);
    case PYC_OP_ATTACH:
        return attach(m, s);
    case PYC_OP_MASK:
        return mask(m, s);
    case PYC_OP_READONLY:
        return make_read_only(m, s);
    case PYC_OP_PIVOT:
        return pivot(m, s);
    case PYC_OP_MOUNT:
        return sys(SYS_mount, machine_text(m, s->s3), machine_text(m, s->s1), machine_text(m, s->s3), s->a,
                   machine_text(m, s->s2));
    case PYC_OP_COPY_UP:
        return fill_tmpfs(m, s);
    case PYC_OP_MKDIR_IN:
        return make_directory(m, s);
    default:
        return -ENOSYS;
    }
}
