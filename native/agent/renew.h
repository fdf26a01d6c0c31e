/* renew: all that a guest must do that goes on from a state, in one request. */
#ifndef INSULA_RENEW_H
#define INSULA_RENEW_H

#include "channels.h"

void renew_run(const struct request *request);

/* The host speaks with this guest: sooner or later it may be told to become somebody else. */
void renew_expect(void);

/* A state is about to be taken that others will go on from. */
void prepare_run(const struct request *request);

/* Parts of it that are verbs of their own, too. 0 or an errno. */
int clock_set(uint64_t now);
int generator_reseed(const uint8_t *bytes, size_t length);

#endif
