/* The inner half: pid 1 of the jail, QEMU's parent, and the one loop that serves everybody.
 *
 *     insula-keeper inner --listen FD --qmp FD --status FD --exit FD --events FD [--agent FD] [--console FD] [--events-old FD]
 *         [--console-log FD] [--console-log-old FD] [--qemu-log FD] [--ready FD] [--keep FD,FD…] -- QEMU-COMMAND…
 *
 * All descriptors are inherited; sockets are our ends of pairs whose other ends are in --keep, files are open for reading and
 * writing. QEMU gets 0 (ours), 1 and 2 (read here) and those of --keep. What the files hold:
 *
 *     status  1024 bytes: {"state": "starting|running|paused|ended", "agent": bool, ["reason": word,] "since": ns, "qemu_pid": n}
 *             (the number in this process's own pid namespace)
 *     exit    empty until the end, then {"version": 1, "time": ns, "started": ns, "reason": word, "guest": bool, "status": n|null,
 *             "signal": "SEGV"|null, "ran": bool, "panicked": bool, "killed_by_keeper": bool, "paused": "no-space"|"io-error"|null,
 *             "last_words": text}. The reason is QEMU's own word when it said one (guest-shutdown, guest-reset, guest-panic,
 *             host-qmp-quit, host-signal…), else killed (SIGKILL), crashed (another signal), failed (a status) or ended.
 *     events  a line each: {"time": ns, "event": NAME, "data": {…}}. QEMU's, and our own: STARTED, ENDED, AGENT, AGENT_REFUSED,
 *             HOLDER_DIED, MONITOR_GARBAGE
 *     ready   one line: `ready` (`ready 1` as pid 1 of a namespace) when QEMU answered, or `failed: …`
 */
#define _GNU_SOURCE
#include "keeper.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { KEPT_MAX = 256, FAREWELL = 1000, SPARE_FOR = 200, THREADS = 512, GATHER_NS = 200000 };

static struct keeper keeper_of_this_process;

/* ---- the loop ---- */

enum { POLL_SIGNALS, POLL_LISTEN, POLL_QMP, POLL_AGENT, POLL_CONSOLE, POLL_WORDS, POLL_CLIENTS, POLLS = POLL_CLIENTS + CLIENTS_MAX };

static bool accepts(const struct keeper *keeper, int64_t now)
{
    return !keeper->ended && now >= keeper->accept_after;
}

static struct pollfd want(int fd, const struct queue *out)
{
    short events = POLLIN;
    if (queue_length(out) > 0)
        events |= POLLOUT;
    return (struct pollfd){ .fd = fd, .events = events };
}

static void fill(struct keeper *keeper, struct pollfd *polls, int signals, int64_t now)
{
    static const struct queue none;
    const struct monitor *monitor = &keeper->monitor;
    polls[POLL_SIGNALS] = want(signals, &none);
    polls[POLL_LISTEN] = want(accepts(keeper, now) ? keeper->fd.listen : -1, &none);
    polls[POLL_QMP] = want(keeper->fd.qmp, monitor->greeted ? &monitor->out : &none);
    polls[POLL_AGENT] = want(keeper->fd.agent, &keeper->agent.out);
    polls[POLL_CONSOLE] = want(keeper->fd.console, &keeper->console_out);
    polls[POLL_WORDS] = want(keeper->qemu.words, &none);
    for (int i = 0; i < CLIENTS_MAX; i++) {
        polls[POLL_CLIENTS + i] = want(keeper->clients[i].fd, &keeper->clients[i].out);
        if (keeper->clients[i].waits_for)
            polls[POLL_CLIENTS + i].events &= ~POLLIN;
    }
}

static void sooner(int64_t *first, int64_t when)
{
    if (when > 0 && when < *first)
        *first = when;
}

/* Milliseconds until something must be done by itself; -1: nothing will. */
static int patience(const struct keeper *keeper, int64_t now)
{
    int64_t first = INT64_MAX;
    for (int i = 0; i < CLIENTS_MAX; i++)
        if (keeper->clients[i].fd >= 0 && client_may_go_on(&keeper->clients[i]))
            return 0;
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++)
        sooner(&first, keeper->channels[i].deadline);
    if (keeper->agent.torn)
        return 0;
    if (keeper->agent.state == AGENT_SEEKING && keeper->state != STATE_PAUSED)
        sooner(&first, keeper->agent.next_sync);
    if (keeper->accept_after > now)
        sooner(&first, keeper->accept_after);
    sooner(&first, keeper->qemu.kill_at);
    if (first == INT64_MAX)
        return -1;
    return first <= now ? 0 : first - now > 60000 ? 60000 : (int)(first - now);
}

static void reap(struct keeper *keeper, int signals)
{
    struct signalfd_siginfo ignored;
    int status;
    pid_t pid;
    bool over = false;
    (void)!read(signals, &ignored, sizeof ignored);
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) { /* pid 1 inherits every orphan */
        if (pid != keeper->qemu.pid)
            continue;
        keeper->qemu.status = status;
        over = true;
    }
    if (over)
        machine_ended(keeper);
}

