/* Opens file system images as mounts that are attached nowhere; see view.h.
 * fsopen(2), fsconfig(2), fsmount(2); loop devices, see loop(4). Called by pycontainer.store.views.
 */
#include "view.h"
#include "error.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KEY_SIZE = 64, LOOP_ATTEMPTS = 64 };

static int set_option(int fs, const char *option) {
    char key[KEY_SIZE];
    const char *value = strchr(option, '=');
    if (!value)
        return (int)syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, option, NULL, 0);
    size_t length = (size_t)(value - option);
    if (length >= sizeof key) {
        errno = EINVAL;
        return -1;
    }
    memcpy(key, option, length);
    key[length] = 0;
    return (int)syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, key, value + 1, 0);
}

int pyc_view_open(const char *kind, const char *options, size_t size, const char *path, PycError *err) {
    static const char label[] = "mount the layer";
    PYC_AUTO_FD fs = (int)syscall(SYS_fsopen, kind, FSOPEN_CLOEXEC);
    if (fs < 0)
        return pyc_fail(err, errno, label, kind);
    for (size_t i = 0; i < size; i += strlen(options + i) + 1)
        if (set_option(fs, options + i) < 0)
            return pyc_fail(err, errno, label, options + i);
    if (syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "ro", NULL, 0) < 0 ||
        syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        return pyc_fail(err, errno, label, path);
    int mount =
        (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    return mount < 0 ? pyc_fail(err, errno, label, path) : mount;
}

/* Configure one free device. Another process may take it first: then -EBUSY, and the caller asks again. */
static int configure(int control, int file, char *ret_device, const char **ret_step) {
    *ret_step = "find a free loop device";
    int number = ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0)
        return -errno;
    char name[PYC_LOOP_NAME];
    (void)snprintf(name, sizeof name, "/dev/loop%d", number);
    *ret_step = "open the loop device";
    PYC_AUTO_FD device = open(name, O_RDONLY | O_CLOEXEC);
    if (device < 0)
        return -errno;
    *ret_step = "attach the file to a loop device";
    struct loop_config config = {.fd = (uint32_t)file, .block_size = 512};
    config.info.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
    if (ioctl(device, LOOP_CONFIGURE, &config) < 0)
        return -errno;
    memcpy(ret_device, name, sizeof name);
    return pyc_take_fd(&device);
}

int pyc_loop_open(const char *path, char *ret_device, PycError *err) {
    PYC_AUTO_FD file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return pyc_fail(err, errno, "open the layer", path);
    PYC_AUTO_FD control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        return pyc_fail(err, errno, "open", "/dev/loop-control");
    const char *step = "";
    int rc = -EBUSY;
    for (int i = 0; i < LOOP_ATTEMPTS && rc == -EBUSY; i++)
        rc = configure(control, file, ret_device, &step);
    return rc < 0 ? pyc_fail(err, rc, step, path) : rc;
}
