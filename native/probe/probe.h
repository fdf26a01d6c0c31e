/* Attempts to get out of a machine's jail, made where QEMU would run. */
#ifndef INSULA_PROBE_H
#define INSULA_PROBE_H

#include <stddef.h>

/* Something to try: at least 0 says that it succeeded, -1 that it did not, errno why. `name` is shown. */
struct attempt {
    const char *name;
    long (*make)(void);
};

extern const struct attempt file_attempts[], kernel_attempts[], network_attempts[], process_attempts[];

/* What the host laid out to be reached: the value of the word `name=value`, "" if there is none. */
const char *target(const char *name);
long target_number(const char *name);

#endif
