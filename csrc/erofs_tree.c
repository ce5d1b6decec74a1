/* Names and inodes in arrays, found through one hash table over (directory, name); see erofs_tree.h.
 * getrandom(2) for the hash.
 * Called by erofs.c, erofs_merge.c and erofs_write.c.
 */
#include "erofs_tree.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum {
    MAX_LINKS = 40,         /* followed on the way to a directory, as the kernel has it */
    MAX_LINKS_TO_MAKE = 16, /* the same when something is made there, as in inside.c */
    MAX_DEPTH = 4096,
    WALK_ROOM = (MAX_LINKS + 2) * PATH_MAX,
};

/* Count what is about to be allocated in the place of something smaller. */
static int take_memory(PycTree *tree, uint64_t before, uint64_t after, PycError *err) {
    if (after - before > tree->max_memory - tree->memory)
        return pyc_fail(err, EFBIG, "keep the tree within the limit of memory", NULL);
    tree->memory += after - before;
    return 0;
}

/* Grow an array by doubling, so that `need` elements fit; their indices are of 32 bits. */
static int grow(PycTree *tree, void **items, size_t *room, size_t need, size_t item, PycError *err) {
    if (need <= *room)
        return 0;
    if (need > UINT32_MAX)
        return pyc_fail(err, EFBIG, "keep the tree within 32 bits", NULL);
    size_t more = *room * 2 > need ? *room * 2 : need + 1024;
    int r = take_memory(tree, *room * item, more * item, err);
    if (r < 0)
        return r;
    void *grown = realloc(*items, more * item);
    if (!grown)
        return pyc_fail(err, ENOMEM, "allocate the tree", NULL);
    *items = grown;
    *room = more;
    return 0;
}

int pyc_tree_open(PycTree *tree, uint64_t max_memory, PycError *err) {
    memset(tree, 0, sizeof *tree);
    tree->max_memory = max_memory;
    tree->n_buckets = 1024;
    tree->buckets = calloc(tree->n_buckets, sizeof *tree->buckets);
    tree->walk = malloc(WALK_ROOM);
    if (!tree->buckets || !tree->walk)
        return pyc_fail(err, ENOMEM, "allocate the tree", NULL);
    if (getrandom(&tree->secret, sizeof tree->secret, 0) != sizeof tree->secret)
        return pyc_fail(err, errno, "get a random number", NULL);
    int r = grow(tree, (void **)&tree->inodes, &tree->inodes_room, 1, sizeof *tree->inodes, err);
    if (r == 0)
        r = grow(tree, (void **)&tree->names, &tree->names_room, 1, sizeof *tree->names, err);
    if (r == 0)
        r = grow(tree, (void **)&tree->xattrs, &tree->xattrs_room, 1, sizeof *tree->xattrs, err);
    if (r < 0)
        return r;
    memset(tree->inodes, 0, sizeof *tree->inodes);
    memset(tree->names, 0, sizeof *tree->names);
    tree->xattrs[0] = 0;
    tree->n_inodes = tree->n_names = tree->n_xattrs = 1;
    pyc_tree_forget(tree);
    return 0;
}

void pyc_tree_close(PycTree *tree) {
    free(tree->inodes);
    free(tree->names);
    free(tree->texts);
    free(tree->xattrs);
    free(tree->maps);
    free(tree->buckets);
    free(tree->walk);
}

int pyc_tree_add_inode(PycTree *tree, uint16_t mode, uint32_t *ret_inode, PycError *err) {
    int r = grow(tree, (void **)&tree->inodes, &tree->inodes_room, tree->n_inodes + 1, sizeof *tree->inodes, err);
    if (r < 0)
        return r;
    tree->inodes[tree->n_inodes] = (PycInode){.mode = mode, .uid = tree->uid, .gid = tree->gid};
    *ret_inode = (uint32_t)tree->n_inodes++;
    return 0;
}

/* Links lead deeper than a path is long, without end; and some questions are asked of all that is above. */
int pyc_tree_add_directory(PycTree *tree, uint32_t parent, uint32_t *ret_inode, const char *path, PycError *err) {
    uint32_t depth = tree->inodes[parent].links + 1;
    if (depth > MAX_DEPTH)
        return pyc_fail(err, EFBIG, "keep directories within a depth of 4096", path);
    int r = pyc_tree_add_inode(tree, S_IFDIR | 0755, ret_inode, err);
    if (r < 0)
        return r;
    tree->inodes[*ret_inode].parent = parent;
    tree->inodes[*ret_inode].links = depth;
    return 0;
}

