/* The agent's leg: SYNC, lives, and frames passed both ways with channel numbers exchanged and credit enforced. */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BULK = 16384 }; /* bytes at once that nobody types */
enum { FIRST_PAUSE = 1000, LONGEST_PAUSE = 8000, WAIT_LONGEST = 1000000000 };

static void agent_send(struct keeper *keeper, const struct wire_frame *frame, uint32_t channel)
{
    uint8_t header[WIRE_HEADER];
    wire_header(header, frame->type, frame->stream, channel, frame->length);
    if (!queue_pass(&keeper->agent.out, keeper->fd.agent, header, sizeof header, frame->payload, frame->length))
        keeper->agent.torn = true; /* no memory */
}

/* ---- who is let in ---- */

/* The client whose hold keeps all others from the agent; NULL: nobody's does. */
static const struct client *gatekeeper(const struct keeper *keeper)
{
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++)
        if (keeper->channels[i].kind == CHANNEL_HOLD && keeper->channels[i].gate)
            return keeper->channels[i].client;
    return NULL;
}

bool agent_has_gate(const struct keeper *keeper)
{
    return keeper->agent.shut || gatekeeper(keeper); /* one that is barred may be kept anew */
}

bool agent_answers(const struct keeper *keeper, const struct client *client)
{
    const struct client *holder = gatekeeper(keeper);
    bool kept = keeper->agent.shut || keeper->agent.barred || holder;
    return keeper->agent.state == AGENT_LIVE && (!kept || (holder && holder == client));
}

/* Pass on what was waiting to be let in. */
static void let_in(struct keeper *keeper)
{
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++) {
        struct channel *channel = &keeper->channels[i];
        if (channel->kind != CHANNEL_PENDING || !agent_answers(keeper, channel->client))
            continue;
        channel->kind = CHANNEL_AGENT;
        channel->deadline = 0;
        if (!queue_add(&keeper->agent.out, channel->held.bytes + channel->held.begin, queue_length(&channel->held)))
            channel_answer(channel, "ENOMEM", NULL);
        queue_clear(&channel->held);
    }
    verbs_agent_answers(keeper);
}

/* Tell when the agent begins to answer everybody, and when it does no more. */
static void announce(struct keeper *keeper)
{
    bool answers = agent_answers(keeper, NULL);
    if (answers == keeper->agent.announced)
        return;
    keeper->agent.announced = answers;
    journal_add(keeper, "AGENT", answers ? "{\"answers\": true}" : "{\"answers\": false}", answers ? 17 : 18);
    write_status(keeper);
}

void agent_gate_moved(struct keeper *keeper)
{
    announce(keeper);
    let_in(keeper);
}

/* ---- lives ---- */

static void end_life(struct keeper *keeper)
{
    struct agent *agent = &keeper->agent;
    agent->state = AGENT_CLOSED;
    agent->hello_length = 0;
    agent->torn = false;
    queue_clear(&agent->out);
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++)
        if (keeper->channels[i].kind == CHANNEL_AGENT)
            channel_answer(&keeper->channels[i], "ELIFE", NULL);
    announce(keeper);
}

/* Each SYNC has a nonce of its own, also a repeated one: an answer to an earlier one that comes late is then not taken for
 * the beginning of a life which the later SYNC ends at once. */
static void send_sync(struct keeper *keeper, int64_t now)
{
    static uint8_t zeros[WIRE_FRAME_MAX]; /* not const: they need no room in the file */
    struct agent *agent = &keeper->agent;
    struct wire_sync sync = { .lowest = WIRE_VERSION, .highest = WIRE_VERSION };
    uint8_t bytes[WIRE_SYNC];
    agent->next_sync = now + agent->pause;
    agent->pause = agent->pause * 2 < LONGEST_PAUSE ? agent->pause * 2 : LONGEST_PAUSE;
    if (queue_length(&agent->out) > 0 || getrandom(sync.nonce, WIRE_NONCE, GRND_NONBLOCK) != WIRE_NONCE)
        return; /* the last one has not even left */
    memcpy(agent->nonce, sync.nonce, WIRE_NONCE);
    wire_write_sync(bytes, &sync);
    if (!queue_add(&agent->out, zeros, sizeof zeros) || !queue_add(&agent->out, bytes, sizeof bytes))
        queue_clear(&agent->out);
}

static void seek_agent(struct keeper *keeper)
{
    int64_t now = now_ms();
    bool recent = keeper->agent.next_sync > now; /* whatever the guest does, it gets one SYNC a second at most */
    end_life(keeper);
    keeper->agent.state = AGENT_SEEKING;
    keeper->agent.pause = FIRST_PAUSE;
    if (!recent)
        send_sync(keeper, now);
    else if (keeper->agent.next_sync > now + FIRST_PAUSE)
        keeper->agent.next_sync = now + FIRST_PAUSE;
}

