/* Other machines' files, the host's, this machine's own records, and what was handed in. */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { MOST_DESCRIPTORS = 1024 };
#define BEYOND ((off_t)1 << 40)

static long see(const char *path)
{
    return open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
}

static long make(const char *path)
{
    return open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
}

#define SEE(function, path) \
    static long function(void) \
    { \
        return see(path); \
    }
#define MAKE(function, path) \
    static long function(void) \
    { \
        return make(path); \
    }

SEE(other_disk, target("disk"))
SEE(other_memory, target("memory"))
SEE(own_record, target("record"))
SEE(own_folder, target("folder"))
SEE(passwd, "/etc/passwd")
SEE(shadow, "/etc/shadow")
SEE(root_home, "/root")
SEE(homes, "/home")
SEE(proc, "/proc/self/status")
SEE(core_pattern, "/proc/sys/kernel/core_pattern")
SEE(sys, "/sys/kernel")
SEE(run, "/run")
SEE(kvm, "/dev/kvm")
SEE(tun, "/dev/net/tun")
SEE(memory_device, "/dev/mem")
SEE(kernel_log, "/dev/kmsg")
SEE(disk_device, "/dev/vda")
SEE(fuse, "/dev/fuse")
SEE(own_descriptors, "/dev/fd")
MAKE(in_root, "/x")
MAKE(in_tmp, "/tmp/x")
MAKE(in_bin, "/usr/bin/x")
MAKE(in_dev, "/dev/x")
MAKE(in_shm, "/dev/shm/x")

/* The file is there, as a place for the device where it is granted. */
static long faults_taken(void)
{
    return ioctl(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), 0xAA00, 1); /* USERFAULTFD_IOC_NEW, linux/userfaultfd.h */
}

static long root_writable(void)
{
    struct statvfs seen;
    if (statvfs("/", &seen) == 0 && !(seen.f_flag & ST_RDONLY))
        return 0;
    errno = EROFS;
    return -1;
}

static long frozen_layer(void)
{
    return open(target("layer"), O_WRONLY | O_CLOEXEC);
}

static long folder_made(void)
{
    return mkdir("/x", 0700);
}

static long link_made(void)
{
    return symlink("/etc/passwd", "/x");
}

static long device_made(void)
{
    return mknod("/x", S_IFBLK | 0600, makedev(254, 0));
}

static long pipe_made(void)
{
    return mkfifo("/x", 0600);
}

/* Of what was handed in to be read: whether it can be written all the same. */
static long read_only_written(void)
{
    for (int fd = 0; fd < MOST_DESCRIPTORS; fd++) {
        struct stat seen;
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || (flags & O_ACCMODE) != O_RDONLY || fstat(fd, &seen) < 0 || !S_ISREG(seen.st_mode))
            continue;
        if (pwrite(fd, "x", 1, 0) == 1 || ftruncate(fd, 0) == 0 || fchmod(fd, 0666) == 0)
            return fd;
    }
    errno = EBADF;
    return -1;
}

/* Its disk and its log are handed in to be written: whether they can be made as large as the host's own disk. */
static long written_beyond(void)
{
    for (int fd = 0; fd < MOST_DESCRIPTORS; fd++) {
        struct stat seen;
        int flags = fcntl(fd, F_GETFL);
        if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY || fstat(fd, &seen) < 0 || !S_ISREG(seen.st_mode))
            continue;
        if (ftruncate(fd, BEYOND) == 0) {
            (void)!ftruncate(fd, seen.st_size);
            return fd;
        }
    }
    return -1;
}

/* A folder, a terminal or a device among what was handed in would be a way out; /dev/null is none. */
static long strange_descriptor(void)
{
    for (int fd = 0; fd < MOST_DESCRIPTORS; fd++) {
        struct stat seen;
        if (fstat(fd, &seen) < 0)
            continue;
        if (S_ISDIR(seen.st_mode) || S_ISBLK(seen.st_mode) || isatty(fd))
            return fd;
    }
    errno = EBADF;
    return -1;
}

const struct attempt file_attempts[] = {
    {"read another machine's disk", other_disk},
    {"read another machine's memory", other_memory},
    {"read its own record", own_record},
    {"list its own folder", own_folder},
    {"write its own frozen layer by name", frozen_layer},
    {"write what was handed in to be read", read_only_written},
    {"make its disk grow without end", written_beyond},
    {"be handed a folder, terminal or disk", strange_descriptor},
    {"read /etc/passwd", passwd},
    {"read /etc/shadow", shadow},
    {"list /root", root_home},
    {"list /home", homes},
    {"list /run", run},
    {"see /proc", proc},
    {"see the kernel's settings", core_pattern},
    {"see /sys", sys},
    {"open its own descriptors by name", own_descriptors},
    {"open /dev/kvm", kvm},
    {"open /dev/net/tun", tun},
    {"open /dev/mem", memory_device},
    {"open the kernel's log", kernel_log},
    {"open a disk of the host", disk_device},
    {"open /dev/fuse", fuse},
    {"handle page faults by its device", faults_taken},
    {"find the root writable", root_writable},
    {"make a file in the root", in_root},
    {"make a file in /tmp", in_tmp},
    {"make a file in /usr/bin", in_bin},
    {"make a file in /dev", in_dev},
    {"make a file in /dev/shm", in_shm},
    {"make a folder", folder_made},
    {"make a link", link_made},
    {"make a device", device_made},
    {"make a named pipe", pipe_made},
    {NULL, NULL},
};
