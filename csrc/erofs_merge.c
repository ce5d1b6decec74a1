/* Puts one layer's tree onto that of the layers below, as an overlay would show them, and as parents.py has it with
 * directories that an archive needs and does not describe.
 * No kernel interface.
 * Called by erofs.c.
 */
#include "erofs_image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

enum { MAX_ROUNDS = 40 }; /* of links that lead to links, as the kernel has it */

typedef struct Pair {
    uint32_t upper, lower; /* directories */
} Pair;

/* Pairs of directories that have to be looked into: a stack of its own, as trees may be deeper than the program's. */
typedef struct Pairs {
    Pair *items;
    size_t count, room;
} Pairs;

static void free_pairs(const Pairs *pairs) { free(pairs->items); }

static int push(Pairs *pairs, uint32_t upper, uint32_t lower, PycError *err) {
    if (pairs->count == pairs->room) {
        size_t more = pairs->room * 2 + 64;
        Pair *grown = realloc(pairs->items, more * sizeof *grown);
        if (!grown)
            return pyc_fail(err, ENOMEM, "allocate the merge", NULL);
        pairs->items = grown;
        pairs->room = more;
    }
    pairs->items[pairs->count++] = (Pair){.upper = upper, .lower = lower};
    return 0;
}

static int is_directory(const PycTree *tree, uint32_t inode) { return S_ISDIR(tree->inodes[inode].mode); }

static uint32_t find_in(const PycTree *tree, uint32_t directory, uint32_t name) {
    return pyc_tree_find(tree, directory, tree->texts + tree->names[name].text, tree->names[name].size);
}

/* The same name in another directory, made if it is missing. */
static int name_in(PycTree *tree, uint32_t directory, uint32_t name, uint32_t *ret_name, PycError *err) {
    char text[NAME_MAX]; /* as the texts may move */
    size_t size = tree->names[name].size;
    memcpy(text, tree->texts + tree->names[name].text, size);
    return pyc_tree_name(tree, directory, text, size, ret_name, err);
}

static void copy_status(PycTree *tree, uint32_t from, uint32_t to) {
    const PycInode *a = &tree->inodes[from];
    PycInode *b = &tree->inodes[to];
    b->mode = a->mode;
    b->uid = a->uid;
    b->gid = a->gid;
    b->mtime = a->mtime;
    b->nsec = a->nsec;
    b->xattrs = a->xattrs;
    b->described = a->described;
}

static int new_directory(PycTree *tree, uint32_t name, uint32_t status, uint32_t *ret_inode, PycError *err) {
    int r = pyc_tree_add_directory(tree, tree->names[name].directory, ret_inode, NULL, err);
    if (r < 0)
        return r;
    tree->names[name].inode = *ret_inode;
    copy_status(tree, status, *ret_inode);
    return 0;
}

/* ---- what a layer has in a directory that is a link below goes to where the link leads ---- */

/* Follow a link in the layer's own tree, from the directory that it is in. With `make`, what is missing is made;
 * without, ret_directory is 0 when the layer has something on the way that is no directory. */
static int follow(PycTree *tree, uint32_t directory, const char *target, int make, uint32_t *ret_directory,
                  PycError *err) {
    size_t missing = 0; /* directories below `directory` that would have to be made */
    *ret_directory = 0;
    if (*target == '/')
        directory = tree->root;
    for (const char *at = target + strspn(target, "/"); *at; at += strspn(at, "/")) {
        size_t n = strcspn(at, "/");
        const char *part = at;
        at += n;
        if (n > NAME_MAX)
            return pyc_fail(err, ENAMETOOLONG, "follow the link of a lower layer", target);
        if (n == 1 && part[0] == '.')
            continue;
        if (n == 2 && part[0] == '.' && part[1] == '.') {
            directory = missing ? directory : tree->inodes[directory].parent;
            missing -= missing > 0;
            continue;
        }
        uint32_t name = missing ? 0 : pyc_tree_find(tree, directory, part, n);
        uint32_t inode = tree->names[name].inode;
        if (inode && !is_directory(tree, inode))
            return 0;
        if (!inode && !make) {
            missing++;
            continue;
        }
        int r = inode ? 0 : pyc_tree_name(tree, directory, part, n, &name, err);
        if (r == 0 && !inode) /* a status of nothing described: the usual one */
            r = new_directory(tree, name, tree->implied, &inode, err);
        if (r < 0)
            return r;
        directory = inode;
    }
    *ret_directory = directory;
    return 0;
}

