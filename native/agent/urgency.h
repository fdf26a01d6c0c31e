/* Somebody waits for this guest to come to itself. */
#ifndef INSULA_URGENCY_H
#define INSULA_URGENCY_H

enum {
    URGENT_NOW = 2000,    /* milliseconds, from when somebody asks */
    URGENT_SOON = 60000,  /* from when a state is about to be taken: those who go on from it begin so */
};

/* For so long the agent goes before all ordinary processes: when a guest goes on from a state, much wakes up in it at once. What
 * the agent starts is ordinary. The last call counts. */
void urgency_begin(unsigned milliseconds);

#endif
