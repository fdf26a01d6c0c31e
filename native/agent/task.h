/* Verbs that may take their time run in a process of their own; their RESULT is what that process says. */
#ifndef INSULA_TASK_H
#define INSULA_TASK_H

#include "channels.h"

/* `job` runs in the new process and writes the fields of the RESULT (none: success). */
void task_run(const struct request *request, void (*job)(const struct request *request, struct wire_writer *fields));

#endif
