/* The verbs the keeper answers itself; docs/wire.md lists them. */
#define _GNU_SOURCE
#include "keeper.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char PREFIX[] = "keeper.";

bool verb_is_ours(const struct wire_frame *open)
{
    struct wire_field verb;
    return wire_find(open->payload, open->length, TAG_VERB, &verb) && verb.length >= sizeof PREFIX - 1
        && memcmp(verb.bytes, PREFIX, sizeof PREFIX - 1) == 0;
}

/* ---- status and wait ---- */

void answer_status(struct keeper *keeper, struct channel *channel)
{
    uint8_t bytes[256 + WIRE_HELLO_MAX];
    struct wire_writer fields;
    struct wire_cursor cursor;
    struct wire_field field;
    wire_writer_init(&fields, bytes, sizeof bytes);
    wire_put_text(&fields, TAG_STATE, state_word(keeper));
    if (keeper->reason[0])
        wire_put_text(&fields, TAG_REASON, keeper->reason);
    wire_cursor_init(&cursor, keeper->agent.hello, agent_answers(keeper, channel->client) ? keeper->agent.hello_length : 0);
    while (wire_field_next(&cursor, &field) == WIRE_GOT) /* the guest says what it likes, but not for us */
        if ((field.tag >= TAG_VERSION && field.tag <= TAG_OS) || field.tag == TAG_HOSTNAME)
            wire_put_bytes(&fields, field.tag, field.bytes, field.length);
    channel_answer_fields(channel, &fields);
}

void verbs_agent_answers(struct keeper *keeper)
{
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++)
        if (keeper->channels[i].kind == CHANNEL_WAIT_AGENT && agent_answers(keeper, keeper->channels[i].client))
            answer_status(keeper, &keeper->channels[i]);
}

void verbs_guest_reset(struct keeper *keeper)
{
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++) {
        struct channel *channel = &keeper->channels[i];
        if (channel->kind == CHANNEL_WAIT_AGENT && ++channel->resets == RESETS_MAX)
            channel_answer(channel, "ERESET", NULL);
    }
}

static void open_wait(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame)
{
    static const uint64_t longest = 1000000000;
    char until[16];
    uint64_t wait = wire_find_u64(frame->payload, frame->length, TAG_WAIT_MS, UINT64_MAX);
    wire_find_text(frame->payload, frame->length, TAG_UNTIL, until, sizeof until);
    bool agent = strcmp(until, "agent") == 0;
    if (!agent && strcmp(until, "end") != 0)
        channel_answer(channel, "EINVAL", NULL);
    else if (keeper->ended)
        channel_answer(channel, agent ? "ENDED" : NULL, keeper->reason);
    else if (agent && agent_answers(keeper, channel->client))
        answer_status(keeper, channel);
    else if (wait == 0)
        channel_answer(channel, "ETIMEDOUT", NULL);
    else {
        channel->kind = agent ? CHANNEL_WAIT_AGENT : CHANNEL_WAIT_END;
        channel->deadline = wait == UINT64_MAX ? 0 : now_ms() + (int64_t)(wait < longest ? wait : longest);
    }
}

/* ---- followers ---- */

static void open_follower(struct channel *channel, enum channel_kind kind, const struct ring *ring, const struct wire_frame *frame)
{
    channel->kind = kind;
    channel->follow = wire_find_u64(frame->payload, frame->length, TAG_FOLLOW, 0) != 0;
    channel->input = kind == CHANNEL_CONSOLE && wire_find_u64(frame->payload, frame->length, TAG_INPUT, 0) != 0;
    channel->position = ring_begin(ring);
    channel->until = ring->end;
}

/* What a follower reads in place of what it was too slow for. */
static size_t tell_lost(const struct channel *channel, uint64_t lost, char *to, size_t size)
{
    if (channel->kind == CHANNEL_CONSOLE)
        return (size_t)snprintf(to, size, "\r\n[%" PRIu64 " bytes of the console were lost here]\r\n", lost);
    return (size_t)snprintf(to, size, "{\"time\": %" PRId64 ", \"event\": \"LOST\", \"data\": {\"bytes\": %" PRIu64 "}}\n",
                            now_ns(), lost);
}

/* Skip what the ring has dropped since; events begin again at the start of a line. */
static size_t catch_up(struct channel *channel, const struct ring *ring, char *to, size_t size)
{
    uint64_t begin = ring_begin(ring), from = channel->position;
    char byte = 0;
    if (from >= begin)
        return 0;
    channel->position = begin;
    while (channel->kind == CHANNEL_EVENTS && byte != '\n' && channel->position < ring->end)
        ring_copy(ring, channel->position++, &byte, 1);
    return tell_lost(channel, channel->position - from, to, size);
}

bool verb_pump(struct keeper *keeper, struct channel *channel)
{
    const struct ring *ring = channel->kind == CHANNEL_CONSOLE ? &keeper->console : &keeper->events;
    struct wire_window *window = &channel->down[WIRE_STDOUT];
    char bytes[4096];
    bool all = !channel->follow || keeper->ended; /* answered once it has read what there is */
    bool sent = false;
    uint64_t until = channel->follow ? ring->end : channel->until;
    while (queue_length(&channel->client->out) < FOLLOWER_HIGH && window->left >= 128) {
        size_t room = window->left < sizeof bytes ? window->left : sizeof bytes;
        size_t length = catch_up(channel, ring, bytes, sizeof bytes);
        if (length == 0 && channel->position < until) {
            uint64_t left = until - channel->position;
            length = ring_copy(ring, channel->position, bytes, left < room ? (size_t)left : room);
            channel->position += length;
        }
        if (length == 0)
            break;
        window->left -= (uint32_t)length;
        client_send(channel->client, WIRE_DATA, WIRE_STDOUT, channel->theirs, bytes, length);
        sent = true;
    }
    if (all && channel->position >= until) {
        client_send(channel->client, WIRE_EOF, WIRE_STDOUT, channel->theirs, NULL, 0);
        channel_answer(channel, NULL, NULL);
    }
    return sent && channel->kind != CHANNEL_FREE;
}

