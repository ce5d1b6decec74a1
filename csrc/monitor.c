/* pycontainer-monitor, the small static helper: the keeper, the cleaner and the init, chosen by the first argument.
 * No kernel interface of its own. Started by pycontainer.runtime.keeper and by the last step of a start.
 */
#include "monitor.h"
#include "sys.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

/* What the program ignores stays ignored over execve and clone; with SIGCHLD ignored no status of a child would be left
 * for us, and a container would ignore it too. By the kernel's own call: libc keeps two signals to itself. */
static void default_signals(void) {
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        uint64_t mask;
    } action = {0};
    for (int number = 1; number < NSIG; number++)
        (void)sys(SYS_rt_sigaction, number, &action, 0, 8); /* fails for SIGKILL and SIGSTOP, as it must */
}

int main(int argc, char **argv) {
    default_signals();
    if (argc == 2 && strcmp(argv[1], "keep") == 0)
        return keep();
    if (argc == 3 && strcmp(argv[1], "clean") == 0)
        return clean(argv[2]);
    if (argc >= 3 && strcmp(argv[1], "init") == 0)
        return init(argv + 2);
    static const char usage[] = "pycontainer-monitor is a part of pycontainer and is started by it\n";
    return write(2, usage, sizeof usage - 1) < 0 ? 126 : 125;
}
