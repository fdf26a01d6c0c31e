#include "flush.h"

#include <stdlib.h>
#include <unistd.h>

#include "children.h"
#include "loop.h"

enum { A_MOMENT = 1000 };

static void flushed(struct child *child, int status)
{
    (void)status;
    free(child);
}

static void flush(struct timer *timer)
{
    (void)timer;
    struct child *child = malloc(sizeof *child);
    pid_t pid = child ? child_fork(child, flushed) : -1;
    if (pid == 0) {
        sync();
        _exit(0);
    }
    if (pid < 0)
        free(child);
}

void flush_soon(void)
{
    static struct timer soon;
    timer_start(&soon, A_MOMENT, flush);
}
