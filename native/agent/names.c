#include "names.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct named {
    int number;
    const char *name;
};

#define E(name) { name, #name }
static const struct named errors[] = {
    E(EPERM), E(ENOENT), E(ESRCH), E(EINTR), E(EIO), E(ENXIO), E(E2BIG), E(ENOEXEC), E(EBADF), E(ECHILD), E(EAGAIN),
    E(ENOMEM), E(EACCES), E(EFAULT), E(ENOTBLK), E(EBUSY), E(EEXIST), E(EXDEV), E(ENODEV), E(ENOTDIR), E(EISDIR),
    E(EINVAL), E(ENFILE), E(EMFILE), E(ENOTTY), E(ETXTBSY), E(EFBIG), E(ENOSPC), E(ESPIPE), E(EROFS), E(EMLINK),
    E(EPIPE), E(ERANGE), E(EDEADLK), E(ENAMETOOLONG), E(ENOSYS), E(ENOTEMPTY), E(ELOOP), E(EPROTO), E(EOVERFLOW),
    E(ENOTSUP), E(EADDRINUSE), E(EADDRNOTAVAIL), E(ENETDOWN), E(ENETUNREACH), E(ENOBUFS), E(ETIMEDOUT), E(EALREADY),
    E(ESTALE), E(EDQUOT), E(ECANCELED),
};

#define S(name) { SIG##name, #name }
static const struct named signals[] = {
    S(HUP), S(INT), S(QUIT), S(ILL), S(TRAP), S(ABRT), S(BUS), S(FPE), S(KILL), S(USR1), S(SEGV), S(USR2), S(PIPE),
    S(ALRM), S(TERM), S(STKFLT), S(CHLD), S(CONT), S(STOP), S(TSTP), S(TTIN), S(TTOU), S(URG), S(XCPU), S(XFSZ),
    S(VTALRM), S(PROF), S(WINCH), S(IO), S(PWR), S(SYS),
};

static const char *name_of(const struct named *table, size_t count, int number)
{
    for (size_t i = 0; i < count; i++)
        if (table[i].number == number)
            return table[i].name;
    return NULL;
}

const char *error_name(int error)
{
    const char *name = name_of(errors, sizeof errors / sizeof *errors, error);
    return name ? name : "EIO";
}

const char *signal_name(int number)
{
    return name_of(signals, sizeof signals / sizeof *signals, number);
}

int signal_number(const char *name)
{
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        if (strcmp(signals[i].name, name) == 0)
            return signals[i].number;
    return 0;
}
