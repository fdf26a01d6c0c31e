/* identity: who the guest is, as the host says. */
#ifndef INSULA_IDENTITY_H
#define INSULA_IDENTITY_H

#include <limits.h>

#include "channels.h"

enum identity_part { IDENTITY_MACHINE_ID, IDENTITY_HOSTNAME, IDENTITY_HOST_KEYS, IDENTITY_NETWORK, IDENTITY_PARTS };

/* What became of it: the first error, and what it was about; and for each part whether it was asked for and its first error. */
struct outcome {
    int error;
    char path[PATH_MAX];
    enum identity_part part;
    bool tried[IDENTITY_PARTS];
    int errors[IDENTITY_PARTS];
};

/* Do what the fields of the request say, as far as it goes. Fields of other kinds are ignored. */
void identity_apply(const struct request *request, struct outcome *outcome);

/* Look at what that looks at: who has been asked once for a file that is not there knows, and need not search a disk's folders. */
void identity_look_ahead(void);

void identity_run(const struct request *request);
void addresses_run(const struct request *request);

#endif
