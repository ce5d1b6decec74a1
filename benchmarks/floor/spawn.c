// Owns how peers are started: the cheapest spawn there is, so that no caller's cost is counted against them.
// Uses posix_spawn (vfork underneath), pipes read to their end, waitpid.
// Called by benchmarks/run.py: spawn [--runs N] [--sleep-ms N] -- COMMAND ARGUMENT...
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "floor.h"

extern char **environ;

void die(const char *step, const char *what) {
    fprintf(stderr, "spawn: %s %s: %s\n", step, what, strerror(errno));
    exit(1);
}

int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static size_t read_to_end(int out, int err, char *ret_tail, size_t size) {
    struct pollfd fds[2] = {{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
    size_t kept = 0;
    for (int open_ends = 2; open_ends > 0;) {
        if (poll(fds, 2, -1) < 0)
            die("poll", "output");
        for (int i = 0; i < 2; i++) {
            if (fds[i].fd < 0 || fds[i].revents == 0)
                continue;
            if (kept == size)
                kept = 0;
            ssize_t n = read(fds[i].fd, ret_tail + kept, size - kept);
            if (n > 0) {
                kept += (size_t)n;
                continue;
            }
            fds[i].fd = -1;
            open_ends--;
        }
    }
    return kept;
}

static double run_once(char **argv, const char *program) {
    posix_spawn_file_actions_t actions;
    int out[2], err[2], status;
    char text[4096];
    pid_t pid;
    int64_t start = now_ns();
    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
        die("pipe", "output");
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err[1], 2);
    if ((errno = posix_spawn(&pid, program, &actions, NULL, argv, environ)) != 0)
        die("spawn", program);
    close(out[1]);
    close(err[1]);
    size_t length = read_to_end(out[0], err[0], text, sizeof text);
    if (waitpid(pid, &status, 0) < 0)
        die("wait for", program);
    close(out[0]);
    close(err[0]);
    int64_t end = now_ns();
    posix_spawn_file_actions_destroy(&actions);
    if (status != 0) {
        fprintf(stderr, "spawn: %s ended with status %#x: %.*s\n", program, (unsigned)status, (int)length, text);
        exit(1);
    }
    return (double)(end - start) / 1000;
}

static void batch(void *context, int count, int sleep_ms, double *ret_us) {
    char **argv = context;
    for (int i = 0; i < count; i++) {
        if (sleep_ms > 0)
            usleep((useconds_t)sleep_ms * 1000);
        ret_us[i] = run_once(argv, argv[0]);
    }
}

int main(int argc, char **argv) {
    int runs = 0, sleep_ms = 0, i = 1;
    for (; i + 1 < argc && strcmp(argv[i], "--") != 0; i += 2) {
        if (strcmp(argv[i], "--runs") == 0)
            runs = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--sleep-ms") == 0)
            sleep_ms = atoi(argv[i + 1]);
        else
            break;
    }
    if (i + 1 >= argc || strcmp(argv[i], "--") != 0 || argv[i + 1][0] != '/') {
        fprintf(stderr, "usage: spawn [--runs N] [--sleep-ms N] -- /ABSOLUTE/COMMAND ARGUMENT...\n");
        return 2;
    }
    return serve(batch, argv + i + 1, runs, sleep_ms);
}
