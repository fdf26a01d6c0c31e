/* Programs of the guest's owner that make new what nobody else knows of. */
#ifndef INSULA_HOOKS_H
#define INSULA_HOOKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whether there are any. */
bool hooks_exist(void);

/* Run the programs in /etc/insula/fork.d in the order of their names, for so many milliseconds altogether. In their environment
 * INSULA_NAME is the host name, INSULA_FORMER_NAME the one before. The number of those that were run; what went wrong with the first
 * that failed is put to `failed` (empty: nothing). */
int hooks_run(const char *former, uint64_t milliseconds, char *failed, size_t size);

#endif
