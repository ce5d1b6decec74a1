// Owns how a contender written in C is driven: one shot, or batch by batch as asked on standard input.
// Uses nothing but standard input and output.
// Called by floor.c and spawn.c.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "floor.h"

static void print_batch(Batch batch, void *context, int runs, int sleep_ms) {
    double *us = calloc((size_t)runs, sizeof *us);
    if (us == NULL)
        die("allocate", "samples");
    int64_t start = now_ns();
    batch(context, runs, sleep_ms, us);
    double wall = (double)(now_ns() - start) / 1000;
    printf("{\"us\": [");
    for (int i = 0; i < runs; i++)
        printf("%s%.1f", i ? ", " : "", us[i]);
    printf("], \"wall_us\": %.1f}\n", wall);
    fflush(stdout);
    free(us);
}

// With runs > 0: one batch. Otherwise each line "COUNT SLEEP_MS" asks for one, until the end of input.
int serve(Batch batch, void *context, int runs, int sleep_ms) {
    if (runs > 0) {
        print_batch(batch, context, runs, sleep_ms);
        return 0;
    }
    char line[64];
    while (fgets(line, sizeof line, stdin) != NULL) {
        char *rest;
        long count = strtol(line, &rest, 10);
        long pause = strtol(rest, NULL, 10);
        if (count < 1 || count > 1000000 || pause < 0)
            die("read a request", line);
        print_batch(batch, context, (int)count, (int)pause);
    }
    return 0;
}
