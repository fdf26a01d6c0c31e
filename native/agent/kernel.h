/* The few numbers and shapes of the Linux interface that a libc alone does not bring: with them no kernel headers are
 * needed to build. They are the same on every architecture we build for, and never change. */
#ifndef INSULA_KERNEL_H
#define INSULA_KERNEL_H

#include <stdint.h>

/* random(4) */
struct random_pool {
    int32_t entropy_bits, bytes;
    uint8_t data[512];
};
#define KERNEL_RNDADDENTROPY 0x40085203ul
#define KERNEL_RNDRESEEDCRNG 0x5207ul

/* netlink(7), rtnetlink(7) */
struct nl_header {
    uint32_t length;
    uint16_t type, flags;
    uint32_t sequence, port;
};
struct nl_attribute {
    uint16_t length, type;
};
struct nl_link {
    uint8_t family, pad;
    uint16_t type;
    int32_t index;
    uint32_t flags, change;
};
struct nl_address {
    uint8_t family, prefix, flags, scope;
    uint32_t index;
};
struct nl_route {
    uint8_t family, to_prefix, from_prefix, tos, table, protocol, scope, type;
    uint32_t flags;
};
/* sock_diag(7) */
struct nl_socket {
    uint16_t port, peer_port; /* big-endian */
    uint8_t address[16], peer[16];
    uint32_t interface, cookie[2];
};
struct nl_socket_request {
    uint8_t family, protocol, extensions, pad;
    uint32_t states;
    struct nl_socket id;
};
struct nl_socket_found {
    uint8_t family, state, timer, retransmits;
    struct nl_socket id;
    uint32_t expires, receive_queue, send_queue, uid, inode;
};
enum {
    NL_REQUEST = 1, NL_ACK = 4, NL_REPLACE = 0x100, NL_DUMP = 0x300, NL_CREATE = 0x400,
    NL_ERROR = 2, NL_DONE = 3,
    NL_NEWLINK = 16, NL_GETLINK = 18, NL_NEWADDR = 20, NL_DELADDR = 21, NL_GETADDR = 22, NL_NEWROUTE = 24,
    NL_LINK_ADDRESS = 1, NL_LINK_NAME = 3, NL_LINK_EXT_MASK = 29, NL_SKIP_STATS = 8,
    NL_ADDR_ADDRESS = 1, NL_ADDR_LOCAL = 2, NL_ADDR_BROADCAST = 4, NL_ADDR_NODAD = 2,
    NL_ROUTE_OIF = 4, NL_ROUTE_GATEWAY = 5,
    NL_TABLE_MAIN = 254, NL_PROTOCOL_STATIC = 4, NL_ROUTE_UNICAST = 1, NL_SCOPE_LINK = 253,
    NL_LINK_UP = 1, NL_LINK_LOOPBACK = 8,
    NL_KOBJECT_UEVENT = 15,
    NL_GETNSID = 90, NL_NEWNSID = 88,
    NL_SOCKETS = 4, NL_SOCKET_FIND = 20, NL_SOCKET_DESTROY = 21,
};

#endif
