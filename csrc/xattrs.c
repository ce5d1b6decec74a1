/* Reads the extended attributes that belong to an inode's content; see walk.h.
 * flistxattr(2), fgetxattr(2), and their forms by path through /proc/self/fd.
 * Called by walk.c and changes.c.
 */
#include "walk.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

#include "rules.h"
#include "util.h"

enum { MAX_ALL = 1 << 20 }; /* bytes of all of one inode, as the reader of layers takes them */

static int grow(void **data, size_t *room, size_t need) {
    if (need <= *room)
        return 0;
    void *grown = realloc(*data, need * 2);
    if (!grown)
        return -ENOMEM;
    *data = grown;
    *room = need * 2;
    return 0;
}

static ssize_t list_names(int fd, const char *path, char *list, size_t size) {
    return fd >= 0 ? flistxattr(fd, list, size) : llistxattr(path, list, size);
}

static ssize_t get_value(int fd, const char *path, const char *name, void *value, size_t size) {
    return fd >= 0 ? fgetxattr(fd, name, value, size) : lgetxattr(path, name, value, size);
}

/* Fill xattrs->list; return its size. */
static ssize_t read_names(PycXattrs *x, int fd, const char *path) {
    if (grow((void **)&x->list, &x->list_room, 512) < 0)
        return -ENOMEM;
    for (;;) {
        ssize_t size = list_names(fd, path, x->list, x->list_room);
        if (size >= 0)
            return size;
        if (errno == ENOTSUP || errno == ENOSYS)
            return 0;
        if (errno != ERANGE || x->list_room > MAX_ALL)
            return -errno;
        if (grow((void **)&x->list, &x->list_room, x->list_room + 1) < 0)
            return -ENOMEM;
    }
}

/* Append one value to xattrs->values; return its size, or -ENODATA when it is gone. */
static ssize_t read_value(PycXattrs *x, int fd, const char *path, const char *name, size_t used) {
    for (;;) {
        ssize_t size = get_value(fd, path, name, NULL, 0);
        if (size < 0)
            return -errno;
        if (used + (size_t)size > MAX_ALL)
            return -E2BIG;
        if (grow((void **)&x->values, &x->values_room, used + (size_t)size + 1) < 0)
            return -ENOMEM;
        size = get_value(fd, path, name, x->values + used, x->values_room - used);
        if (size >= 0 || errno != ERANGE)
            return size < 0 ? -errno : size;
    }
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const PycXattr *)a)->name, ((const PycXattr *)b)->name);
}

int pyc_xattrs_read(PycXattrs *x, int fd, int parent, const char *name, const char *path, PycError *err) {
    char place[NAME_MAX + 64];
    x->count = 0;
    x->metacopy = 0;
    (void)snprintf(place, sizeof place, "/proc/self/fd/%d/%s", parent, name);
    ssize_t names = read_names(x, fd, place);
    if (names < 0)
        return pyc_fail(err, (int)-names, "list the extended attributes of", path);
    size_t used = 0;
    for (const char *at = x->list; at < x->list + names; at += strlen(at) + 1) {
        x->metacopy |= strcmp(at, "trusted.overlay.metacopy") == 0;
        if (pyc_rules_foreign_xattr(at))
            continue;
        ssize_t size = read_value(x, fd, place, at, used);
        if (size == -ENODATA)
            continue;
        if (size < 0)
            return pyc_fail(err, (int)-size, "read an extended attribute of", path);
        if (grow((void **)&x->items, &x->items_room, (x->count + 1) * sizeof *x->items) < 0)
            return pyc_fail(err, ENOMEM, "read an extended attribute of", path);
        /* The value's place may still move: its offset for now. */
        x->items[x->count++] = (PycXattr){.name = at, .value = (const uint8_t *)used, .size = (size_t)size};
        used += (size_t)size;
    }
    for (size_t i = 0; i < x->count; i++)
        x->items[i].value = x->values + (size_t)x->items[i].value;
    if (x->count > 1)
        qsort(x->items, x->count, sizeof *x->items, by_name);
    return 0;
}

void pyc_xattrs_free(PycXattrs *x) {
    free(x->items);
    free(x->list);
    free(x->values);
    *x = (PycXattrs){0};
}
