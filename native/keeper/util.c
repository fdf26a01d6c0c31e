#define _GNU_SOURCE
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int64_t clock_now(clockid_t clock, int64_t unit)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * (1000000000 / unit) + time.tv_nsec / unit;
}

int64_t now_ns(void)
{
    return clock_now(CLOCK_REALTIME, 1);
}

int64_t now_ms(void)
{
    return clock_now(CLOCK_MONOTONIC, 1000000);
}

bool set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static int by_number(const void *left, const void *right)
{
    return *(const int *)left - *(const int *)right;
}

static void close_range_of(unsigned first, unsigned last)
{
    if (first > last)
        return;
#ifdef SYS_close_range
    if (syscall(SYS_close_range, first, last, 0) == 0)
        return;
#endif
    long limit = sysconf(_SC_OPEN_MAX); /* a kernel before 5.9 */
    for (unsigned fd = first; fd <= last && (long)fd < limit; fd++)
        close((int)fd);
}

void close_others(int *kept, size_t count)
{
    unsigned next = 3;
    qsort(kept, count, sizeof *kept, by_number);
    for (size_t i = 0; i < count; i++) {
        if (kept[i] < (int)next)
            continue;
        if (kept[i] > (int)next)
            close_range_of(next, (unsigned)kept[i] - 1);
        next = (unsigned)kept[i] + 1;
    }
    close_range_of(next, ~0U);
}

/* ---- queues ---- */

enum { PAGE = 4096 };

size_t queue_total;

size_t queue_length(const struct queue *queue)
{
    return queue->end - queue->begin;
}

static bool queue_grow(struct queue *queue, size_t wanted)
{
    size_t size = queue->size ? queue->size : PAGE;
    while (size < wanted)
        size *= 2;
    void *bytes = queue->size ? mremap(queue->bytes, queue->size, size, MREMAP_MAYMOVE) : memory_take(&size);
    if (!bytes || bytes == MAP_FAILED)
        return false;
    queue_total += size - queue->size;
    queue->bytes = bytes;
    queue->size = size;
    return true;
}

bool queue_add(struct queue *queue, const void *bytes, size_t length)
{
    if (length == 0)
        return true;
    if (queue->size - queue->end < length && queue->begin > 0) {
        memmove(queue->bytes, queue->bytes + queue->begin, queue_length(queue));
        queue->end -= queue->begin;
        queue->begin = 0;
    }
    if (queue->size - queue->end < length && !queue_grow(queue, queue->end + length))
        return false;
    memcpy(queue->bytes + queue->end, bytes, length);
    queue->end += length;
    return true;
}

void queue_take(struct queue *queue, size_t length)
{
    queue->begin += length;
    if (queue->begin == queue->end)
        queue_clear(queue);
}

void queue_clear(struct queue *queue)
{
    if (queue->size > 0)
        memory_give(queue->bytes, queue->size);
    queue_total -= queue->size;
    *queue = (struct queue){ 0 };
}

bool queue_flush(struct queue *queue, int fd)
{
    while (queue_length(queue) > 0) {
        ssize_t sent = send(fd, queue->bytes + queue->begin, queue_length(queue), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0)
            return errno == EAGAIN || errno == EINTR;
        queue_take(queue, (size_t)sent);
    }
    return true;
}

bool queue_pass(struct queue *queue, int fd, const void *header, size_t header_length, const void *payload, size_t length)
{
    size_t sent = 0;
    if (length >= PAGE && queue_length(queue) == 0) {
        struct iovec parts[] = { { (void *)header, header_length }, { (void *)payload, length } };
        struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
        ssize_t taken = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        sent = taken > 0 ? (size_t)taken : 0; /* that the other side is gone shows when the rest is flushed */
    }
    size_t skipped = sent < header_length ? sent : header_length;
    sent -= skipped;
    return queue_add(queue, (const uint8_t *)header + skipped, header_length - skipped)
           && queue_add(queue, (const uint8_t *)payload + sent, length - sent);
}

