// Owns the types that the parts of the floor program share.
// Uses no kernel interface of its own.
// Read by floor.c, child.c, cgroup.c and serve.c.
#pragma once

#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { MAX_CONTROLLERS = 8, ETC_FILES = 3, MAX_STAMPS = 32, CHILD_STACK = 128 * 1024 };

// What is made once, before any run is timed.
typedef struct {
    const char *rootfs;       // overlay lower directory
    const char *run_root;     // where the run directories go
    const char *group_name;   // the groups go below GROUP_NAME-PID
    struct sock_fprog filter; // compiled seccomp program
    int thin_ns;              // mount namespace with next to nothing in it, or -1 to copy the host's
    bool unified;             // cgroup v2 holds the controllers
    int controllers;          // how many entries the next arrays have; 1 on v2
    const char *controller[MAX_CONTROLLERS];
    int parent_group[MAX_CONTROLLERS];
    int device_program; // v2 only: the loaded BPF program, else -1
    bool trace;
} Setup;

// One run: everything enters the child as a descriptor, nothing is looked up there by a host path.
typedef struct {
    const Setup *setup;
    char id[32];
    int group[MAX_CONTROLLERS];       // the container's own group in each hierarchy
    int tasks[MAX_CONTROLLERS];       // v1: its tasks file, open for writing
    int cgroup_tree[MAX_CONTROLLERS]; // detached read-only mount of the group
    int root_tree;                    // detached overlay
    int etc_tree[ETC_FILES];          // detached hosts, hostname, resolv.conf
    int stdin_fd, stdout_fd, stderr_fd;
    // The child shares our memory, so what it says needs no pipe.
    const char *volatile failed_step;
    volatile int failed_errno;
    int stamps;
    const char *stamp_name[MAX_STAMPS];
    int64_t stamp_ns[MAX_STAMPS];
} Run;

// What a result reports, read back from the group after the exit.
typedef struct {
    uint64_t peak_memory, cpu_user, cpu_system, pids_peak, io_bytes, oom_kills;
} GroupUsage;

void die(const char *step, const char *what) __attribute__((noreturn));
int64_t now_ns(void);
void stamp(Run *run, const char *name);

void groups_open(Setup *setup);
void groups_close(const Setup *setup);
void group_make(Run *run);
void group_usage(Run *run, GroupUsage *ret_usage);
void group_close(Run *run);
void group_remove(const Setup *setup, const char *id);

int child_main(void *run);

// Times `count` runs with `sleep_ms` before each and writes the microseconds to `ret_us`.
typedef void (*Batch)(void *context, int count, int sleep_ms, double *ret_us);
int serve(Batch batch, void *context, int runs, int sleep_ms);
