/* The same program as /init of a small initramfs: modules, the root device, and on to the real system.
 *
 * /etc/insula/modules names one module file a line, in the order they are loaded, parameters after a space. The kernel's
 * command line says `insula.root=/dev/vda2` (or UUID=…) and perhaps `insula.init=/sbin/init` (default: /sbin/insula-agent), and
 * `ro` to mount the root read-only. For another init,
 * a root in which errors were found is mounted so, too: it checks and mends it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <termios.h>
#include <unistd.h>

#include "files.h"
#include "init.h"
#include "kernel.h"
#include "loop.h"
#include "rootdev.h"

enum { RAMFS = 0x858458f6, TMPFS = 0x01021994, PATIENCE = 10000, GLANCE = 250 };

static const char modules[] = "/etc/insula/modules", new_root[] = "/insula-root";

/* The end of process 1 is a panic: so the host learns that the guest failed, and does not take it for one that shut down. */
_Noreturn static void give_up(const char *what, const char *which)
{
    say("%s %s: %s. The guest cannot start.", what, which, strerror(errno));
    tcdrain(STDERR_FILENO);
    _exit(1);
}

/* The value of the last `name=value` on the kernel's command line. */
static bool kernel_word(const char *line, const char *name, char *to, size_t size)
{
    size_t length = strlen(name);
    bool found = false;
    for (const char *at = line; *at;) {
        size_t word = strcspn(at, " \n");
        if (word >= length && strncmp(at, name, length) == 0 && word - length < size) {
            memcpy(to, at + length, word - length);
            to[word - length] = 0;
            found = true;
        }
        at += word + strspn(at + word, " \n");
    }
    return found;
}

static void load_module(char *line)
{
    enum { COMPRESSED = 4 };
    char *parameters = strchr(line, ' ');
    if (parameters)
        *parameters++ = 0;
    size_t length = strlen(line);
    bool plain = length > 3 && strcmp(line + length - 3, ".ko") == 0;
    int fd = open(line, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, parameters ? parameters : "", plain ? 0 : COMPRESSED) < 0 && errno != EEXIST))
        say("module %s: %s", line, strerror(errno)); /* perhaps it is not needed: the root will tell */
    if (fd >= 0)
        close(fd);
}

static void load_modules(void)
{
    char line[PATH_MAX];
    FILE *list = fopen(modules, "re");
    if (!list)
        return;
    while (fgets(line, sizeof line, list)) {
        line[strcspn(line, "\n")] = 0;
        if (line[0] && line[0] != '#')
            load_module(line);
    }
    fclose(list);
}

/* The kernel tells of new devices; we look again at least every GLANCE milliseconds all the same. */
static bool wait_for(const char *wanted, char *device, size_t size)
{
    bool damaged = false;
    struct { uint16_t family, pad; uint32_t port, groups; } address = { .family = AF_NETLINK, .groups = 1 };
    int news = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NL_KOBJECT_UEVENT);
    if (news >= 0)
        bind(news, (struct sockaddr *)&address, sizeof address);
    uint64_t end = now_ms() + PATIENCE;
    while (!find_root_device(wanted, device, size, &damaged)) {
        char text[4096];
        struct pollfd more = { .fd = news, .events = POLLIN };
        if (now_ms() >= end) {
            errno = ENODEV;
            give_up("no root device", wanted);
        }
        poll(&more, 1, GLANCE);
        while (news >= 0 && recv(news, text, sizeof text, 0) > 0)
            ;
    }
    if (news >= 0)
        close(news);
    return damaged;
}

/* Free the memory the initramfs takes: everything on its own device. */
static void delete_all(int folder, dev_t device)
{
    struct stat status;
    DIR *opened = fdopendir(folder);
    if (!opened) {
        close(folder);
        return;
    }
    struct dirent *entry;
    while ((entry = readdir(opened))) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            continue;
        if (fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) < 0 || status.st_dev != device)
            continue;
        if (S_ISDIR(status.st_mode)) {
            int below = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (below >= 0)
                delete_all(below, device);
        }
        unlinkat(folder, name, S_ISDIR(status.st_mode) ? AT_REMOVEDIR : 0);
    }
    closedir(opened);
}

static void move_mounts(void)
{
    static const char *const places[] = { "/proc", "/sys", "/dev", "/run" };
    char target[64];
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(target, sizeof target, "%s%s", new_root, places[i]);
        mkdir(target, 0755);
        if (mount(places[i], target, NULL, MS_MOVE, NULL) < 0)
            umount2(places[i], MNT_DETACH);
    }
}

_Noreturn static void switch_root(const char *init)
{
    extern char **environ;
    struct stat old;
    char *const argv[] = { (char *)init, NULL };
    umount2("/tmp", MNT_DETACH);
    int initramfs = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    move_mounts();
    if (chdir(new_root) < 0 || initramfs < 0 || fstat(initramfs, &old) < 0)
        give_up("cannot enter", new_root);
    delete_all(initramfs, old.st_dev);
    if (mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        give_up("cannot switch to", new_root);
    int console = open("/dev/console", O_RDWR | O_NOCTTY);
    for (int i = 0; i < 3 && console >= 0; i++)
        dup2(console, i);
    if (console > 2)
        close(console);
    execve(init, argv, environ);
    give_up("cannot run", init);
}

void initramfs_run(void)
{
    char line[4096], root[256], device[256], init[256];
    struct statfs status;
    if (statfs("/", &status) < 0 || ((unsigned long)status.f_type != RAMFS && (unsigned long)status.f_type != TMPFS))
        return;
    load_modules();
    if (read_text("/proc/cmdline", line, sizeof line) < 0 || !kernel_word(line, "insula.root=", root, sizeof root))
        return;
    bool mends = kernel_word(line, "insula.init=", init, sizeof init);
    if (!mends)
        strcpy(init, "/sbin/insula-agent");
    bool damaged = wait_for(root, device, sizeof device);
    char nothing[2];
    unsigned long flags = (mends && damaged) || kernel_word(line, "ro", nothing, 1) ? MS_RDONLY : 0;
    mkdir(new_root, 0755);
    if (mount(device, new_root, "ext4", flags, NULL) < 0)
        give_up("cannot mount", device);
    switch_root(init);
}
