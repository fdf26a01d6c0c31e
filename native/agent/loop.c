#include "loop.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int everything = -1, producers = -1;
static bool asking;
static struct timer *timers;

void loop_init(void)
{
    everything = epoll_create1(EPOLL_CLOEXEC);
    producers = epoll_create1(EPOLL_CLOEXEC);
    if (everything < 0 || producers < 0)
        _exit(1);
}

void watch_init(struct watch *watch, int fd, bool producer, void (*ready)(struct watch *, uint32_t))
{
    *watch = (struct watch){ .fd = fd, .producer = producer, .ready = ready };
}

void watch_for(struct watch *watch, uint32_t events)
{
    if (watch->fd < 0 || watch->events == events)
        return;
    /* epoll reports a hang-up even when asked for nothing, so a watch for nothing is taken out altogether. */
    int how = !events ? EPOLL_CTL_DEL : watch->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    struct epoll_event event = { .events = events, .data.ptr = watch };
    if (epoll_ctl(watch->producer ? producers : everything, how, watch->fd, &event) == 0)
        watch->events = events;
}

void watch_close(struct watch *watch)
{
    if (watch->fd < 0)
        return;
    watch_for(watch, 0);
    close(watch->fd);
    watch->fd = -1;
}

void loop_producers(bool wanted)
{
    if (wanted == asking)
        return;
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL };
    if (epoll_ctl(everything, wanted ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, producers, &event) == 0)
        asking = wanted;
}

uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void timer_start(struct timer *timer, uint64_t milliseconds, void (*fire)(struct timer *))
{
    timer_stop(timer);
    timer->at = now_ms() + milliseconds;
    timer->fire = fire;
    timer->armed = true;
    timer->next = timers;
    timers = timer;
}

void timer_stop(struct timer *timer)
{
    if (!timer->armed)
        return;
    timer->armed = false;
    for (struct timer **link = &timers; *link; link = &(*link)->next)
        if (*link == timer) {
            *link = timer->next;
            return;
        }
}

static struct timer *first_timer(void)
{
    struct timer *first = timers;
    for (struct timer *timer = timers; timer; timer = timer->next)
        if (timer->at < first->at)
            first = timer;
    return first;
}

static void fire_timers(void)
{
    struct timer *first;
    while ((first = first_timer()) && first->at <= now_ms()) {
        timer_stop(first);
        first->fire(first);
    }
}

static int until_next_timer(void)
{
    struct timer *first = first_timer();
    if (!first)
        return -1;
    uint64_t now = now_ms();
    uint64_t left = first->at > now ? first->at - now : 0;
    return left > 60000 ? 60000 : (int)left;
}

static void take_one(int set, int timeout)
{
    struct epoll_event event;
    if (epoll_wait(set, &event, 1, timeout) != 1)
        return;
    struct watch *watch = event.data.ptr;
    if (watch)
        watch->ready(watch, event.events);
    else
        take_one(producers, 0);
}

_Noreturn void loop_run(void (*settle)(void))
{
    for (;;) {
        fire_timers();
        settle();
        take_one(everything, until_next_timer());
    }
}
