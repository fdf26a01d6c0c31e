/* freeze and thaw: the processes of users stop and go on, the agent and init stay. */
#ifndef INSULA_FREEZE_H
#define INSULA_FREEZE_H

#include "channels.h"

void freeze_run(const struct request *request);
void thaw_run(const struct request *request);

/* Let everything go on, at once: before the guest goes down. */
void thaw_all(void);

#endif