static void serve_client(struct keeper *keeper, struct client *client, short events)
{
    if (client->fd < 0)
        return;
    if (events & POLLIN)
        client_readable(keeper, client);
    else if (events & (POLLHUP | POLLERR))
        client->gone = true;
    if (client_may_go_on(client))
        client_process(keeper, client);
}

/* Send what can be sent, and forget who cannot be reached. */
static void flush_all(struct keeper *keeper)
{
    if (keeper->fd.qmp >= 0 && keeper->monitor.greeted && !queue_flush(&keeper->monitor.out, keeper->fd.qmp))
        queue_clear(&keeper->monitor.out); /* its end shows when reading */
    if (keeper->fd.agent >= 0 && !queue_flush(&keeper->agent.out, keeper->fd.agent))
        queue_clear(&keeper->agent.out);
    if (keeper->fd.console >= 0 && !queue_flush(&keeper->console_out, keeper->fd.console))
        queue_clear(&keeper->console_out);
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++) {
        struct channel *channel = &keeper->channels[i];
        if (channel->kind != CHANNEL_CONSOLE && channel->kind != CHANNEL_EVENTS)
            continue;
        while (verb_pump(keeper, channel) && queue_flush(&channel->client->out, channel->client->fd)
               && queue_length(&channel->client->out) == 0)
            ;
    }
    for (int i = 0; i < CLIENTS_MAX; i++) {
        struct client *client = &keeper->clients[i];
        if (client->fd >= 0 && (!queue_flush(&client->out, client->fd) || client->gone))
            client_drop(keeper, client);
    }
    clients_limit_memory(keeper);
}

/* Of the agent nothing is heard for a moment, unless somebody else has something to say. */
static int gather(struct keeper *keeper, struct pollfd *polls)
{
    static const struct timespec moment = { .tv_nsec = GATHER_NS };
    keeper->agent.gathers = false;
    polls[POLL_AGENT].events &= ~POLLIN;
    return ppoll(polls, POLLS, &moment, NULL);
}

void keeper_turn(struct keeper *keeper, int most, int signals)
{
    struct pollfd polls[POLLS];
    int64_t now = now_ms();
    int wait = patience(keeper, now);
    fill(keeper, polls, signals, now);
    wait = wait < 0 || (most >= 0 && most < wait) ? most : wait;
    bool spare = memory_is_spare() && (wait < 0 || wait > SPARE_FOR);
    bool gathers = keeper->agent.gathers && wait != 0;
    int ready = gathers ? gather(keeper, polls) : poll(polls, POLLS, spare ? SPARE_FOR : wait);
    if (ready < 0)
        return;
    if (ready == 0 && spare && !gathers)
        memory_release();
    if (polls[POLL_QMP].revents & ~POLLOUT)
        monitor_readable(keeper);
    if (polls[POLL_AGENT].revents & ~POLLOUT)
        agent_readable(keeper);
    if (polls[POLL_CONSOLE].revents & ~POLLOUT)
        console_readable(keeper);
    if (polls[POLL_WORDS].revents)
        qemu_words(keeper);
    for (int i = 0; i < CLIENTS_MAX; i++)
        serve_client(keeper, &keeper->clients[i], polls[POLL_CLIENTS + i].revents);
    if (polls[POLL_SIGNALS].revents)
        reap(keeper, signals);
    now = now_ms();
    if (keeper->qemu.kill_at > 0 && now >= keeper->qemu.kill_at)
        qemu_kill(keeper);
    agent_tick(keeper, now);
    flush_all(keeper);
    if (polls[POLL_LISTEN].revents && !keeper->ended)
        client_accept(keeper); /* last: who left in this turn makes room */
}

/* Let everybody read how it ended, for a second at most. */
static void say_farewell(struct keeper *keeper, int signals)
{
    int64_t until = now_ms() + FAREWELL;
    for (int64_t now; (now = now_ms()) < until; keeper_turn(keeper, (int)(until - now), signals)) {
        bool waiting = false;
        for (int i = 0; i < WIRE_CHANNELS_MAX; i++)
            waiting |= keeper->channels[i].kind != CHANNEL_FREE;
        for (int i = 0; i < CLIENTS_MAX; i++)
            waiting |= queue_length(&keeper->clients[i].out) > 0;
        if (!waiting)
            return;
    }
}

/* ---- the start ---- */

void keeper_init(struct keeper *keeper, const struct descriptors *descriptors)
{
    keeper->fd = *descriptors;
    keeper->qemu.words = -1;
    keeper->since = keeper->started = now_ns();
    clients_init(keeper);
    console_init(keeper);
    record_init(keeper->fd.status, STATUS_BLOCK);
    record_init(keeper->fd.exit, EXIT_RECORD_MAX);
}

