#include "netlink.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kernel.h"

enum { REPLY = 32768, ALIGN = 4, PATIENCE = 2000 /* milliseconds: the kernel answers at once or not at all */ };

struct message {
    struct nl_header header;
    uint8_t body[512];
};

static size_t aligned(size_t length)
{
    return (length + ALIGN - 1) & ~(size_t)(ALIGN - 1);
}

static void begin(struct message *message, uint16_t type, uint16_t flags, const void *head, size_t length)
{
    memset(message, 0, sizeof *message);
    message->header.type = type;
    message->header.flags = flags | NL_REQUEST;
    message->header.length = (uint32_t)(sizeof message->header + aligned(length));
    memcpy(message->body, head, length);
}

static void attach(struct message *message, uint16_t type, const void *value, size_t length)
{
    struct nl_attribute attribute = { .length = (uint16_t)(sizeof attribute + length), .type = type };
    uint8_t *at = (uint8_t *)message + message->header.length;
    memcpy(at, &attribute, sizeof attribute);
    memcpy(at + sizeof attribute, value, length);
    message->header.length += (uint32_t)aligned(sizeof attribute + length);
}

/* Hand the messages of one datagram to `each`. 1: more is to come; 0: done; negative: an errno. */
static int take(const uint8_t *reply, size_t length, void (*each)(const struct nl_header *, const uint8_t *, size_t, void *),
                void *context)
{
    struct nl_header header;
    for (size_t at = 0; length - at >= sizeof header; at += aligned(header.length)) {
        memcpy(&header, reply + at, sizeof header);
        if (header.length < sizeof header || header.length > length - at)
            return -EPROTO;
        const uint8_t *body = reply + at + sizeof header;
        size_t size = header.length - sizeof header;
        if (header.type == NL_DONE)
            return 0;
        if (header.type == NL_ERROR) {
            int32_t error = -EPROTO;
            if (size >= sizeof error)
                memcpy(&error, body, sizeof error);
            return error;
        }
        if (each)
            each(&header, body, size, context);
        if (aligned(header.length) >= length - at)
            break;
    }
    return 1;
}

static int talk_to(int family, struct message *message, void (*each)(const struct nl_header *, const uint8_t *, size_t, void *), void *context)
{
    static uint8_t reply[REPLY];
    int result = 1, fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, family);
    if (fd < 0)
        return errno;
    if (send(fd, message, message->header.length, 0) < 0)
        result = -errno;
    while (result == 1) {
        struct pollfd wanted = { .fd = fd, .events = POLLIN };
        ssize_t got = poll(&wanted, 1, PATIENCE) == 1 ? recv(fd, reply, sizeof reply, 0) : -1;
        result = got < 0 ? -ETIMEDOUT : take(reply, (size_t)got, each, context);
    }
    close(fd);
    return -result;
}

static int talk(struct message *message, void (*each)(const struct nl_header *, const uint8_t *, size_t, void *), void *context)
{
    return talk_to(0, message, each, context);
}

/* ---- reading ---- */

struct wanted {
    void (*link)(const struct link_info *, void *);
    void (*address)(const struct ip_address *, void *);
    void *context;
};

/* The value of an attribute of at least `least` bytes, or NULL. */
static const uint8_t *find(const uint8_t *at, size_t length, uint16_t type, size_t least, size_t *size)
{
    struct nl_attribute attribute;
    while (length >= sizeof attribute) {
        memcpy(&attribute, at, sizeof attribute);
        if (attribute.length < sizeof attribute || attribute.length > length)
            return NULL;
        *size = attribute.length - sizeof attribute;
        if (attribute.type == type && *size >= least)
            return at + sizeof attribute;
        size_t step = aligned(attribute.length);
        if (step >= length)
            return NULL;
        at += step;
        length -= step;
    }
    return NULL;
}

static void take_link(const struct nl_header *header, const uint8_t *body, size_t length, void *context)
{
    const struct wanted *wanted = context;
    struct nl_link head;
    size_t size;
    if (header->type != NL_NEWLINK || length < sizeof head)
        return;
    memcpy(&head, body, sizeof head);
    struct link_info link = {
        .index = head.index, .up = head.flags & NL_LINK_UP, .loopback = head.flags & NL_LINK_LOOPBACK
    };
    const uint8_t *mac = find(body + sizeof head, length - sizeof head, NL_LINK_ADDRESS, MAC_BYTES, &size);
    if (mac && size == MAC_BYTES) {
        memcpy(link.mac, mac, MAC_BYTES);
        link.has_mac = true;
    }
    wanted->link(&link, wanted->context);
}

