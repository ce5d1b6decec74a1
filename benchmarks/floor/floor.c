// Owns the floor: the least time in which this kernel gives one fully isolated run of /bin/true, with no Python around.
// Uses overlay by the new mount API, clone3 with a pidfd, pipes, waitid(P_PIDFD); cgroup.c and child.c do the rest.
// Called by benchmarks/run.py, or by hand: floor --rootfs DIR --run-root DIR --seccomp FILE --runs N [--trace].
//
// The order is the quickest known. Every call has a counterpart in what engine.run() does by default; removal of the
// group and of the run directory is left to a cleaner process, off the path, as it is in the engine.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "floor.h"

typedef struct {
    Setup setup;
    int cleaner; // pipe to the cleaner process
    pid_t cleaner_pid;
    int dev_null;
    atomic_int next;
    int64_t step_total[MAX_STAMPS];
    const char *step_name[MAX_STAMPS];
    int traced, steps;
    int threads;
} Floor;

void die(const char *step, const char *what) {
    fprintf(stderr, "floor: %s %s: %s\n", step, what, strerror(errno));
    exit(1);
}

int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void stamp(Run *run, const char *name) {
    if (!run->setup->trace || run->stamps == MAX_STAMPS)
        return;
    run->stamp_name[run->stamps] = name;
    run->stamp_ns[run->stamps++] = now_ns();
}

// A mount namespace with an empty tmpfs, /proc and /sys: copying it costs the same however many mounts the host has.
static int thin_namespace(void) {
    int ready[2], done[2];
    if (pipe2(ready, O_CLOEXEC) < 0 || pipe2(done, O_CLOEXEC) < 0)
        die("pipe", "for the thin namespace");
    pid_t pid = fork();
    if (pid == 0) {
        if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
            mount("tmpfs", "/tmp", "tmpfs", 0, "mode=755") < 0 || chdir("/tmp") < 0 || mkdir("mnt", 0755) < 0 ||
            mkdir("proc", 0755) < 0 || mkdir("sys", 0755) < 0 || mount("proc", "proc", "proc", 0, NULL) < 0 ||
            mount("sysfs", "sys", "sysfs", 0, NULL) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 ||
            umount2(".", MNT_DETACH) < 0)
            die("make", "the thin namespace");
        char byte = 'r';
        if (write(ready[1], &byte, 1) != 1 || close(done[1]) < 0)
            die("tell", "readiness");
        _exit(read(done[0], &byte, 1) != 0);
    }
    char byte, path[64];
    close(ready[1]);
    if (pid < 0 || read(ready[0], &byte, 1) != 1)
        die("make", "the thin namespace");
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        die("open", path);
    close(ready[0]);
    close(done[0]);
    close(done[1]);
    waitpid(pid, NULL, 0);
    return fd;
}

static int configure(int fs, unsigned command, const char *key, const char *value) {
    return (int)syscall(SYS_fsconfig, fs, command, key, value, 0);
}

static int overlay_tree(const Setup *setup, const char *id) {
    char upper[512], work[512];
    snprintf(upper, sizeof upper, "%s/%s", setup->run_root, id);
    if (mkdir(upper, 0700) < 0)
        die("mkdir", upper);
    snprintf(upper, sizeof upper, "%s/%s/upper", setup->run_root, id);
    snprintf(work, sizeof work, "%s/%s/work", setup->run_root, id);
    if (mkdir(upper, 0755) < 0 || mkdir(work, 0700) < 0)
        die("mkdir", work);
    int fs = (int)syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC);
    if (fs < 0 || configure(fs, FSCONFIG_SET_STRING, "lowerdir+", setup->rootfs) < 0 ||
        configure(fs, FSCONFIG_SET_STRING, "upperdir", upper) < 0 ||
        configure(fs, FSCONFIG_SET_STRING, "workdir", work) < 0 ||
        configure(fs, FSCONFIG_SET_FLAG, "volatile", NULL) < 0 || configure(fs, FSCONFIG_CMD_CREATE, NULL, NULL) < 0)
        die("configure", "overlay");
    int tree = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
    if (tree < 0)
        die("fsmount", "overlay");
    close(fs);
    return tree;
}

static void etc_trees(Run *run) {
    static const char *const NAMES[ETC_FILES] = {"hosts", "hostname", "resolv.conf"};
    static const char *const TEXTS[ETC_FILES] = {"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\tfloor\n", "floor\n",
                                                 "# no network\n"};
    int fs = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
    if (fs < 0 || configure(fs, FSCONFIG_CMD_CREATE, NULL, NULL) < 0)
        die("configure", "tmpfs");
    int dir = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    if (dir < 0)
        die("fsmount", "tmpfs");
    for (int i = 0; i < ETC_FILES; i++) {
        int fd = openat(dir, NAMES[i], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0 || write(fd, TEXTS[i], strlen(TEXTS[i])) < 0)
            die("write", NAMES[i]);
        close(fd);
        run->etc_tree[i] = (int)syscall(SYS_open_tree, dir, NAMES[i], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        if (run->etc_tree[i] < 0)
            die("open_tree", NAMES[i]);
    }
    close(dir);
    close(fs);
}

static pid_t spawn(Run *run, char *stack, int *ret_pidfd) {
    struct clone_args args = {
        .flags =
            CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS,
        .pidfd = (uint64_t)(uintptr_t)ret_pidfd,
        .stack = (uint64_t)(uintptr_t)stack,
        .stack_size = CHILD_STACK,
    };
    if (run->setup->unified) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint32_t)run->group[0];
    }
    // libc has no clone3 wrapper: the child continues on the new stack, where it may only call child_main.
    long pid;
