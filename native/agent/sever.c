/* Connections are destroyed by the kernel (sock_diag, CONFIG_INET_DIAG_DESTROY). Where it cannot, each program's descriptor is
 * borrowed (pidfd_getfd) and disconnected: to the program that looks the same. Resets are sent either way, so the cable has
 * to be out: they would end the connection of the machine whose life this is a copy of. */
#include "sever.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "netlink.h"

enum { AT_ONCE = 1024, PASSES = 64, NAMESPACES = 256, PIDFD_OPEN = 434, PIDFD_GETFD = 438 };

/* ---- by the kernel ---- */

static int destroy_all(uint8_t family, uint8_t protocol)
{
    static struct connection found[AT_ONCE];
    int error = 0;
    size_t count = AT_ONCE, destroyed = 1;
    for (int pass = 0; pass < PASSES && count == AT_ONCE && destroyed > 0; pass++) {
        error = connections_find(family, protocol, found, AT_ONCE, &count);
        destroyed = 0;
        for (size_t i = 0; i < count; i++) {
            int refused = connection_destroy(&found[i]);
            destroyed += refused == 0;
            if (refused && refused != ENOENT && error == 0) /* ENOENT: it ended by itself */
                error = refused;
        }
    }
    return error;
}

static int destroy_here(void)
{
    static const uint8_t families[] = { AF_INET, AF_INET6 }, protocols[] = { IPPROTO_TCP, IPPROTO_UDP };
    int first = 0;
    for (size_t i = 0; i < 4; i++) {
        int error = destroy_all(families[i / 2], protocols[i % 2]);
        first = first ? first : error;
    }
    return first;
}

/* ---- by the programs' own descriptors ---- */

static bool is_inner(const struct sockaddr_storage *peer, const struct sockaddr_storage *own)
{
    const struct sockaddr_in *four = (const void *)peer;
    const struct sockaddr_in6 *six = (const void *)peer;
    if (peer->ss_family == AF_INET)
        return ntohl(four->sin_addr.s_addr) >> 24 == 127
            || four->sin_addr.s_addr == ((const struct sockaddr_in *)(const void *)own)->sin_addr.s_addr;
    return IN6_IS_ADDR_LOOPBACK(&six->sin6_addr) || (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr) && six->sin6_addr.s6_addr[12] == 127)
        || memcmp(&six->sin6_addr, &((const struct sockaddr_in6 *)(const void *)own)->sin6_addr, 16) == 0;
}

static void disconnect(int fd)
{
    struct sockaddr_storage peer = { 0 }, own = { 0 };
    struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
    socklen_t length = sizeof peer, own_length = sizeof own;
    if (getpeername(fd, (struct sockaddr *)&peer, &length) < 0 || getsockname(fd, (struct sockaddr *)&own, &own_length) < 0)
        return;
    if ((peer.ss_family != AF_INET && peer.ss_family != AF_INET6) || is_inner(&peer, &own))
        return;
    shutdown(fd, SHUT_RDWR); /* whoever waits in it wakes up */
    connect(fd, &nowhere, sizeof nowhere);
}

/* 0, or the errno of a kernel that does not lend descriptors. */
static int borrow_sockets(const char *pid)
{
    char path[64 + 2 * NAME_MAX], target[64];
    snprintf(path, sizeof path, "/proc/%s/fd", pid);
    DIR *folder = opendir(path);
    int process = folder ? (int)syscall(PIDFD_OPEN, atoi(pid), 0) : -1, error = 0;
    struct dirent *entry;
    while (process >= 0 && (entry = readdir(folder))) {
        snprintf(path, sizeof path, "/proc/%s/fd/%s", pid, entry->d_name);
        ssize_t length = readlink(path, target, sizeof target);
        if (length < 7 || memcmp(target, "socket:", 7) != 0)
            continue;
        int fd = (int)syscall(PIDFD_GETFD, process, atoi(entry->d_name), 0);
        if (fd < 0) {
            error = errno == EBADF || errno == ESRCH ? error : errno;
            continue;
        }
        disconnect(fd);
        close(fd);
    }
    if (process >= 0)
        close(process);
    if (folder)
        closedir(folder);
    return error;
}

/* ---- everywhere ---- */

struct places {
    ino_t known[NAMESPACES];
    size_t count;
};

/* A descriptor of the process's network namespace when that was not met before, or -1. */
static int new_namespace(const char *pid, struct places *places)
{
    char path[64 + NAME_MAX];
    struct stat status;
    snprintf(path, sizeof path, "/proc/%s/ns/net", pid);
    if (stat(path, &status) < 0 || places->count == NAMESPACES)
        return -1;
    for (size_t i = 0; i < places->count; i++)
        if (places->known[i] == status.st_ino)
            return -1;
    places->known[places->count++] = status.st_ino;
    return open(path, O_RDONLY | O_CLOEXEC);
}

static void each_process(void (*found)(const char *pid, void *context), void *context)
{
    DIR *folder = opendir("/proc");
    struct dirent *entry;
    while (folder && (entry = readdir(folder)))
        if (isdigit((unsigned char)entry->d_name[0]))
            found(entry->d_name, context);
    if (folder)
        closedir(folder);
}

static void visit_namespace(const char *pid, void *context)
{
    int place = new_namespace(pid, context);
    if (place >= 0 && setns(place, CLONE_NEWNET) == 0)
        destroy_here();
    if (place >= 0)
        close(place);
}

static void visit_process(const char *pid, void *context)
{
    int *first = context, error = atoi(pid) == getpid() ? 0 : borrow_sockets(pid);
    *first = *first ? *first : error;
}

/* One with nothing that leads out of it has no connections to sever; to look for them all in /proc costs as much as all else here. */
static int sever_elsewhere(void)
{
    struct places places = { 0 };
    int count = 0, error = 0, own;
    if (namespaces_count(&count) == 0 && count == 0)
        return 0;
    own = new_namespace("self", &places);
    each_process(visit_namespace, &places);
    if (places.count > 1 && setns(own, CLONE_NEWNET) < 0)
        error = errno;
    if (own >= 0)
        close(own);
    return error;
}

int sever_connections(void)
{
    int error = destroy_here();
    if (error == 0)
        return sever_elsewhere();
    error = 0;
    each_process(visit_process, &error); /* whatever namespace they are in */
    return error;
}
