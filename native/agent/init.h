/* What PID 1 does before anything else. */
#ifndef INSULA_INIT_H
#define INSULA_INIT_H

#include <stdbool.h>
#include <stddef.h>

/* Descriptors 0 to 2 are open afterwards, on the console where there is one. */
void init_console(void);

/* Kernel file systems, names and the loopback link. What is there already stays. */
void init_system(void);

/* Say something where a person may see it. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* In an initramfs that names modules or a root: load them, switch to it and become its init. Returns where there is
 * none, or no root is named: then this is all the system there is. */
void initramfs_run(void);

#endif
