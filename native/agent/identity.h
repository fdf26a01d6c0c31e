/* identity: what two forks of one machine must not share is made new. addresses: what the links have. */
#ifndef INSULA_IDENTITY_H
#define INSULA_IDENTITY_H

#include "channels.h"

void identity_run(const struct request *request);
void addresses_run(const struct request *request);

#endif