void widen_socket(int fd)
{
    const int wanted = 1 << 18; /* bulk stops less often; with more it is read from memory, no longer from a cache */
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &wanted, sizeof wanted);
}

/* ---- rings ---- */

void ring_add(struct ring *ring, const void *bytes, size_t length)
{
    const uint8_t *from = bytes;
    if (length > ring->size) {
        from += length - ring->size;
        ring->end += length - ring->size;
        length = ring->size;
    }
    size_t at = ring->end % ring->size;
    size_t first = ring->size - at < length ? ring->size - at : length;
    memcpy(ring->bytes + at, from, first);
    memcpy(ring->bytes, from + first, length - first);
    ring->end += length;
}

uint64_t ring_begin(const struct ring *ring)
{
    return ring->end > ring->size ? ring->end - ring->size : 0;
}

size_t ring_copy(const struct ring *ring, uint64_t position, void *to, size_t room)
{
    size_t length = ring->end - position < room ? (size_t)(ring->end - position) : room;
    size_t at = position % ring->size;
    size_t first = ring->size - at < length ? ring->size - at : length;
    memcpy(to, ring->bytes + at, first);
    memcpy((uint8_t *)to + first, ring->bytes, length - first);
    return length;
}

/* ---- text ---- */

void text_init(struct text *text, char *at, size_t size)
{
    *text = (struct text){ .at = at, .size = size };
    at[0] = 0;
}

void text_add(struct text *text, const char *format, ...)
{
    va_list arguments;
    size_t room = text->size - text->length;
    va_start(arguments, format);
    int length = vsnprintf(text->at + text->length, room, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= room) {
        text->at[text->length] = 0;
        text->overflow = true;
        return;
    }
    text->length += (size_t)length;
}

void text_add_bytes(struct text *text, const char *bytes, size_t length)
{
    if (length >= text->size - text->length) {
        text->overflow = true;
        return;
    }
    memcpy(text->at + text->length, bytes, length);
    text->length += length;
    text->at[text->length] = 0;
}

/* Decode one UTF-8 character. Returns the bytes it takes, or 0 when it is none (RFC 3629: shortest form, no surrogates). */
static size_t decode(const uint8_t *at, size_t length, uint32_t *point)
{
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    size_t need = at[0] < 0x80 ? 1 : at[0] >= 0xF0 ? 4 : at[0] >= 0xE0 ? 3 : 2;
    if ((at[0] >= 0x80 && at[0] < 0xC2) || at[0] > 0xF4 || need > length)
        return 0;
    *point = need == 1 ? at[0] : at[0] & (0x7F >> need);
    for (size_t i = 1; i < need; i++) {
        if ((at[i] & 0xC0) != 0x80)
            return 0;
        *point = *point << 6 | (at[i] & 0x3F);
    }
    bool valid = *point >= least[need] && *point <= 0x10FFFF && (*point < 0xD800 || *point > 0xDFFF);
    return valid ? need : 0;
}

static void add_point(struct text *text, uint32_t point)
{
    if (point == '"' || point == '\\')
        text_add(text, "\\%c", (char)point);
    else if (point == '\n')
        text_add(text, "\\n");
    else if (point >= 0x20 && point < 0x7F)
        text_add_bytes(text, &(char){ (char)point }, 1);
    else if (point < 0x10000)
        text_add(text, "\\u%04x", (unsigned)point);
    else
        text_add(text, "\\u%04x\\u%04x", (unsigned)(0xD7C0 + (point >> 10)), (unsigned)(0xDC00 + (point & 0x3FF)));
}

void text_add_string(struct text *text, const char *bytes, size_t length)
{
    text_add(text, "\"");
    while (length > 0) {
        uint32_t point = 0xFFFD;
        size_t taken = decode((const uint8_t *)bytes, length, &point);
        if (taken == 0) {
            point = 0xFFFD;
            taken = 1;
        }
        add_point(text, point);
        bytes += taken;
        length -= taken;
    }
    text_add(text, "\"");
}
