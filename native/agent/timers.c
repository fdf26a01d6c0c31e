/* Speaks with systemd itself: its own tools take a second for this on an emulated CPU, this takes some milliseconds.
 * /run/systemd/private is D-Bus without a bus (the D-Bus specification's message format; org.freedesktop.systemd1(5)). */
#include "timers.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "loop.h"
#include "wire/wire.h"

enum {
    TIMERS_MAX = 128, NAME_SIZE = 256, PATH_SIZE = 512,
    REQUEST_MAX = 2048, REPLY_MAX = 262144,
    PATIENCE = 3000, /* milliseconds for all of it: a systemd that is busy with something else is not waited for */
    FRESH = 60000,   /* milliseconds for which it is believed what systemd said of its timers before */
    CALL = 1, RETURN = 2, REFUSED = 3, REPLY_SERIAL = 5,
};

struct timer_unit {
    char name[NAME_SIZE], path[PATH_SIZE];
    uint64_t elapses; /* by the clock on the wall, in microseconds since 1970; 0 or all ones: never */
};

static const char place_of_systemd[] = "/run/systemd/private";

static struct timer_unit known[TIMERS_MAX], late[TIMERS_MAX];
static size_t known_count, late_count;
static uint64_t known_until; /* of the monotonic clock, which stands while a machine is a state on a disk; 0: nothing is known */

/* ---- writing a message ---- */

struct writing {
    uint8_t bytes[REQUEST_MAX];
    size_t length;
    bool overflow;
};

static void put(struct writing *to, const void *bytes, size_t length)
{
    if (to->overflow || sizeof to->bytes - to->length < length) {
        to->overflow = true;
        return;
    }
    memcpy(to->bytes + to->length, bytes, length);
    to->length += length;
}

static void pad(struct writing *to, size_t boundary)
{
    static const uint8_t zeros[8];
    put(to, zeros, (boundary - to->length % boundary) % boundary);
}

static void put_number(struct writing *to, uint32_t number)
{
    uint8_t bytes[4];
    wire_set_u32(bytes, number);
    pad(to, 4);
    put(to, bytes, sizeof bytes);
}

static void put_string(struct writing *to, const char *text)
{
    put_number(to, (uint32_t)strlen(text));
    put(to, text, strlen(text) + 1);
}

static void put_signature(struct writing *to, const char *text)
{
    uint8_t length = (uint8_t)strlen(text);
    put(to, &length, 1);
    put(to, text, length + 1u);
}

static void put_header(struct writing *to, uint8_t code, const char *type, const char *value)
{
    pad(to, 8);
    put(to, &code, 1);
    put_signature(to, type);
    if (type[0] == 'g')
        put_signature(to, value);
    else
        put_string(to, value);
}

/* A list of texts that has one. */
static void put_list(struct writing *to, const char *text)
{
    put_number(to, (uint32_t)(4 + strlen(text) + 1));
    put_string(to, text);
}

/* ---- the connection ---- */

struct systemd {
    int fd;
    uint32_t serial;
    uint64_t until;
    size_t held;  /* bytes of `reply` that came, from the beginning of a message */
    size_t heard; /* of these, the message that was read already */
};

static struct systemd systemd = { .fd = -1 };
static uint8_t reply[REPLY_MAX]; /* outside: what is not zero at the start stands in the program's file */