int pyc_tree_add_text(PycTree *tree, const char *text, size_t size, uint32_t *ret_text, PycError *err) {
    int r = grow(tree, (void **)&tree->texts, &tree->texts_room, tree->texts_size + size, 1, err);
    if (r < 0)
        return r;
    memcpy(tree->texts + tree->texts_size, text, size);
    *ret_text = (uint32_t)tree->texts_size;
    tree->texts_size += size;
    return 0;
}

int pyc_tree_add_xattrs(PycTree *tree, const uint8_t *entries, size_t size, uint32_t *ret_xattrs, PycError *err) {
    size_t words = size / 4;
    int r = grow(tree, (void **)&tree->xattrs, &tree->xattrs_room, tree->n_xattrs + 1 + words, 4, err);
    if (r < 0)
        return r;
    tree->xattrs[tree->n_xattrs] = (uint32_t)size;
    memcpy(tree->xattrs + tree->n_xattrs + 1, entries, size);
    *ret_xattrs = (uint32_t)tree->n_xattrs;
    tree->n_xattrs += 1 + words;
    return 0;
}

int pyc_tree_add_map(PycTree *tree, uint64_t chunks, uint32_t *ret_map, PycError *err) {
    if (chunks > UINT32_MAX)
        return pyc_fail(err, EFBIG, "keep the tree within 32 bits", NULL);
    int r = grow(tree, (void **)&tree->maps, &tree->maps_room, tree->n_maps + (size_t)chunks, sizeof *tree->maps, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < chunks; i++)
        tree->maps[tree->n_maps + i] = PYC_TREE_HOLE;
    *ret_map = (uint32_t)tree->n_maps;
    tree->n_maps += (size_t)chunks;
    return 0;
}

/* ---- names ---- */

static uint64_t mix(uint64_t a, uint64_t b) {
    __uint128_t product = (__uint128_t)(a ^ 0x9e3779b97f4a7c15u) * (b | 1);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint32_t hash_of(const PycTree *tree, uint32_t directory, const char *name, size_t size) {
    uint64_t hash = mix(tree->secret, tree->secret ^ directory);
    for (; size >= 8; name += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, name, 8);
        hash = mix(hash ^ word, tree->secret);
    }
    uint64_t word = (uint64_t)size << 56;
    memcpy(&word, name, size);
    return (uint32_t)mix(hash ^ word, tree->secret);
}

static int rehash(PycTree *tree, PycError *err) {
    size_t more = tree->n_buckets * 2;
    int r = take_memory(tree, tree->n_buckets * sizeof *tree->buckets, more * sizeof *tree->buckets, err);
    if (r < 0)
        return r;
    uint32_t *buckets = calloc(more, sizeof *buckets);
    if (!buckets)
        return pyc_fail(err, ENOMEM, "allocate the tree", NULL);
    for (size_t i = 1; i < tree->n_names; i++) {
        PycName *name = &tree->names[i];
        uint32_t *bucket = &buckets[name->hash & (more - 1)];
        name->chain = *bucket;
        *bucket = (uint32_t)i;
    }
    free(tree->buckets);
    tree->buckets = buckets;
    tree->n_buckets = more;
    return 0;
}

static uint32_t look_up(const PycTree *tree, uint32_t directory, const char *name, size_t size, uint32_t hash) {
    for (uint32_t i = tree->buckets[hash & (tree->n_buckets - 1)]; i; i = tree->names[i].chain) {
        const PycName *n = &tree->names[i];
        if (n->hash == hash && n->directory == directory && n->size == size &&
            memcmp(tree->texts + n->text, name, size) == 0)
            return i;
    }
    return 0;
}

uint32_t pyc_tree_find(const PycTree *tree, uint32_t directory, const char *name, size_t size) {
    uint32_t found = look_up(tree, directory, name, size, hash_of(tree, directory, name, size));
    return tree->names[found].inode ? found : 0;
}

int pyc_tree_name(PycTree *tree, uint32_t directory, const char *name, size_t size, uint32_t *ret_name, PycError *err) {
    uint32_t hash = hash_of(tree, directory, name, size), text = 0;
    *ret_name = look_up(tree, directory, name, size, hash);
    if (*ret_name)
        return 0;
    int r = tree->n_names < tree->n_buckets ? 0 : rehash(tree, err);
    if (r == 0)
        r = grow(tree, (void **)&tree->names, &tree->names_room, tree->n_names + 1, sizeof *tree->names, err);
    if (r == 0)
        r = pyc_tree_add_text(tree, name, size, &text, err);
    if (r < 0)
        return r;
    uint32_t *bucket = &tree->buckets[hash & (tree->n_buckets - 1)];
    uint32_t *first = &tree->inodes[directory].value;
    uint32_t made = (uint32_t)tree->n_names++;
    tree->names[made] = (PycName){
        .chain = *bucket,
        .hash = hash,
        .directory = directory,
        .next = *first,
        .text = text,
        .size = (uint8_t)size,
    };
    *bucket = *first = *ret_name = made;
    return 0;
}

