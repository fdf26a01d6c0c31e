#include "exec.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "children.h"
#include "link.h"
#include "loop.h"
#include "names.h"
#include "spawn.h"
#include "streams.h"

enum {
    GRACE = 1000,   /* milliseconds output is waited for after the program ended, when others keep it open */
    MERCY = 2000,   /* milliseconds between SIGHUP and SIGKILL */
};

struct exec {
    struct channel channel;
    struct child child;
    bool tty, ended, graceless, hung_up;
    int status;

    struct watch in, out[2], failures; /* as streams.h has them */
    int left[2]; /* bytes that were in a pipe when the program ended: these are still delivered */
    struct failure failure;

    uint8_t *waiting; /* input the program has not taken yet: a ring of WIRE_WINDOW bytes, made when first needed */
    uint32_t first, held;
    bool in_ends;

    struct timer timer;
};

static struct exec *of(struct channel *channel)
{
    return CONTAINER(channel, struct exec, channel);
}

static void close_all(struct exec *exec)
{
    watch_close(&exec->in);
    watch_close(&exec->out[0]);
    watch_close(&exec->out[1]);
    watch_close(&exec->failures);
    free(exec->waiting);
    exec->waiting = NULL;
    exec->held = 0;
}

static void discard(struct exec *exec)
{
    timer_stop(&exec->timer);
    if (!exec->ended)
        child_forget(&exec->child);
    close_all(exec);
    free(exec);
}

/* ---- input ---- */

static void end_input(struct exec *exec)
{
    struct termios state;
    if (exec->tty && exec->in.fd >= 0) {
        /* A terminal is not closed by its keyboard: the end-of-file key is pressed. */
        if (tcgetattr(exec->in.fd, &state) == 0 && state.c_lflag & ICANON)
            if (write(exec->in.fd, &state.c_cc[VEOF], 1) < 0)
                return;
        return;
    }
    watch_close(&exec->in);
}

/* The program takes no more: what comes is consumed unseen, so that the sender is not stuck. */
static void drop_input(struct exec *exec)
{
    watch_close(&exec->in);
    channel_consumed(&exec->channel, exec->held);
    exec->held = 0;
}

/* Bytes written, 0 when it would block, -1 when nobody will ever read. */
static ssize_t offer(struct exec *exec, const uint8_t *bytes, size_t length)
{
    ssize_t sent;
    do
        sent = write(exec->in.fd, bytes, length);
    while (sent < 0 && errno == EINTR);
    return sent < 0 && errno == EAGAIN ? 0 : sent;
}

static void in_ready(struct watch *watch, uint32_t events)
{
    struct exec *exec = CONTAINER(watch, struct exec, in);
    (void)events;
    while (exec->held > 0) {
        uint32_t piece = WIRE_WINDOW - exec->first < exec->held ? WIRE_WINDOW - exec->first : exec->held;
        ssize_t sent = offer(exec, exec->waiting + exec->first, piece);
        if (sent < 0) {
            drop_input(exec);
            return;
        }
        if (sent == 0)
            return;
        exec->first = (exec->first + (uint32_t)sent) % WIRE_WINDOW;
        exec->held -= (uint32_t)sent;
        channel_consumed(&exec->channel, (uint32_t)sent);
    }
    watch_for(watch, 0);
    if (exec->in_ends)
        end_input(exec);
}

static bool keep(struct exec *exec, const uint8_t *bytes, uint32_t length)
{
    if (!exec->waiting && !(exec->waiting = malloc(WIRE_WINDOW)))
        return false;
    uint32_t end = (exec->first + exec->held) % WIRE_WINDOW;
    uint32_t piece = WIRE_WINDOW - end < length ? WIRE_WINDOW - end : length;
    memcpy(exec->waiting + end, bytes, piece);
    memcpy(exec->waiting, bytes + piece, length - piece);
    exec->held += length; /* never above WIRE_WINDOW: the grant saw to it */
    return true;
}

