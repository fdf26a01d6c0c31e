/* Connections of a former life: whoever is at their other end speaks with somebody else now. */
#ifndef INSULA_SEVER_H
#define INSULA_SEVER_H

/* Destroy all connections to other machines, in every network namespace there is; programs read that they were aborted.
 * What connects two programs of this machine stays. 0 or the first errno. */
int sever_connections(void);

#endif
