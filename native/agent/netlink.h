/* Network links and their addresses, by rtnetlink. Every function returns 0 or an errno unless it says otherwise. */
#ifndef INSULA_NETLINK_H
#define INSULA_NETLINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAC_BYTES = 6 };

struct link_info {
    int index;
    bool up, loopback, has_mac;
    uint8_t mac[MAC_BYTES];
};

struct ip_address {
    int family, index;
    uint8_t prefix, scope;
    uint8_t bytes[16];
};

int links_each(void (*found)(const struct link_info *link, void *context), void *context);
int addresses_each(void (*found)(const struct ip_address *address, void *context), void *context);

/* A connection, as the kernel's own tables have it. */
struct connection {
    uint8_t family, protocol;
    uint8_t id[48];
};
/* Connections of one family and protocol whose peer is not in this machine itself; at most `room`, their number in `count`. */
int connections_find(uint8_t family, uint8_t protocol, struct connection *to, size_t room, size_t *count);
int connection_destroy(const struct connection *connection);

/* How many other network namespaces are joined to this one. */
int namespaces_count(int *count);

int link_find(const uint8_t mac[MAC_BYTES], struct link_info *link);
int link_set_up(int index, bool up);
int link_set_mac(int index, const uint8_t mac[MAC_BYTES]);
int address_add(const struct ip_address *address);
int address_delete(const struct ip_address *address);
int gateway_set(const struct ip_address *gateway, int index); /* the default route */

bool mac_parse(const char *text, uint8_t mac[MAC_BYTES]);
bool ip_parse(const char *text, struct ip_address *address); /* `10.0.2.15/24`, or without a prefix all bits of it */

#endif