void agent_port_opened(struct keeper *keeper)
{
    if (keeper->fd.agent >= 0)
        seek_agent(keeper);
}

void agent_port_closed(struct keeper *keeper)
{
    end_life(keeper);
    keeper->agent.reader.begin = keeper->agent.reader.end;
    reader_rest(&keeper->agent.reader);
    keeper->agent.next_sync = 0; /* who opens the port next is greeted at once */
}

void agent_tick(struct keeper *keeper, int64_t now)
{
    if (keeper->agent.torn)
        agent_port_opened(keeper);
    if (keeper->agent.state == AGENT_SEEKING && now >= keeper->agent.next_sync && keeper->state != STATE_PAUSED)
        send_sync(keeper, now);
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++) {
        struct channel *channel = &keeper->channels[i];
        if (channel->kind == CHANNEL_FREE || channel->deadline == 0 || channel->deadline > now)
            continue;
        channel_answer(channel, channel->kind == CHANNEL_PENDING ? "EAGENT" : "ETIMEDOUT", NULL);
    }
}

static void begin_life(struct keeper *keeper, const struct wire_answer *answer)
{
    struct agent *agent = &keeper->agent;
    if (answer->version != WIRE_VERSION || !wire_fields_valid(answer->fields, answer->length)) {
        agent->state = AGENT_REFUSED; /* until it opens the port anew */
        journal_add(keeper, "AGENT_REFUSED", "", 0);
        return;
    }
    agent->state = AGENT_LIVE;
    memcpy(agent->hello, answer->fields, answer->length);
    agent->hello_length = answer->length;
    announce(keeper);
    let_in(keeper);
}

/* ---- from the agent ---- */

static void cut(struct keeper *keeper, struct channel *channel)
{
    if (channel->kind == CHANNEL_AGENT)
        agent_hang_up(keeper, channel);
    channel_answer(channel, "EPROTO", NULL);
}

static void data_from_agent(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame)
{
    bool wrong = frame->stream < WIRE_STDOUT || frame->stream > WIRE_STDERR || channel->ended & 1 << frame->stream;
    if (wrong || frame->length == 0 || frame->length > channel->down[frame->stream].left) {
        cut(keeper, channel);
        return;
    }
    channel->down[frame->stream].left -= frame->length;
    client_send(channel->client, WIRE_DATA, frame->stream, channel->theirs, frame->payload, frame->length);
}

/* The credit that may be passed on, so that no window ever exceeds its limit. */
static uint32_t allow(struct wire_window *window, const struct wire_frame *frame)
{
    uint32_t before = window->left;
    if (frame->length == 4)
        wire_window_add(window, wire_get_u32(frame->payload));
    return window->left - before;
}

static void from_agent(struct keeper *keeper, const struct wire_frame *frame)
{
    struct channel *channel = channel_of_agent(keeper, frame->channel);
    uint8_t credit[4];
    uint32_t more;
    if (!channel)
        return;
    switch (frame->type) {
    case WIRE_DATA:
        data_from_agent(keeper, channel, frame);
        return;
    case WIRE_EOF:
        if (frame->stream != WIRE_STDOUT && frame->stream != WIRE_STDERR)
            return;
        if (!(channel->ended & 1 << frame->stream))
            client_send(channel->client, WIRE_EOF, frame->stream, channel->theirs, NULL, 0);
        channel->ended |= (uint8_t)(1 << frame->stream);
        return;
    case WIRE_CREDIT:
        more = frame->stream == WIRE_STDIN ? allow(&channel->up, frame) : 0;
        wire_set_u32(credit, more);
        if (more > 0)
            client_send(channel->client, WIRE_CREDIT, WIRE_STDIN, channel->theirs, credit, sizeof credit);
        return;
    case WIRE_RESULT:
        client_send(channel->client, WIRE_RESULT, 0, channel->theirs, frame->payload, frame->length);
        channel_free(channel);
        return;
    default:
        return;
    }
}

static void process(struct keeper *keeper)
{
    struct agent *agent = &keeper->agent;
    struct wire_frame frame;
    struct wire_answer answer;
    for (;;) {
        if (agent->state == AGENT_LIVE) {
            enum wire_got got = wire_reader_next(&agent->reader, &frame);
            if (got == WIRE_GOT)
                from_agent(keeper, &frame);
            else if (got == WIRE_MALFORMED)
                seek_agent(keeper);
            else
                return;
        } else if (agent->state == AGENT_SEEKING) {
            if (wire_reader_seek_answer(&agent->reader, agent->nonce, &answer) != WIRE_GOT)
                return;
            begin_life(keeper, &answer);
        } else {
            agent->reader.begin = agent->reader.end;
            return;
        }
    }
}

