/* Other machines' sockets, the host's services, networks. */
#define _GNU_SOURCE
#include "probe.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static long unix_reached(const char *path, int abstract)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (length == 0 || length + 1 >= sizeof address.sun_path) {
        errno = EINVAL;
        return -1;
    }
    memcpy(address.sun_path + abstract, path, length);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1));
}

static long other_qmp(void)
{
    return unix_reached(target("qmp"), 0);
}

static long other_keeper(void)
{
    return unix_reached(target("keeper"), 0);
}

static long abstract_socket(void)
{
    return unix_reached(target("abstract"), 1);
}

static long reached(const char *address, long port, int kind)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, kind | SOCK_CLOEXEC, 0);
    inet_pton(AF_INET, address, &to.sin_addr);
    if (fd < 0)
        return -1;
    if (kind == SOCK_DGRAM)
        return sendto(fd, "x", 1, 0, (struct sockaddr *)&to, sizeof to);
    return connect(fd, (struct sockaddr *)&to, sizeof to);
}

static long host_loopback(void)
{
    return reached("127.0.0.1", target_number("tcp"), SOCK_STREAM);
}

static long outside(void)
{
    return reached("192.0.2.1", 80, SOCK_STREAM);
}

static long udp(void)
{
    return reached("127.0.0.1", 53, SOCK_DGRAM);
}

static long loopback6(void)
{
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)target_number("tcp")), .sin6_addr = in6addr_loopback};
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof to);
}

static long netlink(void)
{
    return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0);
}

static long raw(void)
{
    return socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
}

static long packet(void)
{
    return socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
}

static long vsock(void)
{
    return socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static long kernel_crypto(void)
{
    return socket(AF_ALG, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
}

static long bluetooth(void)
{
    return socket(AF_BLUETOOTH, SOCK_RAW | SOCK_CLOEXEC, 0);
}

const struct attempt network_attempts[] = {
    {"connect to another machine's QMP", other_qmp},
    {"connect to another machine's keeper", other_keeper},
    {"connect to an abstract socket of the host", abstract_socket},
    {"connect to the host's loopback", host_loopback},
    {"connect to the host's loopback by IPv6", loopback6},
    {"connect to the outside", outside},
    {"send a datagram", udp},
    {"have a netlink socket", netlink},
    {"have a raw socket", raw},
    {"have a packet socket", packet},
    {"have a vsock socket", vsock},
    {"have a socket of the kernel's ciphers", kernel_crypto},
    {"have a Bluetooth socket", bluetooth},
    {NULL, NULL},
};
