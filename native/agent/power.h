/* Going down: asked by the host (shutdown) or by somebody in the guest (signals to PID 1). */
#ifndef INSULA_POWER_H
#define INSULA_POWER_H

#include "channels.h"

void shutdown_run(const struct request *request);
void power_asked(int signal);

/* As PID 1: end all processes, flush and let go of the disks, and off. */
_Noreturn void power_down(bool reboot);

/* The last step alone. */
_Noreturn void power_cut(bool reboot);

#endif
