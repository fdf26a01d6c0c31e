#include "identity.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"
#include "flush.h"
#include "hostkeys.h"
#include "loop.h"
#include "netlink.h"

enum {
    HOSTS_MAX = 65536, RESOLV_MAX = 2048,
    CABLE_OUT = 2000, /* milliseconds for networkd to see that; it takes a hundredth of it, unless it hangs */
};

/* Everything is tried whatever went wrong: a half new identity is worse than a message. */
static void note(struct outcome *outcome, int error, const char *path)
{
    if (error && outcome->errors[outcome->part] == 0)
        outcome->errors[outcome->part] = error;
    if (error == 0 || outcome->error)
        return;
    outcome->error = error;
    snprintf(outcome->path, sizeof outcome->path, "%s", path);
}

/* ---- machine-id and host name ---- */

static const char path_of_dbus[] = "/var/lib/dbus/machine-id"; /* mostly a link to /etc/machine-id */

static bool is_machine_id(const char *text)
{
    return strlen(text) == 32 && strspn(text, "0123456789abcdef") == 32;
}

static const char *const journals[] = { "/run/log/journal", "/var/log/journal" };

/* journald names its folder after the machine id and goes on writing to the one it knows, journalctl looks for the new one.
 * Under the former name there stays a link. */
static void move_journals(const char *id)
{
    char former[64], old[128], new[256];
    if (!read_line("/etc/machine-id", former, sizeof former) || !is_machine_id(former) || strcmp(former, id) == 0)
        return;
    for (size_t i = 0; i < sizeof journals / sizeof *journals; i++) {
        snprintf(old, sizeof old, "%s/%s", journals[i], former);
        snprintf(new, sizeof new, "%s/%s", journals[i], id);
        if (rename(old, new) == 0)
            symlink(id, old);
    }
}

static void set_machine_id(const char *id, struct outcome *outcome)
{
    struct stat status;
    char line[34];
    if (!is_machine_id(id)) {
        note(outcome, EINVAL, "machine_id");
        return;
    }
    snprintf(line, sizeof line, "%.32s\n", id);
    move_journals(id);
    note(outcome, rewrite_file("/etc/machine-id", line, 33, 0444), "/etc/machine-id");
    if (lstat(path_of_dbus, &status) == 0 && S_ISREG(status.st_mode))
        note(outcome, rewrite_file(path_of_dbus, line, 33, 0444), path_of_dbus);
}

static bool is_host_name(const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)name[i]) && name[i] != '-' && name[i] != '.')
            return false;
    return length > 0 && length <= 64;
}

/* Give the line of 127.0.1.1, if there is one, the new name. */
static void rename_in_hosts(const char *name, struct outcome *outcome)
{
    static const char path[] = "/etc/hosts", address[] = "127.0.1.1";
    static char old[HOSTS_MAX], new[HOSTS_MAX + 128];
    size_t length = 0;
    bool changed = false;
    ssize_t size = read_text(path, old, sizeof old);
    if (size <= 0 || size == sizeof old - 1)
        return;
    for (char *line = old; *line;) {
        size_t piece = strcspn(line, "\n");
        bool ours = strncmp(line, address, strlen(address)) == 0 && isspace((unsigned char)line[strlen(address)]);
        if (ours && !changed)
            length += (size_t)snprintf(new + length, sizeof new - length, "%s\t%s\n", address, name);
        else if (!ours)
            length += (size_t)snprintf(new + length, sizeof new - length, "%.*s\n", (int)piece, line);
        changed |= ours;
        line += piece + (line[piece] == '\n');
    }
    if (changed)
        note(outcome, replace_file(path, new, length, 0644), path);
}

static void set_host_name(const char *name, struct outcome *outcome)
{
    char line[80];
    if (!is_host_name(name)) {
        note(outcome, EINVAL, "hostname");
        return;
    }
    if (sethostname(name, strlen(name)) < 0)
        note(outcome, errno, "hostname");
    int length = snprintf(line, sizeof line, "%s\n", name);
    note(outcome, rewrite_file("/etc/hostname", line, (size_t)length, 0644), "/etc/hostname");
    rename_in_hosts(name, outcome);
}

/* ---- network ---- */

/* The NIC that the fields at hand are about. */
struct nic {
    bool known, unplugged; /* its cable is out: the host pulls those of a copy */
    struct link_info link;
    int flushed[2]; /* families whose old addresses are gone */
};

