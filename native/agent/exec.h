/* exec: a program of the guest with its streams, terminal, signals and exit code on a channel. */
#ifndef INSULA_EXEC_H
#define INSULA_EXEC_H

#include "channels.h"

void exec_run(const struct request *request);

#endif
