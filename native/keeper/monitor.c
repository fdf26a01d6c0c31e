/* QEMU's monitor, as far as the keeper needs it: QMP's greeting, a few commands, all events (qapi/run-state.json and others
 * of QEMU's interface documentation). QEMU may have been taken over, so a line is checked before it is believed to be JSON. */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 65536 };

static const char AGENT_PORT[] = "agent0", AGENT_CHARDEV[] = "agent";

/* ---- the state and its file ---- */

const char *state_word(const struct keeper *keeper)
{
    static const char *const words[] = { "starting", "running", "paused", "ended" };
    return words[keeper->state];
}

void write_status(struct keeper *keeper)
{
    char json[STATUS_BLOCK];
    struct text text;
    text_init(&text, json, sizeof json);
    text_add(&text, "{\"state\": \"%s\", \"agent\": %s", state_word(keeper), agent_answers(keeper, NULL) ? "true" : "false");
    if (keeper->reason[0])
        text_add(&text, ", \"reason\": \"%s\"", keeper->reason);
    text_add(&text, ", \"since\": %" PRId64 ", \"qemu_pid\": %d}", keeper->since, (int)keeper->qemu.pid);
    status_write(keeper->fd.status, json);
}

void set_state(struct keeper *keeper, enum machine_state state, const char *reason)
{
    if (keeper->state == state && strcmp(keeper->reason, reason) == 0)
        return;
    if (keeper->state != state)
        keeper->since = now_ns();
    keeper->state = state;
    snprintf(keeper->reason, sizeof keeper->reason, "%s", reason);
    keeper->ran |= state == STATE_RUNNING;
    write_status(keeper);
}

/* ---- commands ---- */

void monitor_command(struct keeper *keeper, const char *command)
{
    char line[80];
    if (keeper->fd.qmp < 0 || queue_length(&keeper->monitor.out) > MONITOR_QUEUE_MAX)
        return;
    int length = snprintf(line, sizeof line, "{\"execute\": \"%s\", \"id\": \"%s\"}\n", command, command);
    queue_add(&keeper->monitor.out, line, (size_t)length);
}

static void learn_status(struct keeper *keeper, struct json answer)
{
    struct json status;
    char word[32];
    json_member(answer, "status", &status);
    if (!json_word(status, word, sizeof word) || keeper->ended)
        return;
    if (strcmp(word, "running") == 0)
        set_state(keeper, STATE_RUNNING, "");
    else if (strcmp(word, "io-error") == 0)
        set_state(keeper, STATE_PAUSED, keeper->no_space ? "no-space" : word);
    else
        set_state(keeper, STATE_PAUSED, strcmp(word, "paused") == 0 ? "" : word);
    if (!keeper->monitor.ready) {
        keeper->monitor.ready = true;
        tell_ready(keeper, getpid() == 1 ? "ready 1\n" : "ready\n", getpid() == 1 ? 8 : 6);
    }
}

static void learn_chardevs(struct keeper *keeper, struct json answer)
{
    struct json item, value;
    size_t offset = 0;
    while (json_next(answer, &offset, &item)) {
        json_member(item, "label", &value);
        if (!json_is(value, AGENT_CHARDEV))
            continue;
        json_member(item, "frontend-open", &value);
        if (json_true(value) && keeper->agent.state == AGENT_CLOSED)
            agent_port_opened(keeper);
    }
}

/* Commands given before QEMU was up were kept; QMP wants this one first. */
static void on_greeting(struct keeper *keeper)
{
    struct queue early = keeper->monitor.out;
    keeper->monitor.out = (struct queue){ 0 };
    keeper->monitor.greeted = true;
    monitor_command(keeper, "qmp_capabilities");
    queue_add(&keeper->monitor.out, early.bytes + early.begin, queue_length(&early));
    queue_clear(&early);
}

static void on_answer(struct keeper *keeper, struct json line)
{
    struct json id, answer;
    json_member(line, "id", &id);
    if (!json_member(line, "return", &answer))
        return;
    if (json_is(id, "qmp_capabilities")) {
        monitor_command(keeper, "query-status");
        monitor_command(keeper, "query-chardev");
    } else if (json_is(id, "query-status")) {
        learn_status(keeper, answer);
    } else if (json_is(id, "query-chardev")) {
        learn_chardevs(keeper, answer);
    }
}

/* ---- events ---- */

static void on_shutdown(struct keeper *keeper, struct json data)
{
    struct json value;
    if (keeper->shutdown[0])
        return; /* the first word counts: what follows is QEMU being told to end */
    json_member(data, "reason", &value);
    json_word(value, keeper->shutdown, sizeof keeper->shutdown);
    json_member(data, "guest", &value);
    keeper->shutdown_by_guest = json_true(value);
}

