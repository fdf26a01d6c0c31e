#include "channels.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "link.h"
#include "names.h"

static struct channel *table[WIRE_CHANNELS_MAX];
static size_t count;

static struct channel *find(uint32_t id)
{
    for (size_t i = 0; i < count; i++)
        if (table[i]->id == id)
            return table[i];
    return NULL;
}

static void forget(struct channel *channel)
{
    for (size_t i = 0; i < count; i++)
        if (table[i] == channel) {
            table[i] = table[--count];
            return;
        }
}

void channel_open(struct channel *channel, const struct request *request, const struct channel_kind *kind)
{
    channel->id = request->channel;
    channel->kind = kind;
    wire_grant_init(&channel->grant);
    for (int stream = 0; stream < 3; stream++)
        wire_window_init(&channel->window[stream]);
    table[count++] = channel;
}

void channel_result(struct channel *channel, const struct wire_writer *fields)
{
    link_send(WIRE_RESULT, 0, channel->id, fields->buffer, (uint32_t)fields->length);
    forget(channel);
}

static void give_credit(const struct channel *channel, uint32_t credit)
{
    uint8_t payload[4];
    if (credit == 0)
        return;
    wire_set_u32(payload, credit);
    link_send(WIRE_CREDIT, WIRE_STDIN, channel->id, payload, sizeof payload);
}

void channel_consumed(struct channel *channel, uint32_t bytes)
{
    give_credit(channel, wire_grant_consumed(&channel->grant, bytes));
}

void channel_widen(struct channel *channel)
{
    give_credit(channel, wire_grant_widen(&channel->grant));
}

/* ---- answers ---- */

void answer(const struct request *request, const struct wire_writer *fields)
{
    link_send(WIRE_RESULT, 0, request->channel, fields->buffer, (uint32_t)fields->length);
}

void answer_done(const struct request *request)
{
    link_send(WIRE_RESULT, 0, request->channel, NULL, 0);
}

void answer_error(const struct request *request, const char *error, const char *message)
{
    struct wire_writer fields;
    uint8_t buffer[512];
    wire_writer_init(&fields, buffer, sizeof buffer);
    wire_put_text(&fields, TAG_ERROR, error);
    if (message)
        wire_put_text(&fields, TAG_MESSAGE, message);
    answer(request, &fields);
}

void put_failure(struct wire_writer *fields, int error, const char *path)
{
    wire_put_text(fields, TAG_ERROR, error_name(error));
    wire_put_text(fields, TAG_MESSAGE, strerror(error));
    if (path && path[0])
        wire_put_text(fields, TAG_PATH, path);
}

void answer_errno(const struct request *request, int error, const char *path)
{
    struct wire_writer fields;
    uint8_t buffer[8192];
    wire_writer_init(&fields, buffer, sizeof buffer);
    put_failure(&fields, error, path);
    answer(request, &fields);
}

/* ---- frames ---- */

static void open_channel(const struct wire_frame *frame)
{
    struct request request = { frame->channel, frame->payload, frame->length };
    char name[32];
    if (frame->channel == 0 || find(frame->channel))
        return; /* 0 is the link itself, and no number is used twice: what this host says cannot be followed */
    if (!wire_fields_valid(frame->payload, frame->length)) {
        answer_error(&request, "EPROTO", "the fields of the request are malformed");
        return;
    }
    if (count == WIRE_CHANNELS_MAX) {
        answer_error(&request, "EAGAIN", "too many channels are open");
        return;
    }
    wire_find_text(request.fields, request.length, TAG_VERB, name, sizeof name);
    for (size_t i = 0; verbs[i].name; i++)
        if (strcmp(verbs[i].name, name) == 0) {
            verbs[i].run(&request);
            return;
        }
    answer_error(&request, "ENOSYS", "this agent does not know the verb");
}

static void overrun(struct channel *channel)
{
    struct request request = { .channel = channel->id };
    forget(channel);
    channel->kind->hang_up(channel);
    answer_error(&request, "EPROTO", "more was sent than the window allows");
}

static void data(struct channel *channel, const struct wire_frame *frame)
{
    if (frame->stream != WIRE_STDIN || frame->length == 0)
        return;
    if (!wire_grant_take(&channel->grant, frame->length))
        overrun(channel);
    else if (channel->kind->data)
        channel->kind->data(channel, frame->payload, frame->length);
    else
        channel_consumed(channel, frame->length);
}

static void credit(struct channel *channel, const struct wire_frame *frame)
{
    if (frame->length != 4 || frame->stream == WIRE_STDIN || frame->stream > WIRE_STDERR)
        return;
    wire_window_add(&channel->window[frame->stream], wire_get_u32(frame->payload));
    if (channel->kind->credit)
        channel->kind->credit(channel, frame->stream);
}

static void signal_frame(struct channel *channel, const struct wire_frame *frame)
{
    struct wire_field field = { .length = frame->length, .bytes = frame->payload };
    char name[16];
    if (channel->kind->signal && wire_field_text(&field, name, sizeof name))
        channel->kind->signal(channel, name);
}

void channels_frame(const struct wire_frame *frame)
{
    if (frame->type == WIRE_OPEN) {
        open_channel(frame);
        return;
    }
    struct channel *channel = find(frame->channel);
    if (!channel)
        return;
    switch (frame->type) {
    case WIRE_DATA:
        data(channel, frame);
        break;
    case WIRE_EOF:
        if (frame->stream == WIRE_STDIN && channel->kind->eof)
            channel->kind->eof(channel);
        break;
    case WIRE_CREDIT:
        credit(channel, frame);
        break;
    case WIRE_SIGNAL:
        signal_frame(channel, frame);
        break;
    case WIRE_RESIZE:
        if (frame->length == 4 && channel->kind->resize)
            channel->kind->resize(channel, wire_get_u16(frame->payload), wire_get_u16(frame->payload + 2));
        break;
    case WIRE_CLOSE:
        forget(channel);
        channel->kind->hang_up(channel);
        break;
    default: /* of a later version */
        break;
    }
}

void channels_hang_up(void)
{
    while (count > 0) {
        struct channel *channel = table[--count];
        channel->kind->hang_up(channel);
    }
}

void channels_cut(const char *error)
{
    while (count > 0) {
        struct channel *channel = table[--count];
        struct request request = { .channel = channel->id };
        channel->kind->hang_up(channel);
        answer_error(&request, error, NULL);
    }
}

bool channels_settle(void)
{
    for (size_t i = count; i-- > 0;) { /* backwards: a channel that ends gives its place to one that had its turn */
        if (!link_room())
            return false;
        if (table[i]->kind->settle)
            table[i]->kind->settle(table[i]);
    }
    return true;
}
