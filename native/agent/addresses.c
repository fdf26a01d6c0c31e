#include <arpa/inet.h>
#include <stdio.h>

#include "identity.h"
#include "netlink.h"

struct listing {
    struct wire_writer fields;
    int loopbacks[8];
    size_t loopback_count;
};

static void list_link(const struct link_info *link, void *context)
{
    struct listing *listing = context;
    char text[3 * MAC_BYTES];
    if (link->loopback) {
        if (listing->loopback_count < 8)
            listing->loopbacks[listing->loopback_count++] = link->index;
        return;
    }
    if (!link->has_mac)
        return;
    const uint8_t *mac = link->mac;
    snprintf(text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
    wire_put_text(&listing->fields, TAG_MAC, text);
}

static void list_address(const struct ip_address *address, void *context)
{
    struct listing *listing = context;
    char host[INET6_ADDRSTRLEN], text[INET6_ADDRSTRLEN + 8];
    for (size_t i = 0; i < listing->loopback_count; i++)
        if (listing->loopbacks[i] == address->index)
            return;
    if (!inet_ntop(address->family, address->bytes, host, sizeof host))
        return;
    snprintf(text, sizeof text, "%s/%u", host, address->prefix);
    wire_put_text(&listing->fields, TAG_ADDRESS, text);
}

void addresses_run(const struct request *request)
{
    static uint8_t buffer[16384];
    struct listing listing = { 0 };
    wire_writer_init(&listing.fields, buffer, sizeof buffer);
    int error = links_each(list_link, &listing);
    if (error == 0)
        error = addresses_each(list_address, &listing);
    if (error)
        answer_errno(request, error, NULL);
    else
        answer(request, &listing.fields); /* more than fit are not told */
}
