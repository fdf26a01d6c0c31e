/* Small things every part of the keeper needs: clocks, byte queues, rings, JSON text going out. */
#ifndef KEEPER_UTIL_H
#define KEEPER_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

int64_t now_ns(void); /* since 1970 */
int64_t now_ms(void); /* monotonic */

bool set_nonblocking(int fd);
void close_fd(int *fd); /* and make it -1 */

/* Close every descriptor from 3 on that `kept` does not name. `kept` is sorted in place. */
void close_others(int *kept, size_t count);

/* Memory that comes and goes with every frame. What is given back is kept for who takes some next, because to map it anew and
 * have it zeroed page by page costs more than to copy the frame; it is released when nothing happened for a moment. */
void *memory_take(size_t *size); /* at least so many bytes; NULL: there are none */
void memory_give(void *bytes, size_t size);
bool memory_is_spare(void);
void memory_release(void);

/* Bytes that wait to be written. Memory is mapped while there are any and given back when there are none. */
struct queue {
    uint8_t *bytes;
    size_t begin, end, size;
};

extern size_t queue_total; /* memory held by all queues */

size_t queue_length(const struct queue *queue);
bool queue_add(struct queue *queue, const void *bytes, size_t length); /* false: no memory, nothing was added */
void queue_take(struct queue *queue, size_t length);
void queue_clear(struct queue *queue);

/* Write what `fd` takes without blocking. False when the other side is gone. */
bool queue_flush(struct queue *queue, int fd);

/* Write a header and its payload to `fd` as far as it takes them now, and add the rest: bulk is copied once less than by way of
 * the queue. Behind what waits already all of it is added. False: no memory; half a frame may have been written. */
bool queue_pass(struct queue *queue, int fd, const void *header, size_t header_length, const void *payload, size_t length);

/* As much room as an ordinary process may have for what is sent and not yet read there: bulk then stops less often. */
void widen_socket(int fd);

/* The last `size` bytes of a stream, for any number of readers who each remember how far they are. */
struct ring {
    uint8_t *bytes;
    size_t size;
    uint64_t end; /* bytes ever added */
};

void ring_add(struct ring *ring, const void *bytes, size_t length);
uint64_t ring_begin(const struct ring *ring); /* position of the oldest byte kept */

/* Copy bytes from `position` on (not older than ring_begin), at most `room`. */
size_t ring_copy(const struct ring *ring, uint64_t position, void *to, size_t room);

/* JSON being written into a caller's buffer; always NUL-terminated. What does not fit sets `overflow`. */
struct text {
    char *at;
    size_t size, length;
    bool overflow;
};

void text_init(struct text *text, char *at, size_t size);
void text_add(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_add_bytes(struct text *text, const char *bytes, size_t length);

/* A JSON string of whatever bytes: what is not printable ASCII is escaped, what is not UTF-8 becomes U+FFFD. */
void text_add_string(struct text *text, const char *bytes, size_t length);

#endif
