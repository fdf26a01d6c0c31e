/* The event loop: one thread, nothing in it waits anywhere else.
 *
 * A *watch* is a descriptor with a function to call when it is ready. A *producer* is a watch whose function puts a frame
 * on the link; producers are asked, in turn, only while the link has room. A *timer* fires once.
 *
 * One event is taken at a time, so a function may free its own watch, or any other.
 */
#ifndef INSULA_LOOP_H
#define INSULA_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>

#define CONTAINER(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))

struct watch {
    int fd;
    uint32_t events; /* 0: not watched at all, not even for a hang-up */
    bool producer;
    void (*ready)(struct watch *watch, uint32_t events);
};

struct timer {
    uint64_t at; /* milliseconds of the monotonic clock */
    bool armed;
    void (*fire)(struct timer *timer);
    struct timer *next;
};

void loop_init(void);
void watch_init(struct watch *watch, int fd, bool producer, void (*ready)(struct watch *, uint32_t));
void watch_for(struct watch *watch, uint32_t events);
void watch_close(struct watch *watch); /* stop watching and close the descriptor; harmless when done before */

uint64_t now_ms(void);
void timer_start(struct timer *timer, uint64_t milliseconds, void (*fire)(struct timer *));
void timer_stop(struct timer *timer);

/* Ask producers, or do not. */
void loop_producers(bool wanted);

/* Run for ever. `settle` is called before each wait. */
_Noreturn void loop_run(void (*settle)(void));

#endif
