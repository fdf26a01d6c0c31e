/* What a program of the fabric sees and may do: it reads what guests send, so it gets little. */
#define _GNU_SOURCE
#include "hold.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442 /* the same number on every architecture */
#endif
#ifndef PR_CAP_AMBIENT
#define PR_CAP_AMBIENT 47
#define PR_CAP_AMBIENT_RAISE 2
#endif

enum { RECURSIVE = 0x8000 /* AT_RECURSIVE */, LAST_CAPABILITY = 63 };

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
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
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

static bool set_capabilities(unsigned long mask)
{
    /* capset(2), version 3: the first of two halves, each 32 capabilities */
    struct { uint32_t version; int pid; } header = { .version = 0x20080522 };
    struct { uint32_t effective, permitted, inheritable; } data[2] = { 0 };
    data[0].effective = data[0].permitted = data[0].inheritable = (uint32_t)mask;
    return syscall(SYS_capset, &header, data) == 0;
}

void bound_capabilities(unsigned long mask)
{
    for (int number = 0; number <= LAST_CAPABILITY; number++)
        if (number > 31 || !(mask >> number & 1))
            prctl(PR_CAPBSET_DROP, number, 0, 0, 0); /* refused: the kernel has no such capability */
}

bool reduce_rights(long uid, unsigned long mask)
{
    bound_capabilities(mask);
    if (uid >= 0) {
        if (prctl(PR_SET_KEEPCAPS, 1) < 0 || setgroups(0, NULL) < 0)
            return false;
        if (setresgid((gid_t)uid, (gid_t)uid, (gid_t)uid) < 0 || setresuid((uid_t)uid, (uid_t)uid, (uid_t)uid) < 0)
            return false;
    }
    if (!set_capabilities(mask))
        return false;
    for (int number = 0; number < 32; number++)
        if (mask >> number & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0) < 0)
            return false;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}
