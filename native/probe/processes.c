/* Processes of the host and of others, and how many of its own. */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MANY = 600, LIFE = 10, FILLING = 60 };

/* That it may not be hit does not help it: it must not be seen. */
static long signalled(void)
{
    return kill((pid_t)target_number("pid"), 0) == 0 || errno == EPERM ? 0 : -1;
}

static long all_signalled(void)
{
    /* Of its own jail there is this process and those above it, which must not be hit: 0 only asks. */
    return kill((pid_t)-target_number("pid"), 0);
}

static long traced(void)
{
    return ptrace(PTRACE_SEIZE, (pid_t)target_number("pid"), 0, 0);
}

static long keeper_traced(void)
{
    return ptrace(PTRACE_SEIZE, 1, 0, 0);
}

static long memory_read(void)
{
    char byte;
    struct iovec here = {&byte, 1}, there = {&here, 1};
    return process_vm_readv(getppid(), &here, 1, &there, 1, 0);
}

static long descriptor_taken(void)
{
    int process = (int)syscall(SYS_pidfd_open, 1, 0);
    return process < 0 ? -1 : syscall(SYS_pidfd_getfd, process, 0, 0);
}

static long environment_read(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/environ", target_number("pid"));
    return open(path, O_RDONLY);
}

/* Wait, without a call that may be refused, and end soon if nobody ends it. */
static void linger(void)
{
    alarm(LIFE);
    poll(NULL, 0, -1);
    _exit(0);
}

/* As many processes as there can be, up to more than any machine needs; how many, and why no more, to `told`. */
static void multiply(int told)
{
    int report[2] = {0, 0};
    setpgid(0, 0);
    while (report[0] < MANY) {
        pid_t child = fork();
        if (child < 0) {
            report[1] = errno;
            break;
        }
        if (child == 0)
            linger();
        report[0]++;
    }
    (void)!write(told, report, sizeof report);
    linger();
}

static long fork_bomb(void)
{
    int report[2] = {0, ECHILD}, ways[2];
    if (pipe2(ways, O_CLOEXEC) < 0)
        return -1;
    pid_t bomb = fork();
    if (bomb == 0)
        multiply(ways[1]);
    close(ways[1]);
    if (bomb > 0) {
        (void)!read(ways[0], report, sizeof report);
        kill(-bomb, SIGKILL);
        kill(bomb, SIGKILL);
    }
    errno = report[1];
    return report[0] == MANY ? 0 : -1;
}

/* Much memory, and used. No limit of a process counts all it can have; a group's does, and who takes too much is killed for it. */
static long memory_filled(void)
{
    size_t much = (size_t)target_number("much");
    alarm(FILLING);
    char *memory = mmap(NULL, much, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (much == 0 || memory == MAP_FAILED)
        return -1;
    for (size_t at = 0; at < much; at += 4096)
        memory[at] = 1;
    return 0;
}

static long limit_raised(void)
{
    struct rlimit limit = {1 << 20, 1 << 20};
    return setrlimit(RLIMIT_MEMLOCK, &limit);
}

static long memory_locked(void)
{
    static char page[8192];
    return mlock(page, sizeof page);
}

static long preferred(void)
{
    return setpriority(PRIO_PROCESS, 0, -20);
}

const struct attempt process_attempts[] = {
    {"signal a process of the host", signalled},
    {"signal a group of the host's processes", all_signalled},
    {"trace a process of the host", traced},
    {"trace the keeper", keeper_traced},
    {"read another process's memory", memory_read},
    {"take another process's descriptor", descriptor_taken},
    {"read a process's environment", environment_read},
    {"start processes without end", fork_bomb},
    {"take far more memory than a machine", memory_filled},
    {"raise its limits", limit_raised},
    {"lock memory", memory_locked},
    {"go before others", preferred},
    {NULL, NULL},
};
