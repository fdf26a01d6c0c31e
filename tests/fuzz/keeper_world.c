/* A keeper in a world that lies to it: QEMU's monitor, the agent, the console and local clients send it frames, JSON and garbage
 * in any order, and read or do not read what it says. The same seed is always the same story: time and chance are ours.
 *
 *     keeper_world SEED STORIES
 *
 * Built with sanitizers and -Wl,--wrap=now_ms,--wrap=getrandom. What is checked, beside the sanitizers: every client and the
 * agent are told whole frames only, no client is sent more than it allowed or passes the gate that another one keeps, the
 * journal is lines of JSON, memory is bounded and all given back.
 */
#define _GNU_SOURCE
#include "keeper/keeper.h"
#include "keeper_chance.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

enum { CLIENTS = 6, STEPS = 150, CHANNELS = 64 };

/* ---- time ---- */

static int64_t clock_ms;

int64_t __wrap_now_ms(void);
int64_t __wrap_now_ms(void)
{
    return clock_ms;
}

ssize_t __wrap_getrandom(void *to, size_t length, unsigned flags);
ssize_t __wrap_getrandom(void *to, size_t length, unsigned flags)
{
    (void)flags;
    for (size_t i = 0; i < length; i++)
        ((uint8_t *)to)[i] = (uint8_t)chance();
    return (ssize_t)length;
}

/* ---- the world ---- */

struct friend;
static size_t random_bytes(uint8_t *to, size_t most);
static void client_speaks(struct friend *friend);
static void hear(struct friend *friend);

struct friend { /* a client, seen from its side */
    int fd;
    struct wire_reader reader;
    uint8_t buffer[READER_SIZE];
    int64_t allowed[CHANNELS][3]; /* bytes it may still be sent */
    uint32_t last; /* channel it opened */
};

static struct keeper keeper;
static struct friend friends[CLIENTS];
static int qmp, agent, console, listener;
static pid_t child;
static char address_name[64];

static int pair(int *ours)
{
    int ends[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    *ours = ends[0];
    return ends[1];
}

static int file(void)
{
    int fd = memfd_create("keeper", 0);
    MUST(fd >= 0);
    return fd;
}

static struct sockaddr_un_like { sa_family_t family; char path[108]; } address;

static void listen_somewhere(void)
{
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address.family = AF_UNIX;
    snprintf(address_name, sizeof address_name, "keeper-world-%d", (int)getpid());
    memcpy(address.path + 1, address_name, strlen(address_name)); /* abstract: leaves no file */
    MUST(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 16) == 0);
}

static void connect_friend(struct friend *friend)
{
    friend->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    MUST(friend->fd >= 0 && connect(friend->fd, (struct sockaddr *)&address, sizeof address) == 0);
    wire_reader_init(&friend->reader, friend->buffer, sizeof friend->buffer);
    for (int i = 0; i < CHANNELS; i++)
        for (int stream = 0; stream < 3; stream++)
            friend->allowed[i][stream] = 0;
    friend->last = 0;
}

static void begin(void)
{
    struct descriptors fd = { .listen = listener, .agent = pair(&agent), .console = pair(&console), .qmp = pair(&qmp),
        .status = file(), .exit = file(), .events = file(), .events_old = file(), .console_log = file(),
        .console_log_old = file(), .qemu_log = file(), .ready = -1 };
    memset(&keeper, 0, sizeof keeper);
    keeper_init(&keeper, &fd);
    keeper.qemu.pid = child;
    keeper.qemu.last_ring = (struct ring){ .bytes = (uint8_t *)keeper.qemu.last, .size = LAST_WORDS };
    for (int i = 0; i < CLIENTS; i++)
        connect_friend(&friends[i]);
}