static void on_block_error(struct keeper *keeper, struct json data)
{
    struct json value;
    json_member(data, "action", &value);
    if (!json_is(value, "stop"))
        return;
    json_member(data, "nospace", &value);
    keeper->no_space = json_true(value);
}

static void on_port_change(struct keeper *keeper, struct json data)
{
    struct json value;
    json_member(data, "id", &value);
    if (!json_is(value, AGENT_PORT))
        return;
    json_member(data, "open", &value);
    if (json_true(value))
        agent_port_opened(keeper);
    else
        agent_port_closed(keeper);
}

/* By itself, that is, or by a panic: what we or the user ask for is no sign of trouble. */
static void on_reset(struct keeper *keeper, struct json data)
{
    struct json value;
    json_member(data, "guest", &value);
    if (json_true(value))
        verbs_guest_reset(keeper);
}

static void on_resume(struct keeper *keeper)
{
    keeper->shutdown[0] = 0; /* a guest that was to shut down goes on */
    set_state(keeper, STATE_RUNNING, "");
}

static void on_event(struct keeper *keeper, struct json name, struct json data)
{
    char event[64];
    if (!json_word(name, event, sizeof event) || strcmp(event, "RTC_CHANGE") == 0)
        return; /* the clock's setting is the guest's business, and it may set it without end */
    journal_add(keeper, event, data.at, data.length);
    if (strcmp(event, "SHUTDOWN") == 0)
        on_shutdown(keeper, data);
    else if (strcmp(event, "GUEST_PANICKED") == 0)
        keeper->panicked = true;
    else if (strcmp(event, "BLOCK_IO_ERROR") == 0)
        on_block_error(keeper, data);
    else if (strcmp(event, "RESET") == 0)
        on_reset(keeper, data);
    else if (strcmp(event, "VSERPORT_CHANGE") == 0)
        on_port_change(keeper, data);
    else if (strcmp(event, "RESUME") == 0)
        on_resume(keeper);
    else if (strcmp(event, "STOP") == 0) {
        set_state(keeper, STATE_PAUSED, "");
        monitor_command(keeper, "query-status"); /* it says why */
    } else if (strcmp(event, "SUSPEND") == 0 || strcmp(event, "WAKEUP") == 0)
        monitor_command(keeper, "query-status");
}

/* ---- lines ---- */

static void garbage(struct keeper *keeper, size_t length)
{
    char data[64];
    int written = snprintf(data, sizeof data, "{\"bytes\": %zu}", length);
    journal_add(keeper, "MONITOR_GARBAGE", data, (size_t)written);
}

static void on_line(struct keeper *keeper, const char *bytes, size_t length)
{
    struct json line, value, data;
    if (!json_check(bytes, length, &line) || line.at[0] != '{') {
        garbage(keeper, length);
        return;
    }
    json_member(line, "data", &data);
    if (json_member(line, "event", &value)) {
        on_event(keeper, value, data);
    } else if (json_member(line, "QMP", &value) && !keeper->monitor.greeted) {
        on_greeting(keeper);
    } else {
        on_answer(keeper, line);
    }
}

static void take_lines(struct keeper *keeper)
{
    struct queue *in = &keeper->monitor.in;
    const char *begin, *newline;
    while (queue_length(in) > 0) {
        begin = (const char *)in->bytes + in->begin;
        newline = memchr(begin, '\n', queue_length(in));
        if (!newline)
            return;
        size_t length = (size_t)(newline - begin);
        if (length > 0 && !(length == 1 && *begin == '\r'))
            on_line(keeper, begin, length);
        queue_take(in, length + 1);
    }
}

void monitor_feed(struct keeper *keeper, const char *bytes, size_t length)
{
    struct monitor *monitor = &keeper->monitor;
    if (monitor->skipping) {
        const char *newline = memchr(bytes, '\n', length);
        if (!newline)
            return;
        length -= (size_t)(newline + 1 - bytes);
        bytes = newline + 1;
        monitor->skipping = false;
    }
    if (!queue_add(&monitor->in, bytes, length))
        queue_clear(&monitor->in);
    take_lines(keeper);
    if (queue_length(&monitor->in) > LINE_MAX_BYTES) {
        garbage(keeper, queue_length(&monitor->in));
        queue_clear(&monitor->in);
        monitor->skipping = true;
    }
}

void monitor_readable(struct keeper *keeper)
{
    char bytes[8192];
    ssize_t got = recv(keeper->fd.qmp, bytes, sizeof bytes, MSG_DONTWAIT);
    if (got > 0) {
        monitor_feed(keeper, bytes, (size_t)got);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        close_fd(&keeper->fd.qmp);
        queue_clear(&keeper->monitor.in);
        queue_clear(&keeper->monitor.out);
    }
}
