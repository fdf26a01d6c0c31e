/* Files written for somebody who waits are flushed when nobody does. */
#ifndef INSULA_FLUSH_H
#define INSULA_FLUSH_H

/* In a moment, in a process of its own. Asked again meanwhile, it happens once. */
void flush_soon(void);

#endif
