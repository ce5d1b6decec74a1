// Owns the cgroups of the floor program: one group per run in each v1 hierarchy, or one v2 group. The v1 group with the
// rules for devices is made once: it counts nothing, and the engine shares it too.
// Uses cgroup v1 and v2 files, open_tree(2), mount_setattr(2), bpf(2) for v2 device rules.
// Called by floor.c around each run; group_remove is called from the cleaner process.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/mount.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "floor.h"

#define TOP "/sys/fs/cgroup"

// The ten rules that the engine gives by default: mknod of anything, use of these and of pseudo terminals.
static const char *const DEVICE_RULES[] = {"c *:* m",   "b *:* m",   "c 1:3 rwm", "c 1:5 rwm",   "c 1:7 rwm",
                                           "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 136:* rwm", "c 5:2 rwm"};
enum { DEVICE_RULE_COUNT = sizeof DEVICE_RULES / sizeof *DEVICE_RULES };

static char parent_name[96];

static void put(int dir, const char *file, const char *value) {
    int fd = openat(dir, file, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        die("open", file);
    if (write(fd, value, strlen(value)) < 0)
        die("write", file);
    close(fd);
}

static int make_and_open(int dir, const char *name) {
    if (mkdirat(dir, name, 0755) < 0)
        die("mkdir cgroup", name);
    int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        die("open cgroup", name);
    return fd;
}

// mknod of anything is allowed; access only to the devices above. Returns 1 (allow) or 0 in r0.
static int load_device_program(void) {
    enum { TYPE = 0, MAJOR = 4, MINOR = 8 };
#define LOAD(reg, at)                                                                                                  \
    { .code = BPF_LDX | BPF_W | BPF_MEM, .dst_reg = (reg), .src_reg = 1, .off = (at) }
#define JUMP(op, reg, value, skip)                                                                                     \
    { .code = BPF_JMP | (op) | BPF_K, .dst_reg = (reg), .off = (skip), .imm = (value) }
#define ANSWER(value)                                                                                                  \
    {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = (value)}, { .code = BPF_JMP | BPF_EXIT }
    struct bpf_insn code[] = {
        LOAD(2, TYPE),
        LOAD(3, MAJOR),
        LOAD(4, MINOR),
        {.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = 5, .src_reg = 2},
        {.code = BPF_ALU64 | BPF_RSH | BPF_K, .dst_reg = 5, .imm = 16},
        JUMP(BPF_JNE, 5, BPF_DEVCG_ACC_MKNOD, 2),
        ANSWER(1),
        {.code = BPF_ALU64 | BPF_AND | BPF_K, .dst_reg = 2, .imm = 0xffff},
        JUMP(BPF_JEQ, 2, BPF_DEVCG_DEV_CHAR, 2),
        ANSWER(0),
        JUMP(BPF_JNE, 3, 136, 2),
        ANSWER(1),
        JUMP(BPF_JNE, 3, 5, 3),
        JUMP(BPF_JEQ, 4, 0, 9),
        JUMP(BPF_JEQ, 4, 2, 8),
        {.code = BPF_JMP | BPF_JA, .off = 5},
        JUMP(BPF_JNE, 3, 1, 4),
        JUMP(BPF_JEQ, 4, 3, 5),
        JUMP(BPF_JEQ, 4, 5, 4),
        JUMP(BPF_JEQ, 4, 7, 3),
        JUMP(BPF_JGE, 4, 8, 4),
        ANSWER(0),
        ANSWER(1),
        JUMP(BPF_JLE, 4, 9, 2),
        ANSWER(0),
        ANSWER(1),
    };
    union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
                           .insns = (uint64_t)(uintptr_t)code,
                           .insn_cnt = sizeof code / sizeof *code,
                           .license = (uint64_t)(uintptr_t) "Apache-2.0",
                           .expected_attach_type = BPF_CGROUP_DEVICE};
    int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
    if (fd < 0)
        die("load", "device program");
    return fd;
}

static void open_unified(Setup *setup) {
    int top = open(TOP, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (top < 0)
        die("open", TOP);
    put(top, "cgroup.subtree_control", "+cpu +memory +pids +io");
    setup->controllers = 1;
    setup->controller[0] = "";
    setup->parent_group[0] = make_and_open(top, parent_name);
    put(setup->parent_group[0], "cgroup.subtree_control", "+cpu +memory +pids +io");
    setup->device_program = load_device_program();
    close(top);
}

static void limit_v1(const char *controller, int group) {
    if (strcmp(controller, "memory") == 0) {
        put(group, "memory.limit_in_bytes", "268435456");
        put(group, "memory.memsw.limit_in_bytes", "536870912");
    } else if (strcmp(controller, "cpu") == 0) {
        put(group, "cpu.cfs_quota_us", "100000");
    } else if (strcmp(controller, "pids") == 0) {
        put(group, "pids.max", "64");
    } else if (strcmp(controller, "devices") == 0) {
        put(group, "devices.deny", "a");
        int allow = openat(group, "devices.allow", O_WRONLY | O_CLOEXEC);
        for (int i = 0; i < DEVICE_RULE_COUNT; i++)
            if (write(allow, DEVICE_RULES[i], strlen(DEVICE_RULES[i])) < 0)
                die("devices.allow", DEVICE_RULES[i]);
        close(allow);
    }
}

void groups_open(Setup *setup) {
    static const char *const NAMES[] = {"memory", "pids", "cpu", "cpuacct", "blkio", "devices"};
    snprintf(parent_name, sizeof parent_name, "%s-%d", setup->group_name, (int)getpid());
    setup->device_program = -1;
    setup->unified = access(TOP "/cgroup.controllers", F_OK) == 0;
    if (setup->unified) {
        open_unified(setup);
        return;
    }
    setup->controllers = sizeof NAMES / sizeof *NAMES;
    for (int i = 0; i < setup->controllers; i++) {
        char path[64];
        snprintf(path, sizeof path, TOP "/%s", NAMES[i]);
        int top = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (top < 0)
            die("open", path);
        setup->controller[i] = NAMES[i];
        setup->parent_group[i] = make_and_open(top, parent_name);
        if (strcmp(NAMES[i], "devices") == 0)
            limit_v1(NAMES[i], setup->parent_group[i]);
        close(top);
    }
}

void groups_close(const Setup *setup) {
    for (int i = 0; i < setup->controllers; i++) {
        char path[160];
        snprintf(path, sizeof path, TOP "/%s/%s", setup->controller[i], parent_name);
        close(setup->parent_group[i]);
        if (rmdir(path) < 0)
            die("rmdir", path);
    }
}

static void limit_v2(const Setup *setup, int group) {
    put(group, "memory.max", "268435456");
    put(group, "cpu.max", "100000 100000");
    put(group, "pids.max", "64");
    union bpf_attr attr = {.target_fd = (uint32_t)group,
                           .attach_bpf_fd = (uint32_t)setup->device_program,
                           .attach_type = BPF_CGROUP_DEVICE};
    if (syscall(SYS_bpf, BPF_PROG_ATTACH, &attr, sizeof attr) < 0)
        die("attach", "device program");
}

// The tree is what the container sees below /sys/fs/cgroup: its own group, read-only.
static int group_tree(int group) {
    int tree = (int)syscall(SYS_open_tree, group, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC};
    if (tree < 0 || syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof attr) < 0)
        die("clone", "cgroup tree");
    return tree;
}