void agent_readable(struct keeper *keeper)
{
    struct agent *agent = &keeper->agent;
    uint8_t *at;
    if (!reader_map(&agent->reader))
        return;
    size_t room = wire_reader_space(&agent->reader, &at);
    ssize_t got = recv(keeper->fd.agent, at, room, MSG_DONTWAIT);
    if (got > 0) {
        agent->gathers = got >= BULK && (size_t)got < room;
        wire_reader_filled(&agent->reader, (size_t)got);
        process(keeper);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        close_fd(&keeper->fd.agent); /* QEMU is ending; when it has, all who wait are told why */
        agent->state = AGENT_CLOSED;
        agent->hello_length = 0;
        queue_clear(&agent->out);
    }
    reader_rest(&agent->reader);
}

/* ---- from clients ---- */

void agent_hang_up(struct keeper *keeper, struct channel *channel)
{
    struct wire_frame frame = { .type = WIRE_CLOSE };
    agent_send(keeper, &frame, channel->ours);
}

/* Pass a frame on, or keep it until there is somebody to pass it to. */
static void pass_on(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame)
{
    uint8_t header[WIRE_HEADER];
    if (channel->kind == CHANNEL_AGENT) {
        agent_send(keeper, frame, channel->ours);
        return;
    }
    wire_header(header, frame->type, frame->stream, channel->ours, frame->length);
    if (queue_length(&channel->held) + frame->length > HELD_MAX || !queue_add(&channel->held, header, sizeof header)
        || !queue_add(&channel->held, frame->payload, frame->length))
        channel_answer(channel, "EPROTO", NULL);
}

/* Whether the guest is paused to stay so. Under a holder's resume it is paused for an instant, and a request may wait for that. */
static bool is_paused(const struct keeper *keeper)
{
    if (keeper->state != STATE_PAUSED)
        return false;
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++)
        if (keeper->channels[i].kind == CHANNEL_HOLD && keeper->channels[i].drop != DROP_QUIT)
            return false;
    return true;
}

void agent_open(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame)
{
    struct agent *agent = &keeper->agent;
    uint64_t wait = wire_find_u64(frame->payload, frame->length, TAG_WAIT_MS, 0);
    if (++agent->next_channel == 0)
        agent->next_channel = 1;
    channel->ours = agent->next_channel;
    channel->kind = agent_answers(keeper, channel->client) ? CHANNEL_AGENT : CHANNEL_PENDING;
    if (channel->kind == CHANNEL_PENDING)
        channel->deadline = now_ms() + (int64_t)(wait < WAIT_LONGEST ? wait : WAIT_LONGEST);
    if (keeper->ended)
        channel_answer(channel, "ENDED", keeper->reason);
    else if (wait == 0 && is_paused(keeper))
        channel_answer(channel, "EPAUSED", NULL);
    else if (channel->kind == CHANNEL_PENDING && wait == 0)
        channel_answer(channel, "EAGENT", NULL);
    else
        pass_on(keeper, channel, frame);
}

static bool data_fits(struct channel *channel, const struct wire_frame *frame)
{
    if (frame->stream != WIRE_STDIN || frame->length == 0 || channel->ended & 1 || frame->length > channel->up.left)
        return false;
    channel->up.left -= frame->length;
    return true;
}

void agent_from_client(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame)
{
    struct wire_frame changed = *frame;
    uint8_t credit[4];
    switch (frame->type) {
    case WIRE_DATA:
        if (data_fits(channel, frame))
            pass_on(keeper, channel, frame);
        else
            cut(keeper, channel);
        return;
    case WIRE_EOF:
        if (frame->stream == WIRE_STDIN && !(channel->ended & 1)) {
            channel->ended |= 1;
            pass_on(keeper, channel, frame);
        }
        return;
    case WIRE_CREDIT:
        if (frame->stream != WIRE_STDOUT && frame->stream != WIRE_STDERR)
            return;
        wire_set_u32(credit, allow(&channel->down[frame->stream], frame));
        changed.payload = credit;
        changed.length = sizeof credit;
        if (wire_get_u32(credit) > 0)
            pass_on(keeper, channel, &changed);
        return;
    case WIRE_SIGNAL:
    case WIRE_RESIZE:
        pass_on(keeper, channel, frame);
        return;
    case WIRE_CLOSE:
        if (channel->kind == CHANNEL_AGENT)
            agent_hang_up(keeper, channel);
        channel_free(channel);
        return;
    default:
        return;
    }
}
