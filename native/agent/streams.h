/* The pipes or the terminal between the agent and a program. */
#ifndef INSULA_STREAMS_H
#define INSULA_STREAMS_H

#include "spawn.h"

/* By stream. Ours do not block; none is left to other programs. With a terminal ours[0] and ours[1] are two descriptors of
 * its master, there is no ours[2], and theirs are all the same. -1: none. */
struct streams {
    int ours[3], theirs[3];
};

/* False (errno) when there are not enough descriptors; what was opened is in `streams` and is the caller's to close. */
bool streams_open(struct streams *streams, const struct command *command);
void streams_close_theirs(const struct streams *streams);

bool pipe_open(int *ours, int *theirs, bool we_read);
void terminal_resize(int terminal, uint16_t rows, uint16_t columns);

#endif
