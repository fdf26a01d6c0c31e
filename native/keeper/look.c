/* A look at a process that runs as one of our sub-ids, from inside its user namespace, where we may: outside the kernel shows what it
 * holds and has in memory to that id alone, whoever made the namespace.
 *
 *     insula-keeper look PID                            what its descriptors lead to (proc(5), fd), each followed by a NUL
 *     insula-keeper look PID DEVICE INODE SOCKET        its pagemap and mem, passed along SOCKET; status 1 when none of its
 *                                                       descriptors is the file with these numbers
 */
#define _GNU_SOURCE
#include "hold.h"
#include "keeper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int refused(const char *what)
{
    dprintf(2, "cannot %s: %s\n", what, strerror(errno));
    return 2;
}

static void tell(int folder, const char *name)
{
    char link[4096];
    ssize_t length = readlinkat(folder, name, link, sizeof link - 1);
    if (length >= 0) {
        link[length] = 0;
        (void)!write(1, link, (size_t)length + 1);
    }
}

static bool is_it(int folder, const char *name, const struct stat *wanted)
{
    struct stat seen;
    return fstatat(folder, name, &seen, 0) == 0 && seen.st_dev == wanted->st_dev && seen.st_ino == wanted->st_ino;
}

/* Without `wanted`: tell of all. Else whether it is among them. */
static bool go_through(DIR *descriptors, const struct stat *wanted)
{
    struct dirent *entry;
    while ((entry = readdir(descriptors))) {
        if (entry->d_name[0] == '.')
            continue;
        if (!wanted)
            tell(dirfd(descriptors), entry->d_name);
        else if (is_it(dirfd(descriptors), entry->d_name, wanted))
            return true;
    }
    return false;
}

static int pass_memory(int process, int socket)
{
    int opened[2] = { openat(process, "pagemap", O_RDONLY | O_CLOEXEC), openat(process, "mem", O_RDONLY | O_CLOEXEC) };
    if (opened[0] < 0 || opened[1] < 0)
        return refused("open its memory");
    reply(socket, "ok", 2, opened, 2);
    return 0;
}

int look_main(int argc, char **argv)
{
    char path[32];
    struct stat wanted = { .st_dev = 0 };
    if (argc != 1 && argc != 4) {
        dprintf(2, "usage: insula-keeper look PID [DEVICE INODE SOCKET]\n");
        return 2;
    }
    snprintf(path, sizeof path, "/proc/%d", atoi(argv[0]));
    int process = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int space = process < 0 ? -1 : openat(process, "ns/user", O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWUSER) < 0)
        return refused("enter its user namespace");
    int folder = openat(process, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *descriptors = folder < 0 ? NULL : fdopendir(folder);
    if (!descriptors)
        return refused("see its descriptors");
    if (argc == 1) {
        go_through(descriptors, NULL);
        return 0;
    }
    wanted.st_dev = strtoull(argv[1], NULL, 10);
    wanted.st_ino = strtoull(argv[2], NULL, 10);
    return go_through(descriptors, &wanted) ? pass_memory(process, atoi(argv[3])) : 1;
}