static void swallow(int fd)
{
    static uint8_t bytes[65536];
    while (recv(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
}

static void check_journal(int fd)
{
    static char text[300000];
    struct json value;
    ssize_t length = pread(fd, text, sizeof text, 0);
    MUST(length >= 0 && length <= 256 << 10);
    for (char *line = text, *end; line < text + length; line = end + 1) {
        end = memchr(line, '\n', (size_t)(text + length - line));
        MUST(end && json_check(line, (size_t)(end - line), &value));
        for (const char *at = line; at < end; at++)
            MUST(*at >= 0x20 && *at < 0x7F);
    }
}

/* QEMU ends somehow, having said something. */
static void end_qemu(void)
{
    static const int statuses[] = { 0, 256, SIGKILL, SIGSEGV, 127 << 8 };
    static char record[EXIT_RECORD_MAX + 1];
    uint8_t words[600];
    struct json value;
    for (uint32_t i = below(20); i > 0; i--)
        ring_add(&keeper.qemu.last_ring, words, random_bytes(words, sizeof words));
    keeper.qemu.status = statuses[below(5)];
    machine_ended(&keeper);
    ssize_t length = pread(keeper.fd.exit, record, sizeof record, 0);
    MUST(length > 0 && length <= EXIT_RECORD_MAX && json_check(record, (size_t)length, &value));
    MUST(json_member(value, "last_words", &value));
    for (int i = 0; i < 30; i++) {
        client_speaks(&friends[below(CLIENTS)]);
        hear(&friends[below(CLIENTS)]);
        keeper_turn(&keeper, 0, -1);
    }
}

static void end(void)
{
    if (below(2))
        end_qemu();
    for (int i = 0; i < CLIENTS_MAX; i++)
        if (keeper.clients[i].fd >= 0)
            client_drop(&keeper, &keeper.clients[i]);
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++)
        MUST(keeper.channels[i].kind == CHANNEL_FREE);
    check_journal(keeper.fd.events);
    check_journal(keeper.fd.events_old);
    agent_port_closed(&keeper);
    queue_clear(&keeper.monitor.in);
    queue_clear(&keeper.monitor.out);
    queue_clear(&keeper.console_out);
    MUST(queue_total == 0);
    int *fds = (int *)&keeper.fd;
    for (size_t i = 1; i < sizeof keeper.fd / sizeof(int); i++)
        close_fd(&fds[i]);
    close(qmp);
    close(agent);
    close(console);
    for (int i = 0; i < CLIENTS; i++)
        close(friends[i].fd);
}

/* ---- what clients hear ---- */

static void hear(struct friend *friend)
{
    struct wire_frame frame;
    uint8_t *at;
    enum wire_got got = WIRE_MORE;
    size_t room = wire_reader_space(&friend->reader, &at);
    ssize_t length = recv(friend->fd, at, room, MSG_DONTWAIT);
    if (length <= 0) {
        if (length == 0 || errno != EAGAIN) { /* it was thrown out, rightly or to save memory */
            close(friend->fd);
            connect_friend(friend);
        }
        return;
    }
    wire_reader_filled(&friend->reader, (size_t)length);
    while ((got = wire_reader_next(&friend->reader, &frame)) == WIRE_GOT) {
        MUST(frame.stream <= 2 && frame.channel < CHANNELS);
        if (frame.type == WIRE_DATA) {
            friend->allowed[frame.channel][frame.stream] -= frame.length;
            MUST(frame.length > 0 && friend->allowed[frame.channel][frame.stream] >= 0);
        }
    }
    MUST(got != WIRE_MALFORMED);
}

/* ---- what is said ---- */

static size_t random_bytes(uint8_t *to, size_t most)
{
    size_t length = below((uint32_t)most) + 1;
    for (size_t i = 0; i < length; i++)
        to[i] = below(3) ? (uint8_t)chance() : (uint8_t)"IN\x89\0{}[]\"\\:,\n"[below(13)];
    return length;
}

static void say(int fd, const void *bytes, size_t length)
{
    (void)!send(fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static size_t frame(uint8_t *to, uint8_t type, uint8_t stream, uint32_t channel, size_t length)
{
    wire_header(to, type, stream, channel, (uint32_t)length);
    return WIRE_HEADER + length;
}

/* Now and then one byte of what is sent is another one. */
static void spoil(uint8_t *bytes, size_t length)
{
    if (below(40) == 0 && length > 0)
        bytes[below((uint32_t)length)] = (uint8_t)chance();
}

static size_t some_length(void)
{
    static const uint32_t limits[] = { 1, 8, 100, 4096, 65537 };
    return below(limits[below(5)]);
}

static size_t open_fields(uint8_t *to, size_t room)
{
    static const char *const verbs[] = { "keeper.status", "keeper.wait", "keeper.console", "keeper.events", "keeper.hold",
                                         "keeper.quit", "keeper.what", "exec", "ping", "" };
    static const char *const words[] = { "agent", "end", "resume", "quit", "kill", "x" };
    struct wire_writer fields;
    wire_writer_init(&fields, to, room);
    wire_put_text(&fields, TAG_VERB, verbs[below(10)]);
    wire_put_text(&fields, TAG_UNTIL, words[below(6)]);
    wire_put_text(&fields, TAG_ON_DROP, words[below(6)]);
    if (below(3) == 0)
        wire_put_text(&fields, TAG_HOW, words[below(6)]);
    wire_put_u64(&fields, TAG_WAIT_MS, below(4) ? below(3000) : chance());
    wire_put_u64(&fields, TAG_FOLLOW, below(2));
    wire_put_u64(&fields, TAG_INPUT, below(2));
    wire_put_u64(&fields, TAG_GATE, below(2));
    return fields.length;
}

static void client_speaks(struct friend *friend)
{
    static uint8_t bytes[WIRE_FRAME_MAX + 16];
    uint32_t channel = friend->last > 4 ? friend->last - below(5) : below(5);
    uint8_t type = (uint8_t)(1 + below(9)), stream = (uint8_t)below(below(4) ? 3 : 256);
    size_t length = some_length();
    if (below(20) == 0) {
        say(friend->fd, bytes, random_bytes(bytes, 300));
        return;
    }
    if (below(3) == 0)
        type = WIRE_OPEN;
    if (type == WIRE_OPEN && friend->last < CHANNELS - 1 && below(50))
        channel = ++friend->last;
    if (type == WIRE_OPEN)
        length = open_fields(bytes + WIRE_HEADER, 512);
    if (type == WIRE_CREDIT && below(8)) {
        length = 4;
        wire_set_u32(bytes + WIRE_HEADER, (uint32_t)(below(4) ? below(300000) : chance()));
    }
    length = frame(bytes, type, stream, channel, length);
    spoil(bytes + WIRE_HEADER, length - WIRE_HEADER); /* the header stays: what is counted below must be what was sent */
    if (send(friend->fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)length) {
        close(friend->fd); /* half a frame: begin anew */
        connect_friend(friend);
        return;
    }
    if (type == WIRE_OPEN)
        for (int i = 0; i < 3; i++)
            friend->allowed[channel][i] += WIRE_WINDOW;
    if (type == WIRE_CREDIT && length == WIRE_HEADER + 4 && stream < 3)
        friend->allowed[channel][stream] += wire_get_u32(bytes + WIRE_HEADER);
}

static void agent_begins(void)
{
    static uint8_t bytes[WIRE_ANSWER + WIRE_HELLO_MAX];
    static const uint8_t filler[4000];
    struct wire_writer fields;
    wire_writer_init(&fields, bytes + WIRE_ANSWER, WIRE_HELLO_MAX);
    wire_put_u64(&fields, TAG_VERSION, 1);
    wire_put_text(&fields, TAG_HOSTNAME, "web");
    wire_put_bytes(&fields, TAG_DATA, filler, below(4000));
    wire_write_answer(bytes, keeper.agent.nonce, below(10) ? 1 : (uint16_t)below(3), (uint32_t)fields.length);
    spoil(bytes, WIRE_ANSWER + fields.length);
    say(agent, bytes, WIRE_ANSWER + fields.length);
}

static void agent_speaks(void)
{
    static uint8_t bytes[WIRE_FRAME_MAX + 16];
    uint32_t last = keeper.agent.next_channel;
    uint32_t channel = below(20) ? (last > 8 ? last - 8 : 0) + below(10) : (uint32_t)chance();
    uint8_t type = (uint8_t)(below(3) ? WIRE_DATA : 1 + below(9));
    size_t length = some_length();
    if (keeper.agent.state == AGENT_SEEKING && below(2)) {
        agent_begins();
        return;
    }
    if (below(40) == 0) {
        say(agent, bytes, random_bytes(bytes, 300));
        return;
    }
    if (type == WIRE_CREDIT && below(8)) {
        length = 4;
        wire_set_u32(bytes + WIRE_HEADER, (uint32_t)(below(4) ? below(300000) : chance()));
    }
    if (type == WIRE_DATA && below(20) == 0) { /* more than it may, perhaps */
        length = frame(bytes, type, (uint8_t)(1 + below(2)), channel, 65536);
        for (uint32_t times = below(8); times > 0; times--) {
            say(agent, bytes, length);
            for (int turns = 0; turns < 3; turns++)
                keeper_turn(&keeper, 0, -1);
        }
        return;
    }
    length = frame(bytes, type, (uint8_t)below(below(4) ? 3 : 256), channel, length);
    spoil(bytes, length);
    say(agent, bytes, length);
}

static void monitor_speaks(void)
{
    static const char *const lines[] = {
        "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n",
        "{\"return\": {}, \"id\": \"qmp_capabilities\"}\n",
        "{\"return\": {\"status\": \"running\", \"running\": true}, \"id\": \"query-status\"}\n",
        "{\"return\": {\"status\": \"io-error\"}, \"id\": \"query-status\"}\n",
        "{\"return\": [{\"label\": \"agent\", \"frontend-open\": true}, {}, 3], \"id\": \"query-chardev\"}\n",
        "{\"event\": \"VSERPORT_CHANGE\", \"data\": {\"open\": true, \"id\": \"agent0\"}}\n",
        "{\"event\": \"VSERPORT_CHANGE\", \"data\": {\"open\": true, \"id\": \"agent0\"}}\n",
        "{\"event\": \"VSERPORT_CHANGE\", \"data\": {\"open\": false, \"id\": \"agent0\"}}\n",
        "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\n",
        "{\"event\": \"BLOCK_IO_ERROR\", \"data\": {\"action\": \"stop\", \"nospace\": true}}\n",
        "{\"event\": \"STOP\"}\n", "{\"event\": \"RESUME\", \"timestamp\": {\"seconds\": 17e-3, \"m\": [[-0.5E+2], null]}}\n",
        "{\"event\": \"RESET\", \"data\": {\"text\": \"\\u001b[2J \\\\ \\\" \\/\"}}\n", "{\"event\": \"GUEST_PANICKED\"}\n",
    };
    static char bytes[70000];
    const char *line = lines[below(sizeof lines / sizeof *lines)];
    size_t length = strlen(line);
    memcpy(bytes, line, length);
    if (below(50) == 0) {
        length = below(sizeof bytes) + 1;
        memset(bytes, "[x {"[below(4)], length);
    } else if (below(20) == 0) {
        length = random_bytes((uint8_t *)bytes, 300);
    }
    spoil((uint8_t *)bytes, length);
    size_t cut = below(10) ? length : below((uint32_t)length + 1);
    say(qmp, bytes, cut);
}

/* While one and the same client keeps the gate, nobody else gets through to the agent. */
static void check_gate(void)
{
    static uint32_t passed[WIRE_CHANNELS_MAX];
    static const struct channel *gate;
    static uint32_t number;
    const struct channel *now = NULL;
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++) {
        const struct channel *channel = &keeper.channels[i];
        if (channel->kind == CHANNEL_HOLD && channel->gate) {
            MUST(!now);
            now = channel;
        }
    }
    for (int i = 0; i < WIRE_CHANNELS_MAX; i++) {
        const struct channel *channel = &keeper.channels[i];
        uint32_t ours = channel->kind == CHANNEL_AGENT ? channel->ours : 0;
        if (now && now == gate && now->theirs == number && ours != passed[i] && ours != 0)
            MUST(channel->client == now->client);
        passed[i] = ours;
    }
    gate = now;
    number = now ? now->theirs : 0;
}

static void step(void)
{
    static uint8_t noise[5000];
    struct friend *friend = &friends[below(CLIENTS)];
    clock_ms += below(5) ? 0 : below(700);
    switch (below(12)) {
    case 0: case 1: case 2: case 3:
        client_speaks(friend);
        break;
    case 4: case 5: case 6:
        agent_speaks();
        break;
    case 7:
        monitor_speaks();
        break;
    case 8:
        say(console, noise, below(sizeof noise));
        break;
    case 9:
        hear(friend);
        swallow(qmp);
        break;
    case 10:
        swallow(below(2) ? agent : console);
        break;
    default:
        if (below(8) == 0) {
            close(friend->fd);
            connect_friend(friend);
        }
    }
    for (uint32_t turns = below(3); turns > 0; turns--)
        keeper_turn(&keeper, 0, -1);
    check_gate();
    MUST(queue_total <= QUEUES_MAX + (1 << 20));
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1, stories = argc > 2 ? strtoull(argv[2], NULL, 10) : 100;
    pid_t self = getpid();
    child = fork(); /* somebody who may be killed */
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == self)
            pause();
        _exit(0);
    }
    signal(SIGPIPE, SIG_IGN);
    listen_somewhere();
    nest_json();
    for (story = seed; story < seed + stories; story++) {
        chance_state = story * 0x9E3779B97F4A7C15ULL + 1;
        clock_ms = 1000;
        for (int i = 0; i < 200; i++)
            read_json();
        begin();
        for (uint32_t i = below(100) ? STEPS : STEPS * 50; i > 0; i--)
            step();
        end();
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    printf("%llu stories\n", (unsigned long long)stories);
    return 0;
}