/* Read until there are so many bytes. */
static int gather(size_t wanted)
{
    while (systemd.held < wanted) {
        struct pollfd ready = { .fd = systemd.fd, .events = POLLIN };
        uint64_t now = now_ms();
        if (wanted > sizeof reply)
            return EMSGSIZE;
        if (now >= systemd.until || poll(&ready, 1, (int)(systemd.until - now)) <= 0)
            return ETIMEDOUT;
        ssize_t got = recv(systemd.fd, reply + systemd.held, sizeof reply - systemd.held, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return got == 0 ? ECONNRESET : errno;
        systemd.held += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

/* Make room: the message at the beginning is not looked at any more. */
static void drop(size_t bytes)
{
    memmove(reply, reply + bytes, systemd.held - bytes);
    systemd.held -= bytes;
}

static int say(const void *bytes, size_t length)
{
    return send(systemd.fd, bytes, length, MSG_NOSIGNAL) == (ssize_t)length ? 0 : errno ? errno : EAGAIN;
}

static void disconnect_systemd(void)
{
    if (systemd.fd >= 0)
        close(systemd.fd);
    systemd.fd = -1;
}

static int connect_systemd(void)
{
    /* In one piece, as systemd's own tools say it: what came together with the last word would lie unread until more comes.
     * 30 is root's number, in hexadecimal ASCII. */
    static const char hello[] = "\0AUTH EXTERNAL 30\r\nBEGIN\r\n";
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strcpy(address.sun_path, place_of_systemd);
    disconnect_systemd();
    systemd.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    systemd.held = systemd.heard = 0;
    systemd.until = now_ms() + PATIENCE;
    if (systemd.fd < 0 || connect(systemd.fd, (struct sockaddr *)&address, sizeof address) < 0)
        return errno;
    int error = say(hello, sizeof hello - 1);
    size_t line = 0;
    while (error == 0 && !(line >= 2 && reply[line - 1] == '\n'))
        error = gather(++line);
    if (error == 0 && memcmp(reply, "OK", 2) != 0)
        error = EACCES;
    drop(error ? 0 : line);
    return error;
}

/* ---- reading a message: the text or number at `at`, which moves on; false beyond the end ---- */

static bool take_number(size_t *at, size_t end, uint32_t *number)
{
    *at = (*at + 3) & ~(size_t)3;
    if (end < 4 || *at > end - 4)
        return false;
    *number = wire_get_u32(reply + *at);
    *at += 4;
    return true;
}

static bool take_string(size_t *at, size_t end, const char **text)
{
    uint32_t length;
    if (!take_number(at, end, &length) || length >= end - *at || reply[*at + length] != 0)
        return false;
    *text = (const char *)reply + *at;
    *at += length + 1u;
    return true;
}

/* Which message the one that came answers; 0: none. Header fields are structs of a code, a signature and a value. */
static uint32_t answers(size_t fields_end)
{
    uint32_t number = 0;
    const char *text;
    for (size_t at = 16; at < fields_end;) {
        at = (at + 7) & ~(size_t)7;
        if (fields_end < 4 || at > fields_end - 4 || reply[at + 1] != 1)
            return 0;
        uint8_t code = reply[at];
        char type = (char)reply[at + 2];
        at += 4;
        if (type == 'u' ? !take_number(&at, fields_end, &number) : (type == 's' || type == 'o') && !take_string(&at, fields_end, &text))
            return 0;
        if (type == 'u' && code == REPLY_SERIAL)
            return number;
        if (type == 'g')
            at += at < fields_end ? reply[at] + 2u : 1;
    }
    return 0;
}

/* Wait for the answer to what was said last: where its body begins and ends in the buffer. */
static int hear(size_t *begin, size_t *end)
{
    for (;;) {
        drop(systemd.heard);
        systemd.heard = 0;
        int error = gather(16);
        if (error)
            return error;
        uint64_t body = wire_get_u32(reply + 4), fields = wire_get_u32(reply + 12);
        if (reply[0] != 'l' || body > REPLY_MAX || fields > REPLY_MAX)
            return EPROTO;
        *begin = (16 + (size_t)fields + 7) & ~(size_t)7;
        *end = *begin + (size_t)body;
        if ((error = gather(*end)))
            return error;
        systemd.heard = *end;
        uint8_t type = reply[1];
        if ((type == RETURN || type == REFUSED) && answers(16 + (size_t)fields) == systemd.serial)
            return type == RETURN ? 0 : EREMOTEIO;
    }
}

struct call {
    const char *path, *interface, *member, *signature;
};

/* Call with the body that was written to `body`, which holds nothing that needs a boundary of 8. */
static int call(const struct call *call, const struct writing *body, size_t *begin, size_t *end)
{
    struct writing message = { .length = 0 };
    const uint8_t first[4] = { 'l', CALL, 0, 1 };
    put(&message, first, sizeof first);
    put_number(&message, (uint32_t)body->length);
    put_number(&message, ++systemd.serial);
    put_number(&message, 0); /* the length of what follows, known below */
    put_header(&message, 1, "o", call->path);
    put_header(&message, 2, "s", call->interface);
    put_header(&message, 3, "s", call->member);
    put_header(&message, 8, "g", call->signature);
    wire_set_u32(message.bytes + 12, (uint32_t)(message.length - 16));
    pad(&message, 8);
    put(&message, body->bytes, body->length);
    if (message.overflow || body->overflow)
        return EMSGSIZE;
    int error = say(message.bytes, message.length);
    return error ? error : hear(begin, end);
}

/* ---- what is asked ---- */

static const char manager[] = "org.freedesktop.systemd1.Manager", place[] = "/org/freedesktop/systemd1";

static int list_timers(struct timer_unit *to, size_t room, size_t *count)
{
    static const struct call ask = { place, manager, "ListUnitsByPatterns", "asas" };
    struct writing body = { .length = 0 };
    size_t at, end;
    uint32_t bytes, job;
    *count = 0;
    put_list(&body, "active");
    put_list(&body, "*.timer");
    int error = call(&ask, &body, &at, &end);
    if (error || !take_number(&at, end, &bytes) || bytes == 0)
        return error;
    while (*count < room && (at = (at + 7) & ~(size_t)7) < end) {
        const char *text[9]; /* name, description, load, active, sub state, following, path; job's type, job's path */
        bool whole = true;
        for (int i = 0; whole && i < 9; i++)
            whole = (i != 7 || take_number(&at, end, &job)) && take_string(&at, end, &text[i]);
        if (!whole)
            return EPROTO;
        if (strlen(text[0]) >= NAME_SIZE || strlen(text[6]) >= PATH_SIZE)
            continue;
        strcpy(to[*count].name, text[0]);
        strcpy(to[(*count)++].path, text[6]);
    }
    return 0;
}

/* A property's value: where it begins in the buffer, past its signature. */
static int get_property(const char *path, const char *interface, const char *name, size_t *at, size_t *end)
{
    const struct call ask = { path, "org.freedesktop.DBus.Properties", "Get", "ss" };
    struct writing body = { .length = 0 };
    put_string(&body, interface);
    put_string(&body, name);
    int error = call(&ask, &body, at, end);
    if (error == 0 && *end - *at < 3)
        error = EPROTO;
    *at += error ? 0 : reply[*at] + 2u;
    return error;
}

static int ask_when(struct timer_unit *unit)
{
    size_t at, end;
    int error = get_property(unit->path, "org.freedesktop.systemd1.Timer", "NextElapseUSecRealtime", &at, &end);
    at = (at + 7) & ~(size_t)7;
    if (error == 0 && (end < 8 || at > end - 8))
        error = EPROTO;
    unit->elapses = error ? 0 : wire_get_u64(reply + at);
    return error;
}

static int is_inactive(const struct timer_unit *unit, bool *inactive)
{
    size_t at, end;
    const char *state;
    int error = get_property(unit->path, "org.freedesktop.systemd1.Unit", "ActiveState", &at, &end);
    if (error == 0 && !take_string(&at, end, &state))
        error = EPROTO;
    *inactive = error == 0 && strcmp(state, "inactive") == 0;
    return error;
}

static int order(const struct timer_unit *unit, const char *member)
{
    const struct call ask = { place, manager, member, "ss" };
    struct writing body = { .length = 0 };
    size_t at, end;
    put_string(&body, unit->name);
    put_string(&body, "replace");
    return call(&ask, &body, &at, &end);
}

/* An order is carried out after it was answered. */
static int wait_until_inactive(const struct timer_unit *unit)
{
    bool inactive = false;
    int error = 0;
    while (error == 0 && !inactive) {
        error = is_inactive(unit, &inactive);
        if (error == 0 && !inactive)
            error = now_ms() < systemd.until ? 0 : ETIMEDOUT;
        if (error == 0 && !inactive)
            poll(NULL, 0, 1);
    }
    return error;
}

bool timers_exist(void)
{
    return access(place_of_systemd, F_OK) == 0;
}

/* Ask systemd for all its timers; the connection stays. */
static int look(void)
{
    known_until = 0;
    int error = connect_systemd();
    if (error == 0)
        error = list_timers(known, TIMERS_MAX, &known_count);
    for (size_t i = 0; error == 0 && i < known_count; i++)
        error = ask_when(&known[i]);
    if (error == 0)
        known_until = now_ms() + FRESH;
    return error;
}

int timers_look_ahead(void)
{
    int error = look();
    disconnect_systemd();
    return error;
}

int timers_stop_late(uint64_t now)
{
    size_t former = late_count; /* stopped already, by a renewal a moment ago */
    int error = now_ms() < known_until ? 0 : look();
    for (size_t i = 0; error == 0 && i < known_count && late_count < TIMERS_MAX; i++)
        if (known[i].elapses > 0 && known[i].elapses <= now / 1000)
            late[late_count++] = known[i];
    if (error || late_count == former)
        return error;
    known_until = 0; /* they will have other times */
    if (systemd.fd < 0)
        error = connect_systemd();
    for (size_t i = former; error == 0 && i < late_count; i++)
        error = order(&late[i], "StopUnit");
    for (size_t i = former; error == 0 && i < late_count; i++)
        error = wait_until_inactive(&late[i]);
    return error;
}

/* The file by which systemd remembers, over a reboot, when a timer last elapsed. */
static void stamp(const struct timer_unit *unit)
{
    char path[NAME_SIZE + 64];
    snprintf(path, sizeof path, "/var/lib/systemd/timers/stamp-%s", unit->name);
    utimensat(AT_FDCWD, path, NULL, 0);
}

void timers_start_again(void)
{
    systemd.until = now_ms() + PATIENCE;
    for (size_t i = 0; i < late_count; i++) {
        stamp(&late[i]);
        order(&late[i], "StartUnit");
    }
    timers_forget();
}

void timers_forget(void)
{
    late_count = 0;
    disconnect_systemd();
}