/* Move all that is in a directory into another one of the layer. */
static int move_content(PycTree *tree, uint32_t from, uint32_t to, PycError *err) {
    PYC_CLEANUP(free_pairs) Pairs pairs = {0};
    int r = push(&pairs, from, to, err);
    while (r == 0 && pairs.count) {
        Pair pair = pairs.items[--pairs.count];
        for (uint32_t i = tree->inodes[pair.upper].value; r == 0 && i; i = tree->names[i].next) {
            uint32_t inode = tree->names[i].inode, place = 0;
            r = inode ? name_in(tree, pair.lower, i, &place, err) : 0;
            if (r < 0 || !inode)
                continue;
            uint32_t before = tree->names[place].inode;
            tree->names[i].inode = 0;
            if (!is_directory(tree, inode) || !is_directory(tree, before)) {
                tree->names[place].inode = inode;
                if (is_directory(tree, inode))
                    tree->inodes[inode].parent = pair.lower;
                continue;
            }
            if (!tree->inodes[before].described)
                copy_status(tree, inode, before);
            r = push(&pairs, inode, before, err);
        }
    }
    return r;
}

/* `name` is in the layer a directory that nothing describes, and `link` is what it is below. */
static int redirect(PycTree *tree, uint32_t name, uint32_t link, int *ret_moved, PycError *err) {
    char target[PATH_MAX]; /* as the texts may move */
    uint32_t from = tree->names[name].inode, in = tree->names[name].directory, to = 0;
    (void)strcpy(target, tree->texts + tree->inodes[link].value);
    int r = follow(tree, in, target, 0, &to, err);
    if (r < 0 || !to)
        return r;
    r = follow(tree, in, target, 1, &to, err);
    if (r < 0)
        return r;
    for (uint32_t above = to;; above = tree->inodes[above].parent) {
        if (above == from)
            return pyc_fail(err, ELOOP, "put files into what is a link to itself", target);
        if (above == tree->root)
            break;
    }
    *ret_moved = 1;
    tree->names[name].inode = 0;
    return move_content(tree, from, to, err);
}

static int redirect_once(PycTree *tree, uint32_t base, int *ret_moved, PycError *err) {
    PYC_CLEANUP(free_pairs) Pairs pairs = {0};
    int r = push(&pairs, tree->root, base, err);
    while (r == 0 && pairs.count) {
        Pair pair = pairs.items[--pairs.count];
        for (uint32_t i = tree->inodes[pair.upper].value; r == 0 && i; i = tree->names[i].next) {
            const PycInode *upper = &tree->inodes[tree->names[i].inode];
            uint32_t below = S_ISDIR(upper->mode) ? tree->names[find_in(tree, pair.lower, i)].inode : 0;
            if (S_ISLNK(tree->inodes[below].mode) && !upper->described && !upper->opaque)
                r = redirect(tree, i, below, ret_moved, err);
            else if (is_directory(tree, below) && !upper->opaque)
                r = push(&pairs, tree->names[i].inode, below, err);
        }
    }
    return r;
}

/* ---- one directory onto the other ---- */

static int merge_name(PycTree *tree, Pairs *pairs, uint32_t name, uint32_t lower, PycError *err) {
    uint32_t inode = tree->names[name].inode, place = 0;
    if (pyc_tree_is_whiteout(tree, inode)) {
        place = find_in(tree, lower, name);
        if (place)
            tree->names[place].inode = 0;
        return 0;
    }
    int r = name_in(tree, lower, name, &place, err);
    if (r < 0)
        return r;
    if (!is_directory(tree, inode)) {
        tree->names[place].inode = inode;
        return 0;
    }
    uint32_t below = tree->names[place].inode, status = inode;
    int opaque = tree->inodes[inode].opaque;
    /* What a directory is that this layer does not describe is for those below to say. */
    if (is_directory(tree, below) && !tree->inodes[inode].described)
        status = below;
    if (is_directory(tree, below) && !opaque)
        copy_status(tree, status, below);
    else
        r = new_directory(tree, place, status, &below, err);
    return r < 0 ? r : push(pairs, inode, below, err);
}

int pyc_erofs_merge(PycTree *tree, uint32_t *base, PycError *err) {
    PYC_CLEANUP(free_pairs) Pairs pairs = {0};
    const PycInode *root = &tree->inodes[tree->root];
    uint32_t status = root->described ? tree->root : *base;
    int r = 0;
    if (root->opaque) {
        uint32_t fresh = 0;
        r = pyc_tree_add_inode(tree, S_IFDIR | 0755, &fresh, err);
        if (r < 0)
            return r;
        tree->inodes[fresh].parent = fresh;
        copy_status(tree, status, fresh);
        *base = fresh;
    } else {
        copy_status(tree, status, *base);
    }
    int moved = tree->made > 0;
    for (int round = 0; r == 0 && moved; round++) {
        if (round == MAX_ROUNDS)
            return pyc_fail(err, ELOOP, "follow the links of lower layers", NULL);
        moved = 0;
        r = redirect_once(tree, *base, &moved, err);
    }
    if (r == 0)
        r = push(&pairs, tree->root, *base, err);
    while (r == 0 && pairs.count) {
        Pair pair = pairs.items[--pairs.count];
        for (uint32_t i = tree->inodes[pair.upper].value; r == 0 && i; i = tree->names[i].next)
            if (tree->names[i].inode)
                r = merge_name(tree, &pairs, i, pair.lower, err);
    }
    return r;
}
