#include "port.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "files.h"

static const char known_name[] = "org.insula.agent";
static const char ports[] = "/sys/class/virtio-ports";

static int open_path(const char *path)
{
    return open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

/* Without udev there are no links by name; the kernel tells the names in sysfs. */
static int open_by_sysfs(void)
{
    DIR *folder = opendir(ports);
    if (!folder)
        return -1;
    int fd = -1;
    struct dirent *entry;
    while (fd < 0 && (entry = readdir(folder))) {
        char path[sizeof ports + sizeof entry->d_name + 8], name[64];
        snprintf(path, sizeof path, "%s/%s/name", ports, entry->d_name);
        if (entry->d_name[0] == '.' || !read_line(path, name, sizeof name) || strcmp(name, known_name) != 0)
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        fd = open_path(path);
    }
    closedir(folder);
    return fd;
}

/* An inherited descriptor: kept from children, and made not to block. */
static int adopt(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return -1;
    return fd;
}

int port_open(const char *name)
{
    if (name && strncmp(name, "fd:", 3) == 0)
        return adopt(atoi(name + 3));
    if (name)
        return open_path(name);
    int fd = open_path("/dev/virtio-ports/org.insula.agent");
    return fd >= 0 ? fd : open_by_sysfs();
}
