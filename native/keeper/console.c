/* The serial console, and the journal of events: what was said is kept, bounded, for whoever asks. */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/socket.h>

enum { CONSOLE_LOG_MAX = 1 << 20, EVENTS_FILE_MAX = 256 << 10 };

void console_init(struct keeper *keeper)
{
    keeper->console = (struct ring){ .bytes = keeper->console_bytes, .size = sizeof keeper->console_bytes };
    keeper->events = (struct ring){ .bytes = keeper->event_bytes, .size = sizeof keeper->event_bytes };
    log_init(&keeper->console_log, keeper->fd.console_log, keeper->fd.console_log_old, CONSOLE_LOG_MAX);
    log_init(&keeper->events_log, keeper->fd.events, keeper->fd.events_old, EVENTS_FILE_MAX);
}

void console_readable(struct keeper *keeper)
{
    uint8_t bytes[8192];
    ssize_t got = recv(keeper->fd.console, bytes, sizeof bytes, MSG_DONTWAIT);
    if (got > 0) {
        ring_add(&keeper->console, bytes, (size_t)got);
        log_write(&keeper->console_log, bytes, (size_t)got);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        close_fd(&keeper->fd.console);
        queue_clear(&keeper->console_out);
    }
}

void journal_add(struct keeper *keeper, const char *event, const char *data, size_t length)
{
    char line[EVENT_LINE_MAX];
    struct text text;
    text_init(&text, line, sizeof line);
    text_add(&text, "{\"time\": %" PRId64 ", \"event\": \"%s\", \"data\": ", now_ns(), event);
    size_t begun = text.length;
    if (length > 0)
        text_add_bytes(&text, data, length);
    else
        text_add(&text, "{}");
    for (size_t i = begun; i < text.length; i++)
        if (text.at[i] < 0x20)
            text.at[i] = ' '; /* JSON may hold tabs and carriage returns between its words; our lines are read as lines */
    text_add(&text, "}\n");
    if (text.overflow) {
        text.length = begun;
        text_add(&text, "{\"too_long\": true}}\n");
    }
    ring_add(&keeper->events, line, text.length);
    log_write(&keeper->events_log, line, text.length);
}
