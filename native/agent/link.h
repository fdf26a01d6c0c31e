/* The link: the port, the frames that come and go on it, and the lives marked by SYNC.
 *
 * What goes out gathers in one buffer. `link_room` says whether a whole frame and some small ones fit; whoever wants to
 * send a large frame asks first, and frames from the host are taken only while there is room for their answers. So
 * nothing grows and nothing waits, whatever the host does.
 */
#ifndef INSULA_LINK_H
#define INSULA_LINK_H

#include "wire/wire.h"

/* Called for every frame, and when a new life began. */
struct link_listener {
    void (*frame)(const struct wire_frame *frame);
    void (*new_life)(void);
};

/* `port`: a path, `fd:N`, or NULL to look for the virtio-serial port named org.insula.agent. */
void link_init(const char *port, const struct link_listener *listener);

bool link_room(void);

/* Where the payload of a DATA frame may be put, WIRE_PAYLOAD_MAX bytes of room. Only while link_room(). */
uint8_t *link_payload(void);
void link_commit(uint8_t type, uint8_t stream, uint32_t channel, uint32_t length);

/* A small frame: credit, end of file, or (while link_room) a result. */
void link_send(uint8_t type, uint8_t stream, uint32_t channel, const void *payload, uint32_t length);

/* Before each wait: take the frames that are here (false: some are left, for want of room), send what can be sent, and
 * see to what is watched. */
bool link_take(void);
void link_flush(void);
void link_watch(void);

/* Write out everything, waiting at most so long: used before the guest goes down. */
void link_drain(int milliseconds);

#endif
