/* The inner half of the keeper: what its parts know of each other.
 *
 *     local clients ── client.c ──┬── agent.c ────── the agent port (a socket to QEMU)
 *                                 └── verbs.c ─┬──── console.c ── the serial port (a socket to QEMU)
 *                                              └──── monitor.c ── QMP (a socket to QEMU)
 *     inner.c: descriptors in, the loop; qemu.c: the child; end.c: why it ended, and telling everybody
 *
 * One thread, one poll. Nothing here waits for a client, the guest or QEMU; whatever they send is bounded before it is kept.
 */
#ifndef KEEPER_H
#define KEEPER_H

#include "files.h"
#include "json.h"
#include "util.h"
#include "wire/wire.h"

#include <poll.h>
#include <sys/types.h>

enum {
    CLIENTS_MAX = 64,
    READER_SIZE = 2 * WIRE_FRAME_MAX,
    AGENT_QUEUE_HIGH = 262144,   /* beyond it clients' frames for the agent stay in their sockets */
    CLIENT_QUEUE_HIGH = 2 * WIRE_WINDOW_MAX, /* beyond it a client that does not read its answers is not read either */
    HELD_MAX = WIRE_WINDOW * 2,  /* frames of one channel kept while no agent answers */
    QUEUES_MAX = 64 << 20,       /* beyond it the client with most waiting for it is dropped */
    CONSOLE_QUEUE_HIGH = 4096,
    MONITOR_QUEUE_MAX = 16384,   /* a QEMU that leaves so many commands unread will not obey the next one either */
    FOLLOWER_HIGH = 65536,       /* followers of console and events read on when less than this waits for them */
    EVENT_LINE_MAX = 4096,
    RESETS_MAX = 3, /* a guest that was reset so often while somebody waits for its agent will not come up */
    LAST_WORDS = 4096,
};

struct descriptors {
    int listen, agent, console, qmp, status, exit, events, events_old, console_log, console_log_old, qemu_log, ready;
};

/* ---- clients and their channels ---- */

struct client {
    int fd; /* -1: free */
    bool gone;   /* to be dropped at the end of this turn */
    const struct queue *waits_for; /* its next frame is taken when this queue has shrunk to `until` */
    size_t until;
    struct wire_reader reader; /* buffer mapped only while it holds bytes */
    struct queue out;
};

enum channel_kind {
    CHANNEL_FREE = 0,
    CHANNEL_NEW,        /* its OPEN is being looked at */
    CHANNEL_AGENT,      /* passed on to the agent */
    CHANNEL_PENDING,    /* the same, waiting for an agent to answer */
    CHANNEL_WAIT_AGENT,
    CHANNEL_WAIT_END,
    CHANNEL_CONSOLE,
    CHANNEL_EVENTS,
    CHANNEL_HOLD,
};

/* HOLD: what happens when its connection drops */
enum on_drop { DROP_RESUME, DROP_QUIT, DROP_PAUSE };

struct channel {
    enum channel_kind kind;
    struct client *client;
    uint32_t theirs, ours; /* its number on the client's connection and on the agent's port */
    int64_t deadline;      /* of now_ms; 0: none */
    uint8_t ended;         /* bit per stream that had its EOF */
    struct wire_window down[3]; /* what may still be sent to the client, by stream */
    struct wire_window up;      /* what the client may still send on stream 0 */
    struct queue held;     /* PENDING: frames to pass on */
    struct wire_grant keys; /* CONSOLE: what the client typed */
    bool follow, input;
    enum on_drop drop;
    bool gate; /* HOLD: the agent answers nobody but this client */
    uint8_t resets; /* WAIT_AGENT: since it waits */
    uint64_t position, until; /* CONSOLE, EVENTS: in the ring; `until` without follow */
};

/* ---- QEMU and what it is connected to ---- */

struct monitor {
    struct queue in, out;
    bool skipping;       /* inside a line that was too long */
    bool greeted, ready; /* ready: capabilities negotiated and the state known */
};

enum agent_state { AGENT_CLOSED, AGENT_SEEKING, AGENT_LIVE, AGENT_REFUSED };

struct agent {
    enum agent_state state;
    struct wire_reader reader;
    struct queue out;
    uint8_t nonce[WIRE_NONCE];
    int64_t next_sync, pause; /* when SYNC is sent (again), and how long after that */
    bool gathers;   /* bulk comes: it is let grow for a moment, so that the next look at it is worth its while */
    uint32_t next_channel;
    bool torn; /* half a frame was sent: only a new life mends that */
    bool announced; /* it was told that the agent answers */
    bool shut;      /* whoever kept the gate died, and QEMU is ended for that */
    bool barred;    /* whoever kept the gate died, and the guest stands for that: until somebody keeps it anew */
    uint8_t hello[WIRE_HELLO_MAX];
    size_t hello_length;
};

enum machine_state { STATE_STARTING, STATE_RUNNING, STATE_PAUSED, STATE_ENDED };

struct qemu {
    pid_t pid;
    int words; /* its stdout and stderr */
    char last[LAST_WORDS];
    struct ring last_ring;
    size_t logged;
    bool killed; /* by us */
    int64_t kill_at; /* of now_ms; 0: never */
    int status;  /* of wait(), once ended */
};