static void take_address(const struct nl_header *header, const uint8_t *body, size_t length, void *context)
{
    const struct wanted *wanted = context;
    struct nl_address head;
    size_t size;
    if (header->type != NL_NEWADDR || length < sizeof head)
        return;
    memcpy(&head, body, sizeof head);
    struct ip_address address = {
        .family = head.family, .index = (int)head.index, .prefix = head.prefix, .scope = head.scope
    };
    size_t bytes = head.family == AF_INET ? 4 : 16;
    const uint8_t *value = find(body + sizeof head, length - sizeof head, NL_ADDR_LOCAL, bytes, &size);
    if (!value)
        value = find(body + sizeof head, length - sizeof head, NL_ADDR_ADDRESS, bytes, &size);
    if (!value || (head.family != AF_INET && head.family != AF_INET6))
        return;
    memcpy(address.bytes, value, bytes);
    wanted->address(&address, wanted->context);
}

int links_each(void (*found)(const struct link_info *, void *), void *context)
{
    struct wanted wanted = { .link = found, .context = context };
    struct nl_link head = { 0 };
    struct message message;
    const uint32_t brief = NL_SKIP_STATS;
    begin(&message, NL_GETLINK, NL_DUMP, &head, sizeof head);
    attach(&message, NL_LINK_EXT_MASK, &brief, sizeof brief);
    return talk(&message, take_link, &wanted);
}

int addresses_each(void (*found)(const struct ip_address *, void *), void *context)
{
    struct wanted wanted = { .address = found, .context = context };
    struct nl_address head = { 0 };
    struct message message;
    begin(&message, NL_GETADDR, NL_DUMP, &head, sizeof head);
    return talk(&message, take_address, &wanted);
}

struct search {
    const uint8_t *mac;
    struct link_info *link;
    bool found;
};

static void compare(const struct link_info *link, void *context)
{
    struct search *search = context;
    if (search->found || !link->has_mac || link->loopback || memcmp(link->mac, search->mac, MAC_BYTES) != 0)
        return;
    *search->link = *link;
    search->found = true;
}

int link_find(const uint8_t mac[MAC_BYTES], struct link_info *link)
{
    struct search search = { .mac = mac, .link = link };
    int error = links_each(compare, &search);
    return error ? error : search.found ? 0 : ENODEV;
}

/* ---- writing ---- */

int link_set_up(int index, bool up)
{
    struct nl_link head = { .index = index, .flags = up ? NL_LINK_UP : 0, .change = NL_LINK_UP };
    struct message message;
    begin(&message, NL_NEWLINK, NL_ACK, &head, sizeof head);
    return talk(&message, NULL, NULL);
}

int link_set_mac(int index, const uint8_t mac[MAC_BYTES])
{
    struct nl_link head = { .index = index };
    struct message message;
    begin(&message, NL_NEWLINK, NL_ACK, &head, sizeof head);
    attach(&message, NL_LINK_ADDRESS, mac, MAC_BYTES);
    return talk(&message, NULL, NULL);
}

static int change_address(const struct ip_address *address, uint16_t type, uint16_t flags)
{
    size_t bytes = address->family == AF_INET ? 4 : 16;
    struct nl_address head = {
        .family = (uint8_t)address->family, .prefix = address->prefix, .index = (uint32_t)address->index
    };
    /* The host vouches that nobody else has it: to ask the others would keep it from use for a second. */
    if (address->family == AF_INET6 && type == NL_NEWADDR)
        head.flags = NL_ADDR_NODAD;
    struct message message;
    begin(&message, type, flags | NL_ACK, &head, sizeof head);
    attach(&message, NL_ADDR_LOCAL, address->bytes, bytes);
    attach(&message, NL_ADDR_ADDRESS, address->bytes, bytes);
    if (address->family == AF_INET && address->prefix < 31) {
        uint32_t all, host = address->prefix ? ~0u >> address->prefix : ~0u;
        memcpy(&all, address->bytes, sizeof all);
        all |= htonl(host);
        attach(&message, NL_ADDR_BROADCAST, &all, sizeof all);
    }
    return talk(&message, NULL, NULL);
}

int address_add(const struct ip_address *address)
{
    return change_address(address, NL_NEWADDR, NL_CREATE | NL_REPLACE);
}

int address_delete(const struct ip_address *address)
{
    return change_address(address, NL_DELADDR, 0);
}

