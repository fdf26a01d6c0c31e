/* The SSH server's host keys. */
#ifndef INSULA_HOSTKEYS_H
#define INSULA_HOSTKEYS_H

#include "wire/wire.h"

/* Is there an SSH server, or are there keys of one? */
bool host_keys_wanted(void);

/* Remove all keys. Names of the private ones, one a line, are put to `removed`. */
void host_keys_remove(char *removed, size_t size);

/* Set one: `file name NUL content`, a plain name only. 0 or an errno. */
int host_key_set(const struct wire_field *field);

/* Let the guest's own ssh-keygen make one of the type in its name (`ssh_host_ed25519_key`). 0 or an errno. */
int host_key_make(const char *name);

/* A server that runs keeps the keys it began with until it is told. */
void host_keys_tell_server(void);

#endif