/* ---- holding and ending ---- */

static const struct {
    const char *word, *command, *noted;
} DROPS[] = {
    [DROP_RESUME] = { "resume", "cont", "{\"then\": \"resume\"}" },
    [DROP_QUIT] = { "quit", "quit", "{\"then\": \"quit\"}" },
    [DROP_PAUSE] = { "pause", "stop", "{\"then\": \"pause\"}" },
};

static bool read_drop(const struct wire_frame *frame, enum on_drop *found)
{
    struct wire_field drop;
    if (!wire_find(frame->payload, frame->length, TAG_ON_DROP, &drop))
        return false;
    for (size_t i = 0; i < sizeof DROPS / sizeof *DROPS; i++)
        if (wire_field_is(&drop, DROPS[i].word)) {
            *found = (enum on_drop)i;
            return true;
        }
    return false;
}

static void open_hold(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame)
{
    bool gate = wire_find_u64(frame->payload, frame->length, TAG_GATE, 0) != 0;
    if (!read_drop(frame, &channel->drop)) {
        channel_answer(channel, "EINVAL", NULL);
    } else if (gate && agent_has_gate(keeper)) {
        channel_answer(channel, "EBUSY", NULL);
    } else {
        channel->kind = CHANNEL_HOLD;
        channel->gate = gate;
        if (gate)
            keeper->agent.barred = false;
        agent_gate_moved(keeper);
    }
}

void verb_dropped(struct keeper *keeper, struct channel *channel)
{
    if (channel->kind != CHANNEL_HOLD || keeper->ended)
        return;
    /* Nobody is let in in the moments until QEMU has ended, or before what was begun has been done. */
    keeper->agent.shut |= channel->gate && channel->drop == DROP_QUIT;
    keeper->agent.barred |= channel->gate && channel->drop == DROP_PAUSE;
    journal_add(keeper, "HOLDER_DIED", DROPS[channel->drop].noted, strlen(DROPS[channel->drop].noted));
    monitor_command(keeper, DROPS[channel->drop].command);
    if (channel->drop == DROP_QUIT && keeper->qemu.kill_at == 0)
        keeper->qemu.kill_at = now_ms() + 2000;
}

static void open_quit(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame)
{
    struct wire_field how;
    bool given = wire_find(frame->payload, frame->length, TAG_HOW, &how);
    bool kill = given && wire_field_is(&how, "kill");
    if (given && !kill && !wire_field_is(&how, "quit")) {
        channel_answer(channel, "EINVAL", NULL);
        return;
    }
    if (keeper->ended) {
        channel_answer(channel, NULL, keeper->reason);
        return;
    }
    channel->kind = CHANNEL_WAIT_END;
    if (kill)
        qemu_kill(keeper);
    else
        monitor_command(keeper, "quit");
}

/* ---- all of them ---- */

void verb_open(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame)
{
    char verb[32];
    wire_find_text(frame->payload, frame->length, TAG_VERB, verb, sizeof verb);
    const char *name = verb + sizeof PREFIX - 1;
    if (verb[0] == 0)
        channel_answer(channel, "ENOSYS", NULL);
    else if (strcmp(name, "status") == 0)
        answer_status(keeper, channel);
    else if (strcmp(name, "wait") == 0)
        open_wait(keeper, channel, frame);
    else if (strcmp(name, "console") == 0)
        open_follower(channel, CHANNEL_CONSOLE, &keeper->console, frame);
    else if (strcmp(name, "events") == 0)
        open_follower(channel, CHANNEL_EVENTS, &keeper->events, frame);
    else if (strcmp(name, "hold") == 0)
        open_hold(keeper, channel, frame);
    else if (strcmp(name, "quit") == 0)
        open_quit(keeper, channel, frame);
    else
        channel_answer(channel, "ENOSYS", NULL);
    if (keeper->ended && channel->kind == CHANNEL_HOLD)
        channel_answer(channel, "ENDED", keeper->reason);
}

static void type_keys(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame)
{
    uint8_t credit[4];
    if (!channel->input || frame->stream != WIRE_STDIN || !wire_grant_take(&channel->keys, frame->length)) {
        channel_answer(channel, "EPROTO", NULL);
        return;
    }
    if (keeper->fd.console >= 0)
        queue_add(&keeper->console_out, frame->payload, frame->length); /* without memory keys are lost */
    wire_set_u32(credit, wire_grant_consumed(&channel->keys, frame->length));
    if (wire_get_u32(credit) > 0)
        client_send(channel->client, WIRE_CREDIT, WIRE_STDIN, channel->theirs, credit, sizeof credit);
}

void verb_frame(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame)
{
    if (frame->type == WIRE_CLOSE) {
        bool gate = channel->gate;
        channel_free(channel);
        if (gate)
            agent_gate_moved(keeper);
    } else if (frame->type == WIRE_CREDIT && frame->stream == WIRE_STDOUT && frame->length == 4)
        wire_window_add(&channel->down[WIRE_STDOUT], wire_get_u32(frame->payload));
    else if (frame->type == WIRE_DATA)
        type_keys(keeper, channel, frame);
    else if (frame->type == WIRE_EOF && frame->stream == WIRE_STDIN && channel->input) {
        channel->follow = false; /* whoever typed has left: it ends with what there is */
        channel->until = keeper->console.end;
    }
}
