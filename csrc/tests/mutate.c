/* The mutator of both fuzz targets: repairs the checksums of headers, so that mutations reach the code behind them.
 * No kernel interface.
 * Linked by `make fuzz`.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

enum { BLOCK = 512, CHECKSUM = 148, MAGIC = 257 };

static void repair_checksum(uint8_t *block) {
    unsigned sum = 0;
    memset(block + CHECKSUM, ' ', 8);
    for (int i = 0; i < BLOCK; i++)
        sum += block[i];
    (void)snprintf((char *)block + CHECKSUM, 8, "%06o", sum);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    size = LLVMFuzzerMutate(data, size, max_size);
    if (seed % 16 == 0)
        return size; /* wrong checksums are inputs too */
    for (size_t at = 1; at + BLOCK <= size; at += BLOCK)
        if (memcmp(data + at + MAGIC, "ustar", 5) == 0)
            repair_checksum(data + at);
    return size;
}