struct arguments {
    struct descriptors fd;
    int kept[KEPT_MAX];
    size_t kept_count;
    char **command;
};

/* The next number of a comma-separated list, or -1. */
static int number(const char **text)
{
    char *end;
    if (**text < '0' || **text > '9')
        return -1;
    long value = strtol(*text, &end, 10);
    if (value > 65535 || (*end && *end != ','))
        return -1;
    *text = *end ? end + 1 : end;
    return (int)value;
}

static bool parse_kept(struct arguments *arguments, const char *list)
{
    while (*list) {
        int fd = number(&list);
        if (fd < 3 || arguments->kept_count == KEPT_MAX)
            return false;
        arguments->kept[arguments->kept_count++] = fd;
    }
    return true;
}

static const struct option_name { const char *name; size_t offset; bool needed; } options[] = {
#define OPTION(word, member, needed) { "--" word, offsetof(struct descriptors, member), needed }
    OPTION("listen", listen, true), OPTION("agent", agent, false), OPTION("console", console, false), OPTION("qmp", qmp, true),
    OPTION("status", status, true), OPTION("exit", exit, true), OPTION("events", events, true),
    OPTION("events-old", events_old, false), OPTION("console-log", console_log, false),
    OPTION("console-log-old", console_log_old, false), OPTION("qemu-log", qemu_log, false), OPTION("ready", ready, false),
#undef OPTION
};
enum { OPTIONS = sizeof options / sizeof *options };

static int *member_of(struct descriptors *descriptors, const struct option_name *option)
{
    return (int *)((char *)descriptors + option->offset);
}

static bool parse_option(struct arguments *arguments, const char *name, const char *value)
{
    if (strcmp(name, "--keep") == 0)
        return parse_kept(arguments, value);
    for (int i = 0; i < OPTIONS; i++) {
        if (strcmp(name, options[i].name) != 0)
            continue;
        int fd = number(&value);
        *member_of(&arguments->fd, &options[i]) = fd;
        return fd >= 3 && *value == 0 && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
    }
    return false;
}

static bool parse(struct arguments *arguments, int argc, char **argv)
{
    for (int i = 0; i < OPTIONS; i++)
        *member_of(&arguments->fd, &options[i]) = -1;
    int at = 0;
    for (; at + 1 < argc && strcmp(argv[at], "--") != 0; at += 2) {
        if (!parse_option(arguments, argv[at], argv[at + 1])) {
            dprintf(2, "insula-keeper inner: wrong option: %s %s\n", argv[at], argv[at + 1]);
            return false;
        }
    }
    if (at + 1 >= argc) {
        dprintf(2, "insula-keeper inner: no command after --\n");
        return false;
    }
    arguments->command = argv + at + 1;
    for (int i = 0; i < OPTIONS; i++) {
        if (options[i].needed && *member_of(&arguments->fd, &options[i]) < 0) {
            dprintf(2, "insula-keeper inner: %s is missing\n", options[i].name);
            return false;
        }
    }
    return true;
}

static int prepare_signals(void)
{
    sigset_t all, children;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL); /* QEMU decides what a SIGTERM means, we end with it */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes costs log text, not the machine */
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    return signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void close_strangers(const struct arguments *arguments)
{
    int ours[KEPT_MAX + OPTIONS];
    size_t count = arguments->kept_count;
    memcpy(ours, arguments->kept, count * sizeof *ours);
    for (int i = 0; i < OPTIONS; i++) {
        int fd = *member_of((struct descriptors *)&arguments->fd, &options[i]);
        if (fd >= 0)
            ours[count++] = fd;
    }
    close_others(ours, count);
}

/*
 * QEMU has a thread for each CPU and at most 64 for disk requests. In a user namespace of its own, as a jail is, only what is in
 * there counts (setrlimit(2), RLIMIT_NPROC), so this holds where machines share their owner's user, too.
 */
static void bound_threads(void)
{
    const struct rlimit most = {THREADS, THREADS};
    setrlimit(RLIMIT_NPROC, &most);
}

int inner_main(int argc, char **argv)
{
    struct keeper *keeper = &keeper_of_this_process;
    struct arguments arguments = { 0 };
    if (!parse(&arguments, argc, argv))
        return 2;
    close_strangers(&arguments);
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    bound_threads();
    int signals = prepare_signals();
    if (signals < 0) {
        perror("insula-keeper inner: signalfd");
        return 1;
    }
    keeper_init(keeper, &arguments.fd);
    set_nonblocking(keeper->fd.listen);
    if (!qemu_start(keeper, arguments.kept, arguments.kept_count, arguments.command)) {
        perror("insula-keeper inner: fork");
        return 1;
    }
    write_status(keeper);
    journal_add(keeper, "STARTED", "", 0);
    while (!keeper->ended)
        keeper_turn(keeper, -1, signals);
    say_farewell(keeper, signals);
    return 0;
}