#if defined(__x86_64__)
    register void *keep_run __asm__("r12") = run;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%r12, %%rdi\n\t"
                     "call child_main\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(pid)
                     : "a"(SYS_clone3), "D"(&args), "S"(sizeof args), "r"(keep_run)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = SYS_clone3;
    register long x0 __asm__("x0") = (long)&args;
    register long x1 __asm__("x1") = sizeof args;
    register void *x20 __asm__("x20") = run;
    __asm__ volatile("svc #0\n\tcbnz x0, 1f\n\tmov x29, xzr\n\tmov x0, x20\n\tbl child_main\n\tbrk #0\n1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x20)
                     : "memory");
    pid = x0;
#else
#error "spawn is written for x86_64 and aarch64"
#endif
    if (pid < 0) {
        errno = (int)-pid;
        die("clone3", "child");
    }
    return (pid_t)pid;
}

static void read_to_end(int out, int err) {
    struct pollfd fds[2] = {{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
    char buffer[16384];
    for (int open_ends = 2; open_ends > 0;) {
        if (poll(fds, 2, -1) < 0)
            die("poll", "output");
        for (int i = 0; i < 2; i++) {
            if (fds[i].fd < 0 || fds[i].revents == 0)
                continue;
            if (read(fds[i].fd, buffer, sizeof buffer) > 0)
                continue;
            close(fds[i].fd);
            fds[i].fd = -1;
            open_ends--;
        }
    }
}

static void add_trace(Floor *floor, const Run *run, int64_t start) {
    int64_t previous = start;
    for (int i = 0; i < run->stamps; i++) {
        floor->step_name[i] = run->stamp_name[i];
        floor->step_total[i] += run->stamp_ns[i] - previous;
        previous = run->stamp_ns[i];
    }
    floor->steps = run->stamps;
    floor->traced++;
}

static void close_trees(Run *run) {
    close(run->root_tree);
    for (int i = 0; i < ETC_FILES; i++)
        close(run->etc_tree[i]);
}

static double run_once(Floor *floor, char *stack) {
    Run run = {.setup = &floor->setup, .stdin_fd = floor->dev_null};
    int out[2], err[2], pidfd = -1;
    GroupUsage usage = {0};
    siginfo_t info = {0};
    sigset_t all, old;
    int64_t start = now_ns();
    snprintf(run.id, sizeof run.id, "%d-%d", (int)getpid(), atomic_fetch_add(&floor->next, 1));
    group_make(&run);
    stamp(&run, "cgroups");
    run.root_tree = overlay_tree(&floor->setup, run.id);
    stamp(&run, "overlay");
    etc_trees(&run);
    stamp(&run, "etc tmpfs");
    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
        die("pipe", "output");
    run.stdout_fd = out[1];
    run.stderr_fd = err[1];
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    spawn(&run, stack, &pidfd);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    close(out[1]);
    close(err[1]);
    close_trees(&run);
    read_to_end(out[0], err[0]);
    stamp(&run, "exec, run, end of output");
    if (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | __WALL) < 0)
        die("waitid", "child");
    stamp(&run, "exit");
    group_usage(&run, &usage);
    close(pidfd);
    group_close(&run);
    if (write(floor->cleaner, run.id, sizeof run.id) != sizeof run.id)
        die("tell", "the cleaner");
    stamp(&run, "usage");
    int64_t end = now_ns();
    if (run.failed_step != NULL) {
        errno = run.failed_errno;
        die("child", run.failed_step);
    }
    if (info.si_code != CLD_EXITED || info.si_status != 0 || usage.peak_memory == 0) {
        errno = EPROTO;
        die("check", "exit status and usage");
    }
    if (floor->setup.trace)
        add_trace(floor, &run, start);
    return (double)(end - start) / 1000;
}

static void remove_run_directory(const Setup *setup, const char *id) {
    static const char *const PARTS[] = {"work/work/incompat/volatile/dirty",
                                        "work/work/incompat/volatile",
                                        "work/work/incompat",
                                        "work/work",
                                        "work/index",
                                        "work",
                                        "upper",
                                        ""};
    char path[512];
    for (size_t i = 0; i < sizeof PARTS / sizeof *PARTS; i++) {
        snprintf(path, sizeof path, "%s/%s/%s", setup->run_root, id, PARTS[i]);
        if (remove(path) < 0 && errno != ENOENT)
            die("remove", path);
    }
}

static void start_cleaner(Floor *floor) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        die("pipe", "cleaner");
    floor->cleaner_pid = fork();
    if (floor->cleaner_pid == 0) {
        char id[sizeof((Run *)0)->id];
        close(ends[1]);
        while (read(ends[0], id, sizeof id) == sizeof id) {
            group_remove(&floor->setup, id);
            remove_run_directory(&floor->setup, id);
        }
        _exit(0);
    }
    if (floor->cleaner_pid < 0)
        die("fork", "cleaner");
    close(ends[0]);
    floor->cleaner = ends[1];
}

