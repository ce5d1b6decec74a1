/* main() that runs a fuzz target on files and directories of files, without libFuzzer: for seeds, reproducers, valgrind.
 * opendir(3). Linked instead of libFuzzer by `make check` and `make valgrind`.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_file(const char *path) {
    FILE *file = fopen(path, "rb");
    size_t room = 16 << 20;
    uint8_t *data = file ? malloc(room) : NULL;
    if (!data) {
        perror(path);
        return 1;
    }
    size_t size = fread(data, 1, room, file);
    (void)fclose(file);
    (void)LLVMFuzzerTestOneInput(data, size);
    for (size_t cut = size / 2 + 1; cut < size; cut += 1021) /* and cut short in many places */
        (void)LLVMFuzzerTestOneInput(data, cut);
    free(data);
    return 0;
}

int main(int argc, char **argv) {
    int failed = 0;
    (void)LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        if (!dir) {
            failed |= run_file(argv[i]);
            continue;
        }
        for (struct dirent *entry; (entry = readdir(dir));) {
            char path[4096];
            (void)snprintf(path, sizeof path, "%s/%s", argv[i], entry->d_name);
            if (entry->d_name[0] != '.')
                failed |= run_file(path);
        }
        (void)closedir(dir);
    }
    return failed;
}
