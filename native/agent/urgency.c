#define _GNU_SOURCE /* SYS_sched_setscheduler: musl's own function refuses, as POSIX has it for threads only */
#include "urgency.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "loop.h"

enum { RESET_ON_FORK = 0x40000000 };

static void set_policy(int policy, int priority)
{
    struct sched_param parameters = { .sched_priority = priority };
    (void)!syscall(SYS_sched_setscheduler, 0, policy | RESET_ON_FORK, &parameters); /* where it may not, it is only slower */
}

static void calm_down(struct timer *timer)
{
    (void)timer;
    set_policy(SCHED_OTHER, 0);
}

void urgency_begin(unsigned milliseconds)
{
    static struct timer calm;
    set_policy(SCHED_RR, 1);
    timer_start(&calm, milliseconds, calm_down);
}
