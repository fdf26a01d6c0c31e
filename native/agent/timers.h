/* systemd's timers that a jump of the clock would make late, all at once. */
#ifndef INSULA_TIMERS_H
#define INSULA_TIMERS_H

#include <stdbool.h>
#include <stdint.h>

/* Whether there is a systemd. */
bool timers_exist(void);

/* Ask systemd now when its timers elapse, so that it need not be asked within the next minute: a state of the guest is about to be
 * taken, and those who go on from it are waited for. 0 or an errno. */
int timers_look_ahead(void);

/* Stop the timers that would elapse before `now` (nanoseconds since 1970), the clock being about to be set to that. 0 or an
 * errno. */
int timers_stop_late(uint64_t now);

/* The clock is set: start them again, as if each had just elapsed. Nobody waits for that, so it may be done later, in a process of
 * its own; this one then forgets them. */
void timers_start_again(void);
void timers_forget(void);

#endif