static void exec_data(struct channel *channel, const uint8_t *bytes, uint32_t length)
{
    struct exec *exec = of(channel);
    ssize_t sent = 0;
    if (exec->in_ends || exec->in.fd < 0) {
        channel_consumed(channel, length);
        return;
    }
    if (exec->held == 0)
        sent = offer(exec, bytes, length);
    if (sent < 0) {
        channel_consumed(channel, length);
        drop_input(exec);
        return;
    }
    if (sent > 0)
        channel_consumed(channel, (uint32_t)sent);
    if ((uint32_t)sent == length)
        return;
    if (keep(exec, bytes + sent, length - (uint32_t)sent))
        watch_for(&exec->in, EPOLLOUT);
    else
        drop_input(exec);
}

static void exec_eof(struct channel *channel)
{
    struct exec *exec = of(channel);
    if (exec->in_ends)
        return;
    exec->in_ends = true;
    if (exec->held == 0)
        end_input(exec);
}

/* ---- output ---- */

static void out_ready(struct exec *exec, int which)
{
    struct watch *watch = &exec->out[which];
    int stream = WIRE_STDOUT + which;
    struct wire_window *window = &exec->channel.window[stream];
    uint32_t most = window->left < WIRE_PAYLOAD_MAX ? window->left : WIRE_PAYLOAD_MAX;
    ssize_t got = read(watch->fd, link_payload(), most);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) { /* a terminal says EIO when its last user is gone */
        watch_close(watch);
        link_send(WIRE_EOF, (uint8_t)stream, exec->channel.id, NULL, 0);
        return;
    }
    link_commit(WIRE_DATA, (uint8_t)stream, exec->channel.id, (uint32_t)got);
    exec->left[which] -= (int)got;
    window->left -= (uint32_t)got;
    if (window->left == 0)
        watch_for(watch, 0);
}

static void stdout_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    out_ready(CONTAINER(watch, struct exec, out[0]), 0);
}

static void stderr_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    out_ready(CONTAINER(watch, struct exec, out[1]), 1);
}

static void exec_credit(struct channel *channel, int stream)
{
    struct exec *exec = of(channel);
    if (channel->window[stream].left > 0)
        watch_for(&exec->out[stream - WIRE_STDOUT], EPOLLIN);
}

/* ---- the end ---- */

static void failures_ready(struct watch *watch, uint32_t events)
{
    struct exec *exec = CONTAINER(watch, struct exec, failures);
    (void)events;
    struct failure failure;
    ssize_t got = read(watch->fd, &failure, sizeof failure);
    if (got == sizeof failure)
        exec->failure = failure;
    else if (got >= 0 || (errno != EAGAIN && errno != EINTR))
        watch_close(watch);
}

static void grace_ended(struct timer *timer)
{
    CONTAINER(timer, struct exec, timer)->graceless = true;
}

static void exec_ended(struct child *child, int status)
{
    struct exec *exec = CONTAINER(child, struct exec, child);
    exec->ended = true;
    exec->status = status;
    if (exec->hung_up) {
        if (!session_signal(child->pid, 0))
            discard(exec); /* nobody is left to be killed later */
        return;
    }
    for (int i = 0; i < 2; i++)
        if (exec->out[i].fd < 0 || ioctl(exec->out[i].fd, FIONREAD, &exec->left[i]) < 0)
            exec->left[i] = 0;
    timer_start(&exec->timer, GRACE, grace_ended);
}

static bool is_over(const struct exec *exec)
{
    if (!exec->ended || exec->failures.fd >= 0)
        return false;
    for (int i = 0; i < 2; i++)
        if (exec->out[i].fd >= 0 && (!exec->graceless || exec->left[i] > 0))
            return false;
    return true;
}

static void exec_settle(struct channel *channel)
{
    struct exec *exec = of(channel);
    struct wire_writer fields;
    uint8_t buffer[256];
    char number[16];
    if (!is_over(exec))
        return;
    wire_writer_init(&fields, buffer, sizeof buffer);
    if (exec->failure.word[0]) {
        wire_put_text(&fields, TAG_ERROR, exec->failure.word);
        wire_put_text(&fields, TAG_MESSAGE, strerror(exec->failure.error));
    } else if (WIFSIGNALED(exec->status)) {
        snprintf(number, sizeof number, "%d", WTERMSIG(exec->status));
        const char *name = signal_name(WTERMSIG(exec->status));
        wire_put_text(&fields, TAG_SIGNAL, name ? name : number);
    } else {
        wire_put_u64(&fields, TAG_CODE, (uint64_t)WEXITSTATUS(exec->status));
    }
    channel_result(channel, &fields);
    discard(exec);
}