static bool is_shared(const Setup *setup, int i) { return strcmp(setup->controller[i], "devices") == 0; }

void group_make(Run *run) {
    const Setup *setup = run->setup;
    for (int i = 0; i < setup->controllers; i++) {
        bool shared = is_shared(setup, i);
        run->group[i] =
            shared ? fcntl(setup->parent_group[i], F_DUPFD_CLOEXEC, 3) : make_and_open(setup->parent_group[i], run->id);
        run->tasks[i] = -1;
        if (setup->unified) {
            limit_v2(setup, run->group[i]);
        } else {
            if (!shared)
                limit_v1(setup->controller[i], run->group[i]);
            run->tasks[i] = openat(run->group[i], "tasks", O_WRONLY | O_CLOEXEC);
            if (run->tasks[i] < 0)
                die("open", "tasks");
        }
        run->cgroup_tree[i] = group_tree(run->group[i]);
    }
}

static bool get(int group, const char *file, char *ret_text, size_t size) {
    int fd = openat(group, file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, ret_text, size - 1);
    close(fd);
    ret_text[n > 0 ? n : 0] = 0;
    return n >= 0;
}

static uint64_t number_after(const char *text, const char *key) {
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static void usage_v2(int group, GroupUsage *ret_usage) {
    char text[4096];
    if (get(group, "memory.peak", text, sizeof text))
        ret_usage->peak_memory = number_after(text, "");
    if (get(group, "memory.events", text, sizeof text))
        ret_usage->oom_kills = number_after(text, "oom_kill ");
    if (get(group, "cpu.stat", text, sizeof text)) {
        ret_usage->cpu_user = number_after(text, "user_usec ");
        ret_usage->cpu_system = number_after(text, "system_usec ");
    }
    if (get(group, "pids.peak", text, sizeof text))
        ret_usage->pids_peak = number_after(text, "");
    if (get(group, "io.stat", text, sizeof text))
        ret_usage->io_bytes = number_after(text, "rbytes=") + number_after(text, "wbytes=");
}

void group_usage(Run *run, GroupUsage *ret_usage) {
    char text[4096];
    if (run->setup->unified) {
        usage_v2(run->group[0], ret_usage);
        return;
    }
    for (int i = 0; i < run->setup->controllers; i++) {
        const char *name = run->setup->controller[i];
        int group = run->group[i];
        if (strcmp(name, "memory") == 0) {
            if (get(group, "memory.max_usage_in_bytes", text, sizeof text))
                ret_usage->peak_memory = number_after(text, "");
            if (get(group, "memory.oom_control", text, sizeof text))
                ret_usage->oom_kills = number_after(text, "oom_kill ");
        } else if (strcmp(name, "cpuacct") == 0) {
            if (get(group, "cpuacct.usage_user", text, sizeof text))
                ret_usage->cpu_user = number_after(text, "");
            if (get(group, "cpuacct.usage_sys", text, sizeof text))
                ret_usage->cpu_system = number_after(text, "");
        } else if (strcmp(name, "pids") == 0) {
            if (get(group, "pids.peak", text, sizeof text))
                ret_usage->pids_peak = number_after(text, "");
        } else if (strcmp(name, "blkio") == 0) {
            if (get(group, "blkio.throttle.io_service_bytes_recursive", text, sizeof text))
                ret_usage->io_bytes = number_after(text, "Total ");
        }
    }
}

void group_close(Run *run) {
    for (int i = 0; i < run->setup->controllers; i++) {
        close(run->group[i]);
        close(run->cgroup_tree[i]);
        if (run->tasks[i] >= 0)
            close(run->tasks[i]);
    }
}

// The last task may still be on its way out when the parent has been told: EBUSY is waited for.
void group_remove(const Setup *setup, const char *id) {
    for (int i = 0; i < setup->controllers; i++) {
        for (int tries = 0; !is_shared(setup, i) && unlinkat(setup->parent_group[i], id, AT_REMOVEDIR) < 0; tries++) {
            if (errno != EBUSY || tries == 1000)
                die("rmdir cgroup", id);
            usleep(500);
        }
    }
}