static void choose_nic(struct nic *nic, const char *text, struct outcome *outcome)
{
    uint8_t mac[MAC_BYTES];
    *nic = (struct nic){ .unplugged = nic->unplugged };
    int error = mac_parse(text, mac) ? link_find(mac, &nic->link) : EINVAL;
    nic->known = error == 0;
    note(outcome, error, text);
}

/* The link-local address that follows from a MAC: the lower half is its EUI-64 with the universal bit turned (RFC 4291). */
static void link_local(const uint8_t mac[MAC_BYTES], int index, struct ip_address *address)
{
    const uint8_t bytes[16] = {
        0xFE, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xFF, 0xFE, mac[3], mac[4], mac[5]
    };
    *address = (struct ip_address){ .family = AF_INET6, .index = index, .prefix = 64 };
    memcpy(address->bytes, bytes, sizeof bytes);
}

/* The kernel makes it only when a card comes up, and this one stayed so. */
static void renew_link_local(const struct nic *nic, const uint8_t mac[MAC_BYTES])
{
    struct ip_address former, new;
    link_local(nic->link.mac, nic->link.index, &former);
    link_local(mac, nic->link.index, &new);
    if (address_delete(&former) == 0)
        address_add(&new);
}

/* networkd, where it looks after this card, must have seen that the cable is out before it sees another address: of one that is
 * used it would start its DHCPv6 client anew, fail at that, and give the card up (systemd 257). It writes down what it knows of a
 * card. */
static void let_networkd_see(int index)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/run/systemd/netif/links/%d", index);
    for (uint64_t until = now_ms() + CABLE_OUT; now_ms() < until; poll(NULL, 0, 2))
        if (read_text(path, text, sizeof text) <= 0 || !strstr(text, "CARRIER_STATE=carrier"))
            return;
}

static void set_mac(struct nic *nic, const char *text, struct outcome *outcome)
{
    uint8_t mac[MAC_BYTES];
    if (!mac_parse(text, mac)) {
        note(outcome, EINVAL, text);
        return;
    }
    if (nic->unplugged)
        let_networkd_see(nic->link.index);
    /* A card that is taken down loses its routes, and who set them may not be there to set them again. */
    if (link_set_mac(nic->link.index, mac) == 0) {
        renew_link_local(nic, mac);
        return;
    }
    if (nic->link.up)
        note(outcome, link_set_up(nic->link.index, false), text);
    note(outcome, link_set_mac(nic->link.index, mac), text);
    if (nic->link.up)
        note(outcome, link_set_up(nic->link.index, true), text);
}

struct flush {
    int family, index;
    struct ip_address old[64];
    size_t count;
};

static void collect(const struct ip_address *address, void *context)
{
    struct flush *flush = context;
    bool ours = address->family == flush->family && address->index == flush->index && address->scope != 253;
    if (ours && flush->count < sizeof flush->old / sizeof *flush->old)
        flush->old[flush->count++] = *address;
}

static bool is_same(const struct ip_address *one, const struct ip_address *other)
{
    return one->prefix == other->prefix && memcmp(one->bytes, other->bytes, one->family == AF_INET ? 4 : 16) == 0;
}

/* The first new address of a family replaces all old ones; link-local ones stay. */
static void add_address(struct nic *nic, const char *text, struct outcome *outcome)
{
    struct ip_address address = { 0 };
    if (!ip_parse(text, &address)) {
        note(outcome, EINVAL, text);
        return;
    }
    int *flushed = &nic->flushed[address.family == AF_INET ? 0 : 1];
    address.index = nic->link.index;
    if (!*flushed) {
        struct flush flush = { .family = address.family, .index = address.index };
        addresses_each(collect, &flush);
        *flushed = 1;
        if (nic->link.up && flush.count == 1 && is_same(&flush.old[0], &address))
            return;
        for (size_t i = 0; i < flush.count; i++)
            address_delete(&flush.old[i]);
    }
    if (!nic->link.up)
        note(outcome, link_set_up(nic->link.index, true), text);
    nic->link.up = true;
    note(outcome, address_add(&address), text);
}

static void set_gateway(const struct nic *nic, const char *text, struct outcome *outcome)
{
    struct ip_address address = { 0 };
    note(outcome, ip_parse(text, &address) ? gateway_set(&address, nic->link.index) : EINVAL, text);
}

