#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"
#include "netlink.h"

void say(const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text - 2, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof text - 3)
        length = (int)sizeof text - 3;
    dprintf(STDERR_FILENO, "insula-agent: %.*s\n", length, text);
}

void init_console(void)
{
    const char *name = getpid() == 1 ? "/dev/console" : "/dev/null";
    bool open_now[3];
    for (int i = 0; i < 3; i++)
        open_now[i] = fcntl(i, F_GETFD) >= 0;
    if (open_now[0] && open_now[1] && open_now[2])
        return;
    int fd = open(name, O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        fd = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3 && fd >= 0; i++)
        if (!open_now[i] && fd != i)
            dup2(fd, i);
    if (fd > 2)
        close(fd);
}

static const struct {
    const char *kind, *place, *options;
    unsigned long flags;
} mounts[] = {
    { "proc", "/proc", NULL, MS_NOSUID | MS_NOEXEC | MS_NODEV },
    { "sysfs", "/sys", NULL, MS_NOSUID | MS_NOEXEC | MS_NODEV },
    { "devtmpfs", "/dev", "mode=0755", MS_NOSUID },
    { "devpts", "/dev/pts", "gid=5,mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC },
    { "tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV },
    { "tmpfs", "/run", "mode=0755", MS_NOSUID | MS_NODEV },
    { "tmpfs", "/tmp", "mode=1777", MS_NOSUID | MS_NODEV },
    { "cgroup2", "/sys/fs/cgroup", NULL, MS_NOSUID | MS_NOEXEC | MS_NODEV },
};

/* Is something mounted there already? Then it lies on another device than the folder above it. */
static bool is_mounted(const char *place)
{
    struct stat here, above;
    char path[64];
    snprintf(path, sizeof path, "%s/..", place);
    return stat(place, &here) == 0 && stat(path, &above) == 0 && here.st_dev != above.st_dev;
}

static void raise_loopback(const struct link_info *link, void *context)
{
    if (link->loopback)
        *(int *)context = link->index;
}

void init_system(void)
{
    char name[80];
    int loopback = 0;
    mount(NULL, "/", NULL, MS_REMOUNT, NULL); /* the kernel mounts a root read-only when nobody says otherwise */
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        mkdir(mounts[i].place, 0755);
        if (!is_mounted(mounts[i].place))
            mount(mounts[i].kind, mounts[i].place, mounts[i].kind, mounts[i].flags, mounts[i].options);
    }
    symlink("/proc/self/fd", "/dev/fd");
    symlink("/proc/self/fd/0", "/dev/stdin");
    symlink("/proc/self/fd/1", "/dev/stdout");
    symlink("/proc/self/fd/2", "/dev/stderr");
    reboot(RB_DISABLE_CAD); /* Ctrl-Alt-Del becomes SIGINT to us */
    if (read_line("/etc/hostname", name, sizeof name))
        sethostname(name, strlen(name));
    links_each(raise_loopback, &loopback);
    if (loopback)
        link_set_up(loopback, true);
}
