/* What a program of the fabric sees and may do: it reads what guests send, so it gets little. */
#define _GNU_SOURCE
#include "hold.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442 /* the same number on every architecture */
#endif

enum { RECURSIVE = 0x8000 /* AT_RECURSIVE */ };

static const char stage[] = "/tmp"; /* hidden by the room while it is built, for this process alone */

static bool bind(const char *from, const char *to)
{
    /* struct mount_attr of mount_setattr(2): set, clear, propagation, user namespace */
    struct { unsigned long long set, clear, propagation, userns; } read_only = { .set = MS_RDONLY };
    if (mount(from, to, NULL, MS_BIND | MS_REC, NULL) < 0)
        return false;
    return syscall(SYS_mount_setattr, -1, to, RECURSIVE, &read_only, sizeof read_only) == 0;
}

/* On systems without a merged /usr these are folders. */
static bool add_system_folder(const char *name)
{
    char from[32], to[64], target[64];
    struct stat status;
    snprintf(from, sizeof from, "/%s", name);
    snprintf(to, sizeof to, "%s/%s", stage, name);
    if (lstat(from, &status) < 0)
        return errno == ENOENT;
    if (!S_ISLNK(status.st_mode))
        return mkdir(to, 0755) == 0 && bind(from, to);
    ssize_t length = readlink(from, target, sizeof target - 1);
    if (length < 0)
        return false;
    target[length] = 0;
    return symlink(target, to) == 0;
}

static bool add_device(const char *name)
{
    char from[32], to[64];
    snprintf(from, sizeof from, "/dev/%s", name);
    snprintf(to, sizeof to, "%s/dev/%s", stage, name);
    int place = open(to, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    if (place < 0)
        return false;
    close(place);
    return mount(from, to, NULL, MS_BIND, NULL) == 0;
}

/* pivot_root(2): with both the same, the old root lies on top of the new one and is taken off. */
static bool turn_to(const char *place)
{
    return chdir(place) == 0 && syscall(SYS_pivot_root, ".", ".") == 0 && umount2(".", MNT_DETACH) == 0 && chdir("/") == 0;
}

bool take_root(const char *folder)
{
    return bind(folder, folder) && turn_to(folder);
}

bool enter_room(const char *folder)
{
    static const char *const folders[] = { "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32" };
    char path[32];
    if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS) < 0 || sethostname("insula", 6) < 0)
        return false;
    (void)!unshare(CLONE_NEWCGROUP); /* kernels may have none */
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return false;
    int shown = folder ? open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1; /* it may lie in what the stage hides */
    snprintf(path, sizeof path, "/proc/self/fd/%d", shown);
    if (folder && shown < 0)
        return false;
    if (mount("room", stage, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64k") < 0)
        return false;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        if (!add_system_folder(folders[i]))
            return false;
    if (mkdir("/tmp/dev", 0755) < 0 || !add_device("null") || !add_device("urandom") || mkdir("/tmp/n", 0755) < 0 || (folder && !bind(path, "/tmp/n")))
        return false;
    if (mount(NULL, stage, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0)
        return false;
    return turn_to(stage);
}