/* ---- paths ---- */

void pyc_tree_forget(PycTree *tree) { tree->last_size = SIZE_MAX; }

/* What a path needs and no member describes: root's, 0755. In the place of a whiteout it hides what is below. */
static int make_directory(PycTree *tree, uint32_t name, uint32_t *ret_inode, const char *path, PycError *err) {
    uint32_t before = tree->names[name].inode;
    if (tree->made >= tree->max_made)
        return pyc_fail(err, EFBIG, "stay within the limit of entries", path);
    int r = pyc_tree_add_directory(tree, tree->names[name].directory, ret_inode, path, err);
    if (r < 0)
        return r;
    tree->inodes[*ret_inode].opaque = before != 0;
    tree->names[name].inode = *ret_inode;
    tree->made++;
    return 0;
}

/* One step of a walk. ret_link: the name is a symbolic link, to be followed; the directory stays. */
static int step(PycTree *tree, uint32_t *directory, const char *name, size_t size, int make, uint32_t *ret_link,
                const char *path, PycError *err) {
    uint32_t found = 0;
    *ret_link = 0;
    if (size == 2 && name[0] == '.' && name[1] == '.') {
        *directory = tree->inodes[*directory].parent;
        return 0;
    }
    if (size == 1 && name[0] == '.')
        return 0;
    if (size > NAME_MAX)
        return pyc_fail(err, ENAMETOOLONG, "open the parent", path);
    if (!make) {
        found = pyc_tree_find(tree, *directory, name, size);
        if (!found)
            return pyc_fail(err, ENOENT, "open the parent", path);
    } else {
        int r = pyc_tree_name(tree, *directory, name, size, &found, err);
        if (r < 0)
            return r;
    }
    uint32_t inode = tree->names[found].inode;
    if (S_ISDIR(tree->inodes[inode].mode)) {
        *directory = inode;
        return 0;
    }
    if (S_ISLNK(tree->inodes[inode].mode)) {
        *ret_link = inode;
        return 0;
    }
    if (!make || (inode && !pyc_tree_is_whiteout(tree, inode)))
        return pyc_fail(err, ENOTDIR, make ? "use a parent" : "open the parent", path);
    return make_directory(tree, found, directory, path, err);
}

/* Links are put before what is left of the path, from the end of the room to its beginning. */
static int walk(PycTree *tree, const char *path, size_t size, int make, uint32_t *ret_directory, PycError *err) {
    char *end = tree->walk + WALK_ROOM - 1, *at = end - size;
    uint32_t directory = tree->root, link = 0;
    int links = 0;
    char copy[PATH_MAX];
    memcpy(copy, path, size);
    copy[size] = 0;
    memcpy(at, path, size);
    *end = 0;
    for (at += strspn(at, "/"); *at; at += strspn(at, "/")) {
        size_t n = strcspn(at, "/");
        uint64_t made = tree->made;
        int r = step(tree, &directory, at, n, make, &link, copy, err);
        if (r < 0)
            return r;
        if (links > MAX_LINKS_TO_MAKE && tree->made != made)
            return pyc_fail(err, ELOOP, "follow the parent", copy);
        at += n;
        if (!link)
            continue;
        if (++links > MAX_LINKS)
            return pyc_fail(err, ELOOP, "open the parent", copy);
        const char *target = tree->texts + tree->inodes[link].value;
        size_t length = strlen(target);
        *--at = '/';
        at -= length;
        memcpy(at, target, length);
        if (*target == '/')
            directory = tree->root;
    }
    *ret_directory = directory;
    return 0;
}

int pyc_tree_parent(PycTree *tree, const char *path, size_t size, int make, uint32_t *ret_directory, PycError *err) {
    if (size == tree->last_size && memcmp(path, tree->last_path, size) == 0) {
        *ret_directory = tree->last;
        return 0;
    }
    int r = walk(tree, path, size, make, ret_directory, err);
    if (r < 0)
        return r;
    tree->last = *ret_directory;
    tree->last_size = size;
    memcpy(tree->last_path, path, size);
    return 0;
}
