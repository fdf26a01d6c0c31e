/* Runs inside a guest: a heartbeat beside work that dirties memory, or the work alone, one byte for each.
 *
 *     beat silence   one byte every millisecond, whatever else the guest does, while 100 MB of memory a second are dirtied
 *     beat work      one byte for each piece of work: as many as the guest can do, a millisecond of computing and 100 kB of
 *                    dirtied memory each
 *
 * Who reads the bytes on the host stamps them there: a guest that stands still does not know it.
 */
#define _GNU_SOURCE /* syscall: musl's own sched_setscheduler refuses, as POSIX has it for threads only */
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, HOT = 32 << 20, PIECE = 25 * PAGE, MILLISECOND = 1000000 };

static uint8_t *hot;

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void pause_for(int64_t nanoseconds)
{
    struct timespec time = { 0, (long)nanoseconds };
    if (nanoseconds > 0)
        nanosleep(&time, NULL);
}

static void dirty(void)
{
    static size_t at;
    static uint8_t value;
    for (size_t done = 0; done < PIECE; done += PAGE, at = (at + PAGE) % HOT)
        memset(hot + at, ++value, 64);
}

static uint64_t compute(uint64_t rounds)
{
    static volatile uint64_t kept;
    uint64_t value = kept;
    for (uint64_t i = 0; i < rounds; i++)
        value = value * 6364136223846793005u + i;
    kept = value;
    return value;
}

/* How many rounds of computing take a millisecond here. */
static uint64_t calibrate(void)
{
    const uint64_t rounds = 10000000;
    compute(rounds); /* an emulator translates it first */
    int64_t begin = now();
    compute(rounds);
    return rounds * MILLISECOND / (uint64_t)(now() - begin + 1) + 1;
}

static void work(void)
{
    for (uint64_t rounds = calibrate(); write(1, "w", 1) == 1; compute(rounds))
        dirty();
}

static void load(void)
{
    int64_t next = now();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        dirty();
        next += MILLISECOND;
        if (next < now() - 100 * (int64_t)MILLISECOND)
            next = now(); /* it stood still: what was missed is not made up for */
        pause_for(next - now());
    }
}

static void beat(void)
{
    struct sched_param first = { .sched_priority = 1 };
    if (syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &first) < 0) /* before all that is ordinary */
        return;
    while (write(1, "b", 1) == 1)
        pause_for(MILLISECOND);
}

int main(int argc, char **argv)
{
    hot = mmap(NULL, HOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (argc != 2 || hot == MAP_FAILED)
        return 2;
    memset(hot, 1, HOT);
    if (strcmp(argv[1], "work") == 0)
        work();
    else if (fork() == 0)
        load();
    else
        beat();
    return 0;
}
