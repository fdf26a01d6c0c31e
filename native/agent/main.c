/* insula-agent: what Insula has inside a guest. It speaks with the keeper over a virtio-serial port (docs/wire.md), as a
 * service of the guest's init or as its PID 1, and also brings an initramfs up to the real root (initramfs.c).
 *
 * usage: insula-agent [--port PATH | --port fd:N]
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cgroups.h"
#include "channels.h"
#include "children.h"
#include "init.h"
#include "link.h"
#include "loop.h"
#include "power.h"
#include "renew.h"

static void new_life(void)
{
    channels_hang_up();
    renew_expect();
}

static const struct link_listener listener = { .frame = channels_frame, .new_life = new_life };

static void settle(void)
{
    bool more;
    do {
        more = !link_take();
        more |= !channels_settle();
        link_flush();
    } while (more && link_room());
    link_watch();
}

/* As PID 1 the kernel hands us words of its command line: none of them is ours. */
static const char *parse(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--port") == 0)
        return argv[2];
    if (argc > 1 && getpid() != 1) {
        fprintf(stderr, "usage: insula-agent [--port PATH | --port fd:N]\n");
        _exit(2);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (getpid() == 1) {
        init_system();
        init_console();
        initramfs_run();
    }
    init_console();
    const char *port = parse(argc, argv);
    setsid();
    loop_init();
    children_init(power_asked);
    if (!port)
        cgroup_init(); /* at a port given by hand we are somebody's guest, and change nothing around us */
    link_init(port, &listener);
    loop_run(settle);
}
