/* Finding and opening the port to the host. */
#ifndef INSULA_PORT_H
#define INSULA_PORT_H

/* A non-blocking descriptor, or -1 while there is no such port. `name` as for link_init. */
int port_open(const char *name);

#endif