int gateway_set(const struct ip_address *gateway, int index)
{
    struct nl_route head = {
        .family = (uint8_t)gateway->family, .table = NL_TABLE_MAIN, .protocol = NL_PROTOCOL_STATIC, .type = NL_ROUTE_UNICAST
    };
    uint32_t link = (uint32_t)index;
    struct message message;
    begin(&message, NL_NEWROUTE, NL_ACK | NL_CREATE | NL_REPLACE, &head, sizeof head);
    attach(&message, NL_ROUTE_GATEWAY, gateway->bytes, gateway->family == AF_INET ? 4 : 16);
    attach(&message, NL_ROUTE_OIF, &link, sizeof link);
    return talk(&message, NULL, NULL);
}

/* ---- namespaces ---- */

static void count_namespace(const struct nl_header *header, const uint8_t *body, size_t length, void *context)
{
    (void)body;
    (void)length;
    *(int *)context += header->type == NL_NEWNSID;
}

int namespaces_count(int *count)
{
    const uint8_t head[4] = { 0 }; /* struct rtgenmsg: any family */
    struct message message;
    *count = 0;
    begin(&message, NL_GETNSID, NL_DUMP, head, sizeof head);
    return talk(&message, count_namespace, count);
}

/* ---- connections ---- */

enum { TCP_PEERED = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12, UDP_PEERED = 1 << 1 };

struct gathering {
    struct connection *to;
    size_t room, count;
    uint8_t protocol;
};

static bool is_loopback(uint8_t family, const uint8_t *address)
{
    static const uint8_t mapped[12] = { [10] = 0xFF, [11] = 0xFF }, one[16] = { [15] = 1 };
    if (family == AF_INET)
        return address[0] == 127;
    return memcmp(address, one, sizeof one) == 0 || (memcmp(address, mapped, sizeof mapped) == 0 && address[12] == 127);
}

static void gather(const struct nl_header *header, const uint8_t *body, size_t length, void *context)
{
    struct gathering *gathering = context;
    struct nl_socket_found found;
    if (header->type != NL_SOCKET_FIND || length < sizeof found || gathering->count == gathering->room)
        return;
    memcpy(&found, body, sizeof found);
    size_t bytes = found.family == AF_INET ? 4 : 16;
    bool inner = is_loopback(found.family, found.id.peer) || memcmp(found.id.peer, found.id.address, bytes) == 0;
    if (inner)
        return;
    struct connection *connection = &gathering->to[gathering->count++];
    *connection = (struct connection){ .family = found.family, .protocol = gathering->protocol };
    memcpy(connection->id, &found.id, sizeof found.id);
}

int connections_find(uint8_t family, uint8_t protocol, struct connection *to, size_t room, size_t *count)
{
    struct gathering gathering = { .to = to, .room = room, .protocol = protocol };
    struct nl_socket_request head = {
        .family = family, .protocol = protocol, .states = protocol == IPPROTO_TCP ? TCP_PEERED : UDP_PEERED
    };
    struct message message;
    begin(&message, NL_SOCKET_FIND, NL_DUMP, &head, sizeof head);
    int error = talk_to(NL_SOCKETS, &message, gather, &gathering);
    *count = gathering.count;
    return error;
}

int connection_destroy(const struct connection *connection)
{
    struct nl_socket_request head = { .family = connection->family, .protocol = connection->protocol, .states = ~0u };
    struct message message;
    memcpy(&head.id, connection->id, sizeof head.id);
    begin(&message, NL_SOCKET_DESTROY, NL_ACK, &head, sizeof head);
    return talk_to(NL_SOCKETS, &message, NULL, NULL);
}

/* ---- text ---- */

bool mac_parse(const char *text, uint8_t mac[MAC_BYTES])
{
    for (int i = 0; i < MAC_BYTES; i++) {
        char *end;
        unsigned long value = strtoul(text, &end, 16);
        if (end != text + 2 || *end != (i < MAC_BYTES - 1 ? ':' : 0) || value > 255)
            return false;
        mac[i] = (uint8_t)value;
        text = end + 1;
    }
    return true;
}

bool ip_parse(const char *text, struct ip_address *address)
{
    char host[INET6_ADDRSTRLEN];
    size_t length = strcspn(text, "/");
    if (length >= sizeof host)
        return false;
    memcpy(host, text, length);
    host[length] = 0;
    address->family = strchr(host, ':') ? AF_INET6 : AF_INET;
    if (inet_pton(address->family, host, address->bytes) != 1)
        return false;
    unsigned long most = address->family == AF_INET ? 32 : 128, prefix = most;
    if (text[length]) {
        char *end;
        prefix = strtoul(text + length + 1, &end, 10);
        if (end == text + length + 1 || *end || prefix > most)
            return false;
    }
    address->prefix = (uint8_t)prefix;
    return true;
}