static char *new_stack(void) {
    char *stack = mmap(NULL, CHILD_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED)
        die("mmap", "stack");
    return stack;
}

typedef struct {
    Floor *floor;
    int count, sleep_ms;
    double *us;
} Work;

static void *work(void *argument) {
    Work *todo = argument;
    char *stack = new_stack();
    for (int i = 0; i < todo->count; i++) {
        if (todo->sleep_ms > 0)
            usleep((useconds_t)todo->sleep_ms * 1000);
        todo->us[i] = run_once(todo->floor, stack);
    }
    munmap(stack, CHILD_STACK);
    return NULL;
}

// With several threads the count is shared out; each sample is still the time of one run.
static void batch(void *context, int count, int sleep_ms, double *ret_us) {
    Floor *floor = context;
    pthread_t thread[64];
    Work todo[64];
    int threads = floor->threads > count ? count : floor->threads;
    for (int i = 0, from = 0; i < threads; i++) {
        int share = count / threads + (i < count % threads);
        todo[i] = (Work){floor, share, sleep_ms, ret_us + from};
        from += share;
        if (threads == 1)
            work(&todo[i]);
        else if ((errno = pthread_create(&thread[i], NULL, work, &todo[i])) != 0)
            die("create", "thread");
    }
    for (int i = 0; i < threads && threads > 1; i++)
        pthread_join(thread[i], NULL);
}

static void load_filter(Setup *setup, const char *path) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        die("open", path);
    setup->filter.filter = malloc((size_t)st.st_size);
    setup->filter.len = (unsigned short)((size_t)st.st_size / sizeof(struct sock_filter));
    if (read(fd, setup->filter.filter, (size_t)st.st_size) != st.st_size)
        die("read", path);
    close(fd);
}

static void print_trace(const Floor *floor) {
    for (int i = 0; i < floor->steps; i++)
        fprintf(stderr, "%9.1f us  %s\n", (double)floor->step_total[i] / floor->traced / 1000, floor->step_name[i]);
}

int main(int argc, char **argv) {
    static const struct option OPTIONS[] = {{"rootfs", 1, 0, 'r'},
                                            {"run-root", 1, 0, 'd'},
                                            {"seccomp", 1, 0, 'f'},
                                            {"runs", 1, 0, 'n'},
                                            {"sleep-ms", 1, 0, 's'},
                                            {"trace", 0, 0, 't'},
                                            {"copy-host-mounts", 0, 0, 'c'},
                                            {"threads", 1, 0, 'j'},
                                            {"group", 1, 0, 'g'},
                                            {0}};
    static Floor floor = {.threads = 1, .setup = {.group_name = "pycontainer-floor"}};
    const char *filter = NULL;
    int runs = 0, sleep_ms = 0, option;
    bool copy_host = false;
    while ((option = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1) {
        switch (option) {
        case 'r':
            floor.setup.rootfs = optarg;
            break;
        case 'd':
            floor.setup.run_root = optarg;
            break;
        case 'f':
            filter = optarg;
            break;
        case 'n':
            runs = atoi(optarg);
            break;
        case 's':
            sleep_ms = atoi(optarg);
            break;
        case 't':
            floor.setup.trace = true;
            break;
        case 'c':
            copy_host = true;
            break;
        case 'g':
            floor.setup.group_name = optarg;
            break;
        case 'j':
            floor.threads = atoi(optarg);
            break;
        default:
            return 2;
        }
    }
    if (!floor.setup.rootfs || !floor.setup.run_root || !filter || floor.threads < 1 || floor.threads > 64 ||
        (floor.setup.trace && floor.threads > 1)) {
        fprintf(stderr, "usage: floor --rootfs DIR --run-root DIR --seccomp FILE [--runs N] [--sleep-ms N]\n"
                        "             [--group NAME] [--copy-host-mounts] [--threads N | --trace]\n");
        return 2;
    }
    load_filter(&floor.setup, filter);
    floor.setup.thin_ns = copy_host ? -1 : thin_namespace();
    floor.dev_null = open("/dev/null", O_RDWR | O_CLOEXEC);
    groups_open(&floor.setup);
    start_cleaner(&floor);
    serve(batch, &floor, runs, sleep_ms);
    close(floor.cleaner);
    waitpid(floor.cleaner_pid, NULL, 0);
    groups_close(&floor.setup);
    if (floor.setup.trace)
        print_trace(&floor);
    return 0;
}
