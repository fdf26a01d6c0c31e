/* What a program may do that is started in a room: whose rights it has, what it may take, and what it may ask the kernel for. */
#define _GNU_SOURCE
#include "hold.h"

#include <grp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PR_CAP_AMBIENT
#define PR_CAP_AMBIENT 47
#define PR_CAP_AMBIENT_RAISE 2
#endif

enum { LAST_CAPABILITY = 63, CALLS_MAX = 4096 /* BPF_MAXINSNS */, MODE_FILTER = 2 /* SECCOMP_MODE_FILTER */ };
enum { LARGEST = 1 << 24 /* a log */, MEMORY = 1 << 30, PROCESSES = 64 };

static bool set_capabilities(unsigned long mask)
{
    /* capset(2), version 3: the first of two halves, each 32 capabilities */
    struct { uint32_t version; int pid; } header = { .version = 0x20080522 };
    struct { uint32_t effective, permitted, inheritable; } data[2] = { 0 };
    data[0].effective = data[0].permitted = data[0].inheritable = (uint32_t)mask;
    return syscall(SYS_capset, &header, data) == 0;
}

void bound_capabilities(unsigned long mask)
{
    for (int number = 0; number <= LAST_CAPABILITY; number++)
        if (number > 31 || !(mask >> number & 1))
            prctl(PR_CAPBSET_DROP, number, 0, 0, 0); /* refused: the kernel has no such capability */
}

bool reduce_rights(long uid, unsigned long mask)
{
    bound_capabilities(mask);
    if (uid >= 0) {
        if (prctl(PR_SET_KEEPCAPS, 1) < 0 || setgroups(0, NULL) < 0)
            return false;
        if (setresgid((gid_t)uid, (gid_t)uid, (gid_t)uid) < 0 || setresuid((uid_t)uid, (uid_t)uid, (uid_t)uid) < 0)
            return false;
    }
    if (!set_capabilities(mask))
        return false;
    for (int number = 0; number < 32; number++)
        if (mask >> number & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0) < 0)
            return false;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

bool bound_resources(bool own_user)
{
    static const struct { int resource; rlim_t most; } bounds[] = {
        { RLIMIT_CORE, 0 },        { RLIMIT_MEMLOCK, 0 },       { RLIMIT_MSGQUEUE, 0 },
        { RLIMIT_FSIZE, LARGEST }, { RLIMIT_AS, MEMORY },       { RLIMIT_NPROC, PROCESSES },
    };
    size_t count = sizeof bounds / sizeof *bounds - (own_user ? 0 : 1); /* the last is counted per user */
    signal(SIGXFSZ, SIG_IGN); /* what does not fit is not written; nobody ends for that */
    for (size_t i = 0; i < count; i++) {
        struct rlimit wanted = { bounds[i].most, bounds[i].most };
        if (setrlimit((unsigned)bounds[i].resource, &wanted) < 0)
            return false;
    }
    return true;
}

bool take_calls(int calls)
{
    static uint64_t filter[CALLS_MAX]; /* struct sock_filter, and struct sock_fprog below: seccomp(2) */
    ssize_t size = pread(calls, filter, sizeof filter, 0);
    if (size <= 0 || size % (ssize_t)sizeof *filter)
        return false;
    struct { unsigned short length; uint64_t *filter; } program = { (unsigned short)((size_t)size / sizeof *filter), filter };
    return prctl(PR_SET_SECCOMP, MODE_FILTER, &program) == 0;
}
