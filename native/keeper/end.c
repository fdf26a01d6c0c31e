/* The end: why it came, the record of it, and telling everybody who waits. */
#define _GNU_SOURCE
#include "keeper.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DRAIN_READS = 256 };

void tell_ready(struct keeper *keeper, const char *text, size_t length)
{
    if (keeper->fd.ready < 0)
        return;
    (void)!write(keeper->fd.ready, text, length); /* the porter reads; if it is gone nobody needs to know */
    close_fd(&keeper->fd.ready);
    dup2(0, 1); /* the porter reads our words no more */
    dup2(0, 2);
}

/* What QEMU sent before it ended still lies in the sockets. */
static void drain(struct keeper *keeper)
{
    for (int i = 0; i < DRAIN_READS && keeper->qemu.words >= 0; i++)
        qemu_words(keeper);
    for (int i = 0; i < DRAIN_READS && keeper->fd.qmp >= 0; i++)
        monitor_readable(keeper);
    for (int i = 0; i < DRAIN_READS && keeper->fd.console >= 0; i++)
        console_readable(keeper);
    for (int i = 0; i < DRAIN_READS && keeper->fd.agent >= 0; i++)
        agent_readable(keeper);
}

static const char *classify(const struct keeper *keeper)
{
    int status = keeper->qemu.status;
    if (keeper->shutdown[0])
        return keeper->shutdown;
    if (WIFSIGNALED(status))
        return WTERMSIG(status) == SIGKILL ? "killed" : "crashed";
    return WEXITSTATUS(status) != 0 ? "failed" : "ended";
}

static const char *signal_word(int number)
{
    static const struct { int number; const char *word; } words[] = {
        { SIGHUP, "HUP" }, { SIGINT, "INT" }, { SIGQUIT, "QUIT" }, { SIGILL, "ILL" }, { SIGTRAP, "TRAP" }, { SIGABRT, "ABRT" },
        { SIGBUS, "BUS" }, { SIGFPE, "FPE" }, { SIGKILL, "KILL" }, { SIGSEGV, "SEGV" }, { SIGPIPE, "PIPE" }, { SIGALRM, "ALRM" },
        { SIGTERM, "TERM" }, { SIGXCPU, "XCPU" }, { SIGXFSZ, "XFSZ" }, { SIGSYS, "SYS" },
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (words[i].number == number)
            return words[i].word;
    return "other";
}

/* The last words as a JSON string, shortened from the front until they fit. */
static void add_last_words(struct text *text, const struct ring *ring)
{
    char words[LAST_WORDS];
    size_t length = ring_copy(ring, ring_begin(ring), words, sizeof words);
    struct text before = *text;
    for (size_t skip = 0;; skip += 256) {
        *text = before;
        text->at[text->length] = 0;
        skip = skip < length ? skip : length;
        text_add_string(text, words + skip, length - skip);
        if (!text->overflow || skip == length)
            return;
    }
}

/* `paused`: why the guest stood still at its end, as a JSON value. */
static void write_exit(struct keeper *keeper, const char *paused)
{
    char json[EXIT_RECORD_MAX];
    int status = keeper->qemu.status;
    struct text text;
    text_init(&text, json, sizeof json - 2); /* room for the closing brace */
    text_add(&text, "{\"version\": 1, \"time\": %" PRId64 ", \"started\": %" PRId64, now_ns(), keeper->started);
    text_add(&text, ", \"reason\": \"%s\", \"guest\": %s", keeper->reason, keeper->shutdown_by_guest ? "true" : "false");
    if (WIFSIGNALED(status))
        text_add(&text, ", \"status\": null, \"signal\": \"%s\"", signal_word(WTERMSIG(status)));
    else
        text_add(&text, ", \"status\": %d, \"signal\": null", WEXITSTATUS(status));
    text_add(&text, ", \"ran\": %s, \"panicked\": %s", keeper->ran ? "true" : "false", keeper->panicked ? "true" : "false");
    text_add(&text, ", \"killed_by_keeper\": %s, \"paused\": ", keeper->qemu.killed ? "true" : "false");
    text_add(&text, "%s", paused);
    text_add(&text, ", \"last_words\": ");
    add_last_words(&text, &keeper->qemu.last_ring);
    text.size += 2;
    text.overflow = false;
    text_add(&text, "}\n");
    exit_write(keeper->fd.exit, json);
}

static void answer_all(struct keeper *keeper)
{
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++) {
        struct channel *channel = &keeper->channels[i];
        switch (channel->kind) {
        case CHANNEL_WAIT_END:
            channel_answer(channel, NULL, keeper->reason);
            break;
        case CHANNEL_AGENT:
        case CHANNEL_PENDING:
        case CHANNEL_WAIT_AGENT:
        case CHANNEL_HOLD:
            channel_answer(channel, "ENDED", keeper->reason);
            break;
        default:
            break; /* followers are answered when they have read all */
        }
    }
}

/* For whoever started the machine: one line, with the end of what QEMU said. */
static void tell_failed(struct keeper *keeper)
{
    const struct ring *ring = &keeper->qemu.last_ring;
    char line[1024], words[512];
    uint64_t kept = ring->end - ring_begin(ring);
    size_t length = ring_copy(ring, ring->end - (kept < sizeof words ? kept : sizeof words), words, sizeof words);
    struct text text;
    for (size_t i = 0; i < length; i++)
        if (words[i] < 0x20 || words[i] > 0x7E)
            words[i] = words[i] == '\n' && i + 1 < length ? ';' : ' ';
    text_init(&text, line, sizeof line);
    text_add(&text, "failed: QEMU ended at once (%s): ", keeper->reason);
    text_add_bytes(&text, words, length);
    text_add(&text, "\n");
    tell_ready(keeper, line, text.length);
}

static const char *paused_by(const struct keeper *keeper)
{
    if (keeper->state == STATE_PAUSED && strcmp(keeper->reason, "no-space") == 0)
        return "\"no-space\"";
    if (keeper->state == STATE_PAUSED && strcmp(keeper->reason, "io-error") == 0)
        return "\"io-error\"";
    return "null";
}

void machine_ended(struct keeper *keeper)
{
    char data[96];
    drain(keeper);
    keeper->qemu.kill_at = 0;
    keeper->ended = true;
    keeper->agent.state = AGENT_CLOSED;
    const char *paused = paused_by(keeper);
    set_state(keeper, STATE_ENDED, classify(keeper));
    write_exit(keeper, paused);
    int written = snprintf(data, sizeof data, "{\"reason\": \"%s\", \"guest\": %s}", keeper->reason,
                           keeper->shutdown_by_guest ? "true" : "false");
    journal_add(keeper, "ENDED", data, (size_t)written);
    tell_failed(keeper);
    answer_all(keeper);
}
