/* Local clients: connections to keeper.sock, their frames and channels. */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void clients_init(struct keeper *keeper)
{
    for (int i = 0; i < CLIENTS_MAX; i++)
        keeper->clients[i].fd = -1;
}

bool reader_map(struct wire_reader *reader)
{
    if (reader->buffer)
        return true;
    size_t size = READER_SIZE;
    void *buffer = memory_take(&size);
    if (!buffer)
        return false;
    wire_reader_init(reader, buffer, size);
    return true;
}

void reader_rest(struct wire_reader *reader)
{
    if (reader->buffer && reader->begin == reader->end) {
        memory_give(reader->buffer, reader->size);
        *reader = (struct wire_reader){ 0 };
    }
}

/* ---- channels ---- */

static struct channel *channel_new(struct keeper *keeper, struct client *client, uint32_t theirs)
{
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++) {
        struct channel *channel = &keeper->channels[i];
        if (channel->kind != CHANNEL_FREE)
            continue;
        *channel = (struct channel){ .kind = CHANNEL_NEW, .client = client, .theirs = theirs };
        wire_window_init(&channel->up);
        for (int stream = 0; stream < 3; stream++)
            wire_window_init(&channel->down[stream]);
        wire_grant_init(&channel->keys);
        return channel;
    }
    return NULL;
}

static struct channel *channel_of_client(struct keeper *keeper, const struct client *client, uint32_t theirs)
{
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++) {
        struct channel *channel = &keeper->channels[i];
        if (channel->kind != CHANNEL_FREE && channel->client == client && channel->theirs == theirs)
            return channel;
    }
    return NULL;
}

struct channel *channel_of_agent(struct keeper *keeper, uint32_t ours)
{
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++)
        if (keeper->channels[i].kind == CHANNEL_AGENT && keeper->channels[i].ours == ours)
            return &keeper->channels[i];
    return NULL;
}

void channel_free(struct channel *channel)
{
    queue_clear(&channel->held);
    *channel = (struct channel){ 0 };
}

void channel_answer_fields(struct channel *channel, const struct wire_writer *fields)
{
    client_send(channel->client, WIRE_RESULT, 0, channel->theirs, fields->buffer, fields->length);
    channel_free(channel);
}

void channel_answer(struct channel *channel, const char *error, const char *reason)
{
    uint8_t bytes[256];
    struct wire_writer fields;
    wire_writer_init(&fields, bytes, sizeof bytes);
    if (error)
        wire_put_text(&fields, TAG_ERROR, error);
    if (reason && *reason)
        wire_put_text(&fields, TAG_REASON, reason);
    channel_answer_fields(channel, &fields);
}

/* ---- connections ---- */

static int accept_next(struct keeper *keeper)
{
    int fd = accept4(keeper->fd.listen, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
        keeper->accept_after = now_ms() + 1000;
    return fd;
}

/* One more than there is room for: told so at once, on the channel of the link itself, and hung up. */
static bool turn_away(struct keeper *keeper)
{
    struct client stranger = { .fd = accept_next(keeper) };
    struct channel link = { .client = &stranger };
    if (stranger.fd < 0)
        return false;
    channel_answer(&link, "EBUSY", NULL);
    queue_flush(&stranger.out, stranger.fd);
    queue_clear(&stranger.out);
    close(stranger.fd);
    return true;
}

void client_accept(struct keeper *keeper)
{
    for (int i = 0; i < CLIENTS_MAX; i++) {
        if (keeper->clients[i].fd >= 0)
            continue;
        int fd = accept_next(keeper);
        if (fd < 0)
            return;
        widen_socket(fd);
        keeper->clients[i] = (struct client){ .fd = fd };
    }
    for (int i = 0; i < CLIENTS_MAX && turn_away(keeper); i++)
        ; /* not without end: those inside want to be served, too */
}

void client_drop(struct keeper *keeper, struct client *client)
{
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++) {
        struct channel *channel = &keeper->channels[i];
        if (channel->kind == CHANNEL_FREE || channel->client != client)
            continue;
        if (channel->kind == CHANNEL_AGENT)
            agent_hang_up(keeper, channel);
        verb_dropped(keeper, channel);
        channel_free(channel);
    }
    agent_gate_moved(keeper);
    queue_clear(&client->out);
    client->reader.begin = client->reader.end;
    reader_rest(&client->reader);
    close(client->fd);
    *client = (struct client){ .fd = -1 };
}