static void kill_rest(struct timer *timer)
{
    struct exec *exec = CONTAINER(timer, struct exec, timer);
    session_signal(exec->child.pid, SIGKILL);
    discard(exec);
}

static void exec_hang_up(struct channel *channel)
{
    struct exec *exec = of(channel);
    bool terminal = exec->tty && exec->out[0].fd >= 0;
    exec->hung_up = true;
    close_all(exec);
    /* A terminal that is closed tells its leader itself; nobody is to hear it twice, while he cleans up. */
    (terminal ? session_signal_others : session_signal)(exec->child.pid, SIGHUP);
    if (!session_signal(exec->child.pid, SIGCONT) && exec->ended) /* one that is stopped hears nothing before */
        discard(exec);
    else
        timer_start(&exec->timer, MERCY, kill_rest);
}

/* ---- signals and windows ---- */

static void exec_signal(struct channel *channel, const char *name)
{
    struct exec *exec = of(channel);
    int number = signal_number(name);
    pid_t group = 0;
    if (number == 0 || exec->ended)
        return;
    if (exec->tty && exec->out[0].fd >= 0 && ioctl(exec->out[0].fd, TIOCGPGRP, &group) == 0 && group > 0) {
        kill(-group, number);
        return;
    }
    if (kill(-exec->child.pid, number) < 0)
        kill(exec->child.pid, number); /* it has not made its group yet */
}

static void exec_resize(struct channel *channel, uint16_t rows, uint16_t columns)
{
    struct exec *exec = of(channel);
    if (exec->tty && exec->out[0].fd >= 0)
        terminal_resize(exec->out[0].fd, rows, columns);
}

static const struct channel_kind kind = {
    .data = exec_data,
    .eof = exec_eof,
    .credit = exec_credit,
    .signal = exec_signal,
    .resize = exec_resize,
    .settle = exec_settle,
    .hang_up = exec_hang_up,
};

/* ---- the beginning ---- */

static bool start(struct exec *exec, const struct command *command)
{
    struct streams streams;
    int failures = -1;
    bool opened = streams_open(&streams, command) && pipe_open(&exec->failures.fd, &failures, true);
    pid_t pid = opened ? child_fork(&exec->child, exec_ended) : -1;
    if (pid == 0)
        command_become(command, streams.theirs, failures);
    int error = errno;
    streams_close_theirs(&streams);
    if (failures >= 0)
        close(failures);
    exec->in.fd = streams.ours[0];
    exec->out[0].fd = streams.ours[1];
    exec->out[1].fd = streams.ours[2];
    errno = error;
    return pid > 0;
}

void exec_run(const struct request *request)
{
    struct command command;
    struct exec *exec = calloc(1, sizeof *exec);
    bool parsed = command_parse(request, &command);
    if (!exec || !parsed) {
        answer_error(request, command.memory && exec ? "EINVAL" : "ENOMEM", "there is nothing to run, or no memory for it");
        free(command.memory);
        free(exec);
        return;
    }
    watch_init(&exec->in, -1, false, in_ready);
    watch_init(&exec->out[0], -1, true, stdout_ready);
    watch_init(&exec->out[1], -1, true, stderr_ready);
    watch_init(&exec->failures, -1, false, failures_ready);
    exec->tty = command.tty;
    if (start(exec, &command)) {
        channel_open(&exec->channel, request, &kind);
        watch_for(&exec->out[0], EPOLLIN);
        watch_for(&exec->out[1], EPOLLIN);
        watch_for(&exec->failures, EPOLLIN);
    } else {
        answer_errno(request, errno, NULL);
        close_all(exec);
        free(exec);
    }
    free(command.memory);
}
