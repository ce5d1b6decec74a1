/* libFuzzer target of the layer reader: any bytes, applied below a fresh directory, change nothing beside it.
 * mkdtemp(3) on /dev/shm.
 * Run by `make fuzz`, by `make check` with the seeds.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "layer.h"
#include "tree.h"
#include "util.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char base[] = "/dev/shm/pyc-fuzz-XXXXXX";
static int base_fd = -1;
static struct stat canary;

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    abort();
}

static void remove_base(void) { (void)pyc_remove_tree(AT_FDCWD, base, NULL); }

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    if (!mkdtemp(base) || (base_fd = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        die("make the directory");
    atexit(remove_base);
    PYC_AUTO_FD fd = openat(base_fd, "canary", O_WRONLY | O_CREAT | O_CLOEXEC, 0640);
    if (fd < 0 || write(fd, "alive", 5) != 5 || fstat(fd, &canary) < 0)
        die("make the canary");
    return 0;
}

static void check_outside(void) {
    struct stat st;
    if (fstatat(base_fd, "canary", &st, AT_SYMLINK_NOFOLLOW) < 0)
        die("the canary is gone");
    if (st.st_ino != canary.st_ino || st.st_size != canary.st_size || st.st_mode != canary.st_mode ||
        st.st_nlink != 1 || st.st_uid != canary.st_uid || st.st_gid != canary.st_gid ||
        st.st_mtim.tv_nsec != canary.st_mtim.tv_nsec || st.st_ctim.tv_nsec != canary.st_ctim.tv_nsec)
        die("the canary was touched");
    DIR *dir = fdopendir(openat(base_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!dir)
        die("list the directory");
    for (struct dirent *entry; (entry = readdir(dir));)
        if (entry->d_name[0] != '.' && strcmp(entry->d_name, "canary") != 0 && strcmp(entry->d_name, "root") != 0)
            die("something is beside the layer's directory");
    closedir(dir);
}

/* The first byte chooses options and the size of the pieces. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0)
        return 0;
    PycLayerOptions options = {.flags = data[0] & 0x1f, .max_bytes = 1 << 20, .max_entries = 1000, .max_meta = 1 << 16};
    size_t piece = data[0] & 0x80 ? 61 : 4096;
    if (mkdirat(base_fd, "root", 0755) < 0)
        die("make the layer's directory");
    PYC_AUTO_FD root = openat(base_fd, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    PycLayer *layer = NULL;
    PycError err = {0};
    if (pyc_layer_open(root, &options, &layer, &err) < 0)
        die("open the layer");
    int r = 0;
    for (size_t at = 1; r == 0 && at < size; at += piece)
        r = pyc_layer_feed(layer, data + at, size - at < piece ? size - at : piece, &err);
    PycLayerStats stats = {0};
    if (r == 0)
        r = pyc_layer_finish(layer, &stats, &err);
    if ((r < 0) != (err.code != 0) || (r < 0 && !err.step[0]))
        die("a failure without a reason");
    if (stats.bytes > options.max_bytes || stats.entries > options.max_entries)
        die("beyond the limits");
    pyc_layer_free(layer);
    check_outside();
    PycError gone = {0};
    if (pyc_remove_tree(base_fd, "root", &gone) < 0)
        die(gone.path);
    return 0;
}