/* Name servers of all NICs together. A link belongs to a program (systemd-resolved, resolvconf) that keeps it. */
static void set_dns(const char *lines, struct outcome *outcome)
{
    static const char path[] = "/etc/resolv.conf";
    struct stat status;
    if (!lines[0] || (lstat(path, &status) == 0 && S_ISLNK(status.st_mode)))
        return;
    note(outcome, replace_file(path, lines, strlen(lines), 0644), path);
}

static void add_dns(char *lines, const char *text, struct outcome *outcome)
{
    struct ip_address address;
    size_t length = strlen(lines);
    if (ip_parse(text, &address) && !strchr(text, '/'))
        snprintf(lines + length, RESOLV_MAX - length, "nameserver %s\n", text);
    else
        note(outcome, EINVAL, text);
}

/* ---- the verb ---- */

void identity_look_ahead(void)
{
    char text[128];
    struct stat status;
    read_line("/etc/machine-id", text, sizeof text);
    read_line("/etc/hostname", text, sizeof text);
    for (size_t i = 0; i < sizeof journals / sizeof *journals; i++)
        lstat(journals[i], &status);
    lstat(path_of_dbus, &status);
    host_keys_wanted();
}

static const struct {
    uint16_t tag;
    enum identity_part part;
} parts[] = {
    { TAG_MACHINE_ID, IDENTITY_MACHINE_ID }, { TAG_HOSTNAME, IDENTITY_HOSTNAME }, { TAG_HOST_KEY, IDENTITY_HOST_KEYS },
    { TAG_MAC, IDENTITY_NETWORK }, { TAG_NEW_MAC, IDENTITY_NETWORK }, { TAG_ADDRESS, IDENTITY_NETWORK },
    { TAG_GATEWAY, IDENTITY_NETWORK }, { TAG_DNS, IDENTITY_NETWORK },
};

/* Whether it is part of an identity at all. */
static bool choose_part(uint16_t tag, struct outcome *outcome)
{
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].tag == tag) {
            outcome->part = parts[i].part;
            outcome->tried[outcome->part] = true;
            return true;
        }
    return false;
}

static void apply(const struct wire_field *field, struct nic *nic, char *dns, struct outcome *outcome)
{
    char text[128];
    if (field->tag == TAG_HOST_KEY) {
        note(outcome, host_key_set(field), "host_key");
        return;
    }
    if (!wire_field_text(field, text, sizeof text))
        return;
    if (field->tag == TAG_MACHINE_ID)
        set_machine_id(text, outcome);
    else if (field->tag == TAG_HOSTNAME)
        set_host_name(text, outcome);
    else if (field->tag == TAG_MAC)
        choose_nic(nic, text, outcome);
    else if (field->tag == TAG_DNS)
        add_dns(dns, text, outcome);
    else if (field->tag == TAG_NEW_MAC && nic->known)
        set_mac(nic, text, outcome);
    else if (field->tag == TAG_ADDRESS && nic->known)
        add_address(nic, text, outcome);
    else if (field->tag == TAG_GATEWAY && nic->known)
        set_gateway(nic, text, outcome);
}

void identity_apply(const struct request *request, struct outcome *outcome)
{
    static char dns[RESOLV_MAX];
    struct wire_cursor cursor;
    struct wire_field field;
    struct nic nic = { .unplugged = wire_find(request->fields, request->length, TAG_FORMER, &field) };
    dns[0] = 0;
    wire_cursor_init(&cursor, request->fields, request->length);
    while (wire_field_next(&cursor, &field) == WIRE_GOT)
        if (choose_part(field.tag, outcome))
            apply(&field, &nic, dns, outcome);
    outcome->part = IDENTITY_NETWORK;
    set_dns(dns, outcome);
    if (outcome->tried[IDENTITY_HOST_KEYS])
        host_keys_tell_server();
}

/* Somebody waits for it, and most of the time it would take is the disk's. What a crash tears within a moment of it is mended by the
 * next start, which says it all again; but host keys are said once. */
void identity_run(const struct request *request)
{
    struct outcome outcome = { 0 };
    struct wire_field key;
    files_flush_at_once(wire_find(request->fields, request->length, TAG_HOST_KEY, &key));
    identity_apply(request, &outcome);
    files_flush_at_once(true);
    flush_soon();
    if (outcome.error)
        answer_errno(request, outcome.error, outcome.path);
    else
        answer_done(request);
}
