/* The table of open channels, and how requests become answers. */
#ifndef INSULA_CHANNELS_H
#define INSULA_CHANNELS_H

#include "wire/wire.h"

/* An OPEN: its channel and its fields, which are known to be well formed. */
struct request {
    uint32_t channel;
    const uint8_t *fields;
    size_t length;
};

/* A verb either answers at once, or opens a channel. `features` of the hello are these names. */
struct verb {
    const char *name;
    void (*run)(const struct request *request);
};
extern const struct verb verbs[]; /* ends with a NULL name */

/* What lives on after its OPEN; the first member of whatever a verb keeps. Functions that are NULL are not called. */
struct channel {
    uint32_t id;
    const struct channel_kind *kind;
    struct wire_grant grant;      /* stream 0: what the host may still send */
    struct wire_window window[3]; /* streams 1 and 2: what we may still send */
};

struct channel_kind {
    void (*data)(struct channel *channel, const uint8_t *bytes, uint32_t length);
    void (*eof)(struct channel *channel);
    void (*credit)(struct channel *channel, int stream);
    void (*signal)(struct channel *channel, const char *name);
    void (*resize)(struct channel *channel, uint16_t rows, uint16_t columns);
    void (*settle)(struct channel *channel); /* while the link has room: send the RESULT if it is due */
    void (*hang_up)(struct channel *channel); /* give up; the channel is out of the table already, free it */
};

/* Enter it in the table. The number of the request is free and there is a place: both were checked. */
void channel_open(struct channel *channel, const struct request *request, const struct channel_kind *kind);

/* Send the last frame and take the channel out of the table; what the verb kept is the caller's to free. */
void channel_result(struct channel *channel, const struct wire_writer *fields);

/* Tell the host that bytes of stream 0 were consumed. */
void channel_consumed(struct channel *channel, uint32_t bytes);

/* Let the host send as much ahead on stream 0 as the protocol allows. */
void channel_widen(struct channel *channel);

/* RESULTs without a channel of their own. */
void answer(const struct request *request, const struct wire_writer *fields);
void answer_done(const struct request *request);
void answer_error(const struct request *request, const char *error, const char *message);
void answer_errno(const struct request *request, int error, const char *path);

/* The fields of a failure: `error`, and where they are known `path` and `message`. */
void put_failure(struct wire_writer *fields, int error, const char *path);

/* Listener of the link. */
void channels_frame(const struct wire_frame *frame);
void channels_hang_up(void);

/* Hang all channels up within a life: whoever waits for one is told `error`. */
void channels_cut(const char *error);
bool channels_settle(void); /* false: not all had their turn, for want of room */

#endif
