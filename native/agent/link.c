#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "hello.h"
#include "loop.h"
#include "port.h"
#include "urgency.h"

enum {
    SLACK = 32768, /* always kept free for small frames: two CREDITs for each of 256 channels are 8 KiB */
    OUT_SIZE = 2 * (WIRE_FRAME_MAX + SLACK),
    READ_TURN = 262144, /* bytes taken from the port before others get their turn */
    REOPEN_FIRST = 50,  /* milliseconds until a port that is not there, or has nobody behind it, is looked at again */
    REOPEN_LAST = 250,
};

static uint8_t in_buffer[2 * WIRE_FRAME_MAX];
static uint8_t out_buffer[OUT_SIZE];
static size_t out_begin, out_end;

static struct wire_reader reader;
static bool scanning = true;
static bool alive; /* a SYNC was answered */
static uint8_t nonce[WIRE_NONCE];

static const struct link_listener *listener;
static const char *port_name;
static struct watch port = { .fd = -1 };
static struct timer reopen;
static uint64_t patience = REOPEN_FIRST;
static bool port_asleep; /* nobody is on the host's side: not watched until the timer looks again */

static void port_ready(struct watch *watch, uint32_t events);

static void look_again(struct timer *timer)
{
    (void)timer;
    if (port.fd >= 0) {
        port_asleep = false; /* settle watches it again; if still nobody is there we are back soon */
        return;
    }
    int fd = port_open(port_name);
    if (fd < 0) {
        timer_start(&reopen, patience, look_again);
        patience = patience * 2 > REOPEN_LAST ? REOPEN_LAST : patience * 2;
        return;
    }
    watch_init(&port, fd, false, port_ready);
    port_asleep = false;
    scanning = true;
    patience = REOPEN_FIRST;
}

static void port_sleep(void)
{
    watch_for(&port, 0);
    port_asleep = true;
    timer_start(&reopen, patience, look_again);
    patience = patience * 2 > REOPEN_LAST ? REOPEN_LAST : patience * 2;
}

static void port_lost(void)
{
    watch_close(&port);
    wire_reader_init(&reader, in_buffer, sizeof in_buffer);
    out_begin = out_end = 0;
    timer_start(&reopen, patience, look_again);
}

void link_init(const char *name, const struct link_listener *to)
{
    port_name = name;
    listener = to;
    wire_reader_init(&reader, in_buffer, sizeof in_buffer);
    look_again(&reopen);
}

/* ---- out ---- */

bool link_room(void)
{
    return sizeof out_buffer - (out_end - out_begin) >= WIRE_FRAME_MAX + SLACK;
}

/* Make the free part of the buffer one piece, when it is needed in one piece. */
static void compact(size_t wanted)
{
    if (out_begin == 0 || sizeof out_buffer - out_end >= wanted)
        return;
    memmove(out_buffer, out_buffer + out_begin, out_end - out_begin);
    out_end -= out_begin;
    out_begin = 0;
}

uint8_t *link_payload(void)
{
    compact(WIRE_FRAME_MAX);
    return out_buffer + out_end + WIRE_HEADER;
}

void link_commit(uint8_t type, uint8_t stream, uint32_t channel, uint32_t length)
{
    wire_header(out_buffer + out_end, type, stream, channel, length);
    out_end += WIRE_HEADER + length;
}

static void append(const void *bytes, size_t length)
{
    compact(length);
    if (sizeof out_buffer - out_end < length)
        return; /* the slack is for what can come between two rooms; more than that never does */
    memcpy(out_buffer + out_end, bytes, length);
    out_end += length;
}

void link_send(uint8_t type, uint8_t stream, uint32_t channel, const void *payload, uint32_t length)
{
    compact(WIRE_HEADER + length);
    if (sizeof out_buffer - out_end < WIRE_HEADER + length)
        return;
    if (length > 0)
        memcpy(out_buffer + out_end + WIRE_HEADER, payload, length);
    link_commit(type, stream, channel, length);
}

void link_flush(void)
{
    while (out_begin < out_end && port.fd >= 0 && !port_asleep) {
        ssize_t sent = write(port.fd, out_buffer + out_begin, out_end - out_begin);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno != EAGAIN)
            port_lost();
        if (sent <= 0)
            return;
        out_begin += (size_t)sent;
    }
    if (out_begin == out_end)
        out_begin = out_end = 0;
}

void link_drain(int milliseconds)
{
    uint64_t end = now_ms() + (uint64_t)milliseconds;
    link_flush();
    while (out_begin < out_end && port.fd >= 0 && now_ms() < end) {
        struct pollfd wanted = { .fd = port.fd, .events = POLLOUT };
        if (poll(&wanted, 1, (int)(end - now_ms())) <= 0 || wanted.revents & (POLLHUP | POLLERR))
            return;
        link_flush();
    }
}

/* ---- in ---- */

static void begin_life(const struct wire_sync *sync)
{
    uint8_t hello[WIRE_HELLO_MAX], answer[WIRE_ANSWER];
    uint16_t version = wire_choose_version(sync);
    bool known = alive && memcmp(nonce, sync->nonce, WIRE_NONCE) == 0;
    if (!known) {
        urgency_begin(URGENT_NOW);
        out_begin = out_end = 0; /* what was under way belongs to nobody: the host drops all before our mark */
        listener->new_life();
    }
    memcpy(nonce, sync->nonce, WIRE_NONCE);
    alive = version != 0;
    scanning = !alive;
    size_t length = hello_write(hello, sizeof hello, version);
    wire_write_answer(answer, nonce, version, (uint32_t)length);
    append(answer, sizeof answer);
    append(hello, length);
}

bool link_take(void)
{
    struct wire_frame frame;
    struct wire_sync sync;
    while (link_room()) {
        if (scanning) {
            if (wire_reader_seek_sync(&reader, &sync) != WIRE_GOT)
                return true;
            begin_life(&sync);
            continue;
        }
        enum wire_got got = wire_reader_next(&reader, &frame);
        if (got == WIRE_MORE)
            return true;
        if (got == WIRE_GOT)
            listener->frame(&frame);
        else
            scanning = true;
    }
    return false;
}

static void port_ready(struct watch *watch, uint32_t events)
{
    size_t taken = 0;
    while (taken < READ_TURN && link_room()) {
        uint8_t *at;
        size_t room = wire_reader_space(&reader, &at);
        ssize_t got = read(watch->fd, at, room);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            break;
        if (got < 0 && errno != EIO) { /* EIO: the other end of a test's terminal is closed, as a hang-up */
            port_lost();
            return;
        }
        if (got <= 0) { /* nobody on the host's side */
            port_sleep();
            return;
        }
        wire_reader_filled(&reader, (size_t)got);
        taken += (size_t)got;
        patience = REOPEN_FIRST;
        link_take();
    }
    if (taken == 0 && events & (EPOLLHUP | EPOLLERR))
        port_sleep();
}

void link_watch(void)
{
    bool room = link_room();
    loop_producers(room && alive);
    if (port.fd >= 0 && !port_asleep)
        watch_for(&port, (room ? (uint32_t)EPOLLIN : 0) | (out_begin < out_end ? (uint32_t)EPOLLOUT : 0));
}
