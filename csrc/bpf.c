/* Loads device filters for cgroup v2; see bpf.h.
 * bpf(2). Called by pycontainer.runtime.cgroups, once for each set of rules.
 */
#include "bpf.h"
#include "error.h"

#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int pyc_load_device_filter(const uint8_t *code, uint64_t size, PycError *err) {
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    attr.insns = (__u64)(uintptr_t)code;
    attr.insn_cnt = (__u32)(size / sizeof(struct bpf_insn));
    attr.license = (__u64)(uintptr_t) "Apache-2.0";
    int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
    return fd < 0 ? pyc_fail(err, errno, "load the device filter", "") : fd;
}