struct keeper {
    struct descriptors fd;
    struct qemu qemu;
    struct monitor monitor;
    struct agent agent;
    struct client clients[CLIENTS_MAX];
    struct channel channels[WIRE_CHANNELS_MAX];

    struct queue console_out;
    struct log console_log, events_log;
    struct ring console, events;
    uint8_t console_bytes[65536], event_bytes[32768];

    enum machine_state state;
    char reason[48];          /* why it is paused, or why it ended */
    int64_t since, started;   /* now_ns of the state, of the start */
    bool ran, panicked, no_space; /* no_space: the last error of a disk was that it is full */
    char shutdown[48];        /* QEMU's word for why it shuts down */
    bool shutdown_by_guest;
    bool ended;
    int64_t accept_after;     /* of now_ms: descriptors had run out */
};

/* ---- client.c ---- */

void clients_init(struct keeper *keeper);
void client_accept(struct keeper *keeper);
void client_readable(struct keeper *keeper, struct client *client);
void client_process(struct keeper *keeper, struct client *client); /* take the frames that can be taken */
bool client_may_go_on(const struct client *client); /* it waited for a queue, and needs no more */
void client_drop(struct keeper *keeper, struct client *client);
void clients_limit_memory(struct keeper *keeper);
void client_send(struct client *client, uint8_t type, uint8_t stream, uint32_t channel, const void *payload, size_t length);

struct channel *channel_of_agent(struct keeper *keeper, uint32_t ours);
void channel_free(struct channel *channel);

/* Answer with RESULT and free. `error` NULL: success. `reason` may be NULL. */
void channel_answer(struct channel *channel, const char *error, const char *reason);
void channel_answer_fields(struct channel *channel, const struct wire_writer *fields);

/* Frees what a reader of frames has mapped when it holds nothing; maps it for the next bytes. */
bool reader_map(struct wire_reader *reader);
void reader_rest(struct wire_reader *reader);

/* ---- agent.c ---- */

void agent_port_opened(struct keeper *keeper);
void agent_port_closed(struct keeper *keeper);
void agent_readable(struct keeper *keeper);
void agent_tick(struct keeper *keeper, int64_t now);
void agent_open(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame);
void agent_from_client(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame);
void agent_hang_up(struct keeper *keeper, struct channel *channel); /* tell the agent; the caller frees */
bool agent_answers(const struct keeper *keeper, const struct client *client); /* NULL: anybody */
bool agent_has_gate(const struct keeper *keeper);
void agent_gate_moved(struct keeper *keeper); /* a gate came or went */

/* ---- verbs.c ---- */

bool verb_is_ours(const struct wire_frame *open);
void verb_open(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame);
void verb_frame(struct keeper *keeper, struct channel *channel, const struct wire_frame *frame);
void verb_dropped(struct keeper *keeper, struct channel *channel); /* its connection dropped; the caller frees */
bool verb_pump(struct keeper *keeper, struct channel *channel); /* give a follower what there is; whether there was any */
void verbs_agent_answers(struct keeper *keeper);
void verbs_guest_reset(struct keeper *keeper);
void answer_status(struct keeper *keeper, struct channel *channel);

/* ---- console.c and the journal ---- */

void console_init(struct keeper *keeper);
void console_readable(struct keeper *keeper);

/* Note an event: to the file, to followers. `data` is checked JSON or empty. */
void journal_add(struct keeper *keeper, const char *event, const char *data, size_t length);

/* ---- monitor.c ---- */

void monitor_readable(struct keeper *keeper);
void monitor_feed(struct keeper *keeper, const char *bytes, size_t length);
void monitor_command(struct keeper *keeper, const char *command);
void set_state(struct keeper *keeper, enum machine_state state, const char *reason);
void write_status(struct keeper *keeper);
const char *state_word(const struct keeper *keeper);

/* ---- qemu.c ---- */

/* Start QEMU with the descriptors 0–2 and `kept` alone. False: it could not even be forked. */
bool qemu_start(struct keeper *keeper, int *kept, size_t count, char *const argv[]);
void qemu_words(struct keeper *keeper); /* read what it printed */
void qemu_kill(struct keeper *keeper);

/* ---- end.c ---- */

void machine_ended(struct keeper *keeper);
void tell_ready(struct keeper *keeper, const char *text, size_t length);

/* ---- inner.c ---- */

int inner_main(int argc, char **argv);
void keeper_init(struct keeper *keeper, const struct descriptors *descriptors); /* of one that is all zeros */

/* One turn of the loop, waiting `most` milliseconds at most (-1: until something happens). */
void keeper_turn(struct keeper *keeper, int most, int signals);

/* ---- group.c ---- */

enum { GROUPS_MAX = 16 };

/* Control groups to enter: descriptors of their `cgroup.procs`. */
struct groups {
    int entrances[GROUPS_MAX];
    size_t count;
};

bool take_group(struct groups *groups, const char *number); /* one more; false: no room, or no such number */

/* This process, and with it all that come of it, from now on; the descriptors are closed. False, with words on standard error:
 * some could not be entered. */
bool enter_groups(const struct groups *groups);

/* ---- enter.c ---- */

int enter_main(int argc, char **argv);

/* ---- bare.c ---- */

int bare_main(int argc, char **argv);

/* ---- porter.c ---- */

int porter_main(int argc, char **argv);

#endif