void client_send(struct client *client, uint8_t type, uint8_t stream, uint32_t channel, const void *payload, size_t length)
{
    uint8_t header[WIRE_HEADER];
    wire_header(header, type, stream, channel, (uint32_t)length);
    if (!queue_pass(&client->out, client->fd, header, sizeof header, payload, length))
        client->gone = true; /* half a frame must never be followed by another */
}

static size_t waiting_for(const struct keeper *keeper, const struct client *client)
{
    size_t bytes = client->out.size;
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++)
        if (keeper->channels[i].client == client)
            bytes += keeper->channels[i].held.size;
    return bytes;
}

void clients_limit_memory(struct keeper *keeper)
{
    while (queue_total > QUEUES_MAX) {
        struct client *worst = NULL;
        size_t most = 0;
        for (int i = 0; i < CLIENTS_MAX; i++) {
            size_t bytes = keeper->clients[i].fd >= 0 ? waiting_for(keeper, &keeper->clients[i]) : 0;
            if (bytes > most) {
                most = bytes;
                worst = &keeper->clients[i];
            }
        }
        if (!worst)
            return;
        client_drop(keeper, worst);
    }
}

/* ---- frames ---- */

static void opened(struct keeper *keeper, struct client *client, const struct wire_frame *frame)
{
    if (frame->channel == 0 || channel_of_client(keeper, client, frame->channel)) {
        client->gone = true;
        return;
    }
    struct channel refused = { .client = client, .theirs = frame->channel };
    struct channel *channel = channel_new(keeper, client, frame->channel);
    if (!channel)
        channel_answer(&refused, "EAGAIN", NULL);
    else if (!wire_fields_valid(frame->payload, frame->length))
        channel_answer(channel, "EINVAL", NULL);
    else if (verb_is_ours(frame))
        verb_open(keeper, channel, frame);
    else
        agent_open(keeper, channel, frame);
}

/* A frame stays where it is while what it is for takes no more. False: it can be taken now. */
static bool must_wait(struct keeper *keeper, struct client *client, const struct wire_frame *frame)
{
    struct channel *channel = channel_of_client(keeper, client, frame->channel);
    bool for_agent = frame->type == WIRE_OPEN ? !verb_is_ours(frame) : channel && channel->kind == CHANNEL_AGENT;
    bool for_console = channel && channel->kind == CHANNEL_CONSOLE && frame->type == WIRE_DATA;
    client->waits_for = &client->out;
    client->until = CLIENT_QUEUE_HIGH;
    if (!client_may_go_on(client))
        return true;
    if (!for_agent && !for_console)
        return false;
    client->waits_for = for_agent ? &keeper->agent.out : &keeper->console_out;
    client->until = for_agent ? AGENT_QUEUE_HIGH : CONSOLE_QUEUE_HIGH;
    return !client_may_go_on(client);
}

bool client_may_go_on(const struct client *client)
{
    return client->waits_for && queue_length(client->waits_for) <= client->until;
}

static void handle(struct keeper *keeper, struct client *client, const struct wire_frame *frame)
{
    if (frame->type == WIRE_OPEN) {
        opened(keeper, client, frame);
        return;
    }
    struct channel *channel = channel_of_client(keeper, client, frame->channel);
    if (!channel)
        return;
    if (channel->kind == CHANNEL_AGENT || channel->kind == CHANNEL_PENDING)
        agent_from_client(keeper, channel, frame);
    else
        verb_frame(keeper, channel, frame);
}

void client_process(struct keeper *keeper, struct client *client)
{
    struct wire_frame frame;
    enum wire_got got = WIRE_MORE;
    client->waits_for = NULL;
    while (client->reader.buffer && !client->gone) {
        struct wire_reader before = client->reader;
        got = wire_reader_next(&client->reader, &frame);
        if (got != WIRE_GOT)
            break;
        if (must_wait(keeper, client, &frame)) {
            client->reader = before;
            return;
        }
        client->waits_for = NULL;
        handle(keeper, client, &frame);
    }
    if (got == WIRE_MALFORMED)
        client->gone = true;
    reader_rest(&client->reader);
}

void client_readable(struct keeper *keeper, struct client *client)
{
    uint8_t *at;
    if (!reader_map(&client->reader))
        return;
    size_t room = wire_reader_space(&client->reader, &at);
    ssize_t got = recv(client->fd, at, room, MSG_DONTWAIT);
    if (got > 0) {
        wire_reader_filled(&client->reader, (size_t)got);
        client_process(keeper, client);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        client->gone = true;
    } else {
        reader_rest(&client->reader);
    }
}
