/* A published port: whoever connects to the host's port is connected to the machine's.
 *
 *     insula-keeper forward tcp|udp ADDRESS PORT
 *
 * Descriptor 3 is the host's socket: listening, or bound for udp. It runs in the fabric's network namespace, so the connections it
 * makes come from there. One thread; bytes go from socket to socket through a pipe and are never ours to look at.
 */
#define _GNU_SOURCE
#include "hold.h"
#include "util.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    LISTENER = 3,
    PIPE = 262144,        /* bytes on their way, each direction */
    PAIR_DESCRIPTORS = 6, /* two sockets, two pipes */
    SPARE_DESCRIPTORS = 32,
    CONNECT_MS = 20000,
    SESSIONS_MAX = 256,   /* udp: peers known at a time */
    SESSION_MS = 120000,  /* udp: one that was silent so long is forgotten (RFC 4787, 4.3) */
    DATAGRAM_MAX = 65536,
    EVENTS = 64,
};

struct target {
    struct sockaddr_storage address;
    socklen_t size;
};

/* ---- tcp ---- */

/* One direction: from a socket through a pipe to the other one. */
struct stream {
    int from, to, pipe[2];
    size_t held;
    bool ended, passed_on; /* no more comes; the other side was told */
};

struct pair {
    struct stream in, out; /* to the machine, and back */
    bool connecting, gone;
    struct pair *next_gone;
};

static int events; /* the epoll descriptor */
static size_t pairs, pairs_max;
static struct pair *gone_pairs;

static void watch(int fd, struct pair *pair, uint32_t what)
{
    struct epoll_event event = { .events = what | EPOLLET, .data.ptr = pair };
    if (epoll_ctl(events, EPOLL_CTL_ADD, fd, &event) < 0)
        pair->gone = true;
}

static bool open_stream(struct stream *stream, int from, int to)
{
    stream->from = from;
    stream->to = to;
    if (pipe2(stream->pipe, O_CLOEXEC | O_NONBLOCK) < 0) {
        stream->pipe[0] = stream->pipe[1] = -1;
        return false;
    }
    fcntl(stream->pipe[1], F_SETPIPE_SZ, PIPE); /* refused: it is smaller */
    return true;
}

static void close_stream(struct stream *stream)
{
    close_fd(&stream->pipe[0]);
    close_fd(&stream->pipe[1]);
}

/* At once for the kernel; the memory when no event of this turn can mean it any more. */
static void end_pair(struct pair *pair)
{
    close_stream(&pair->in);
    close_stream(&pair->out);
    close_fd(&pair->in.from);
    close_fd(&pair->in.to);
    pair->gone = true;
    pair->next_gone = gone_pairs;
    gone_pairs = pair;
    pairs--;
}

static void free_gone(void)
{
    while (gone_pairs) {
        struct pair *next = gone_pairs->next_gone;
        free(gone_pairs);
        gone_pairs = next;
    }
}

/* Move what can be moved. False: this connection is at its end by an error. */
static bool move(struct stream *stream)
{
    for (;;) {
        bool moved = false;
        ssize_t got = stream->ended ? -1 : splice(stream->from, NULL, stream->pipe[1], NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (got == 0)
            stream->ended = true;
        else if (got > 0)
            stream->held += (size_t)got, moved = true;
        else if (!stream->ended && errno != EAGAIN && errno != EINTR)
            return false;
        ssize_t sent = stream->held ? splice(stream->pipe[0], NULL, stream->to, NULL, stream->held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK) : 0;
        if (sent > 0)
            stream->held -= (size_t)sent, moved = true;
        else if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        if (stream->ended && stream->held == 0 && !stream->passed_on) {
            stream->passed_on = true;
            shutdown(stream->to, SHUT_WR);
        }
        if (!moved)
            return true;
    }
}

static void turn_pair(struct pair *pair)
{
    int number = 0;
    socklen_t size = sizeof number;
    if (pair->connecting) {
        struct pollfd done = { .fd = pair->in.to, .events = POLLOUT };
        if (poll(&done, 1, 0) == 0)
            return;
        if (getsockopt(pair->in.to, SOL_SOCKET, SO_ERROR, &number, &size) < 0 || number) {
            end_pair(pair);
            return;
        }
        pair->connecting = false;
    }
    if (!move(&pair->in) || !move(&pair->out) || (pair->in.passed_on && pair->out.passed_on))
        end_pair(pair);
}

/* Who was refused is told by a reset, as he would have been by the machine. */
static void refuse(int client)
{
    struct linger at_once = { .l_onoff = 1 };
    setsockopt(client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(client);
}

static void tune(int fd)
{
    int on = 1, patience = CONNECT_MS;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &patience, sizeof patience);
}

static void join(int client, const struct target *target)
{
    struct pair *pair = pairs < pairs_max ? calloc(1, sizeof *pair) : NULL;
    int machine = pair ? socket(target->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) : -1;
    if (machine < 0) {
        free(pair);
        refuse(client);
        return;
    }
    pairs++;
    tune(client);
    tune(machine);
    bool whole = open_stream(&pair->in, client, machine);
    pair->out.pipe[0] = pair->out.pipe[1] = -1;
    whole = whole && open_stream(&pair->out, machine, client);
    pair->connecting = true;
    if (!whole || (connect(machine, (const struct sockaddr *)&target->address, target->size) < 0 && errno != EINPROGRESS)) {
        end_pair(pair);
        return;
    }
    watch(client, pair, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    watch(machine, pair, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    if (pair->gone)
        end_pair(pair);
}

static void accept_all(const struct target *target)
{
    int client;
    while ((client = accept4(LISTENER, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0)
        join(client, target);
}

static size_t most_pairs(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return 128;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return (limit.rlim_cur - SPARE_DESCRIPTORS) / PAIR_DESCRIPTORS;
}

static void forward_tcp(const struct target *target)
{
    struct epoll_event seen[EVENTS], listener = { .events = EPOLLIN, .data.ptr = NULL };
    pairs_max = most_pairs();
    events = epoll_create1(EPOLL_CLOEXEC);
    set_nonblocking(LISTENER);
    if (events < 0 || epoll_ctl(events, EPOLL_CTL_ADD, LISTENER, &listener) < 0)
        return;
    for (;;) {
        int count = epoll_wait(events, seen, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct pair *pair = seen[i].data.ptr;
            if (!pair)
                accept_all(target);
            else if (!pair->gone)
                turn_pair(pair);
        }
        free_gone();
    }
}

/* ---- udp ---- */

struct session {
    int machine; /* -1: free */
    struct target peer;
    int64_t heard;
};

static struct session sessions[SESSIONS_MAX];
static char datagram[DATAGRAM_MAX];

static struct session *oldest(void)
{
    struct session *found = &sessions[0];
    for (size_t i = 0; i < SESSIONS_MAX; i++) {
        if (sessions[i].machine < 0)
            return &sessions[i];
        if (sessions[i].heard < found->heard)
            found = &sessions[i];
    }
    return found;
}

static struct session *session_of(const struct target *peer, const struct target *target)
{
    for (size_t i = 0; i < SESSIONS_MAX; i++)
        if (sessions[i].machine >= 0 && sessions[i].peer.size == peer->size &&
            memcmp(&sessions[i].peer.address, &peer->address, peer->size) == 0)
            return &sessions[i];
    struct session *session = oldest();
    close_fd(&session->machine);
    session->machine = socket(target->address.ss_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (session->machine < 0)
        return NULL;
    if (connect(session->machine, (const struct sockaddr *)&target->address, target->size) < 0) {
        close_fd(&session->machine);
        return NULL;
    }
    session->peer = *peer;
    return session;
}

static void from_outside(const struct target *target)
{
    struct target peer = { .size = sizeof peer.address };
    ssize_t got;
    while ((got = recvfrom(LISTENER, datagram, sizeof datagram, MSG_DONTWAIT, (struct sockaddr *)&peer.address, &peer.size)) >= 0) {
        struct session *session = session_of(&peer, target);
        if (session) {
            session->heard = now_ms();
            (void)!send(session->machine, datagram, (size_t)got, MSG_NOSIGNAL); /* lost, as datagrams may be */
        }
        peer = (struct target){ .size = sizeof peer.address };
    }
}

static void from_machine(struct session *session)
{
    ssize_t got;
    while ((got = recv(session->machine, datagram, sizeof datagram, MSG_DONTWAIT)) >= 0) {
        session->heard = now_ms();
        (void)!sendto(LISTENER, datagram, (size_t)got, MSG_NOSIGNAL | MSG_DONTWAIT,
                      (const struct sockaddr *)&session->peer.address, session->peer.size);
    }
}

static void forget_silent(void)
{
    int64_t now = now_ms();
    for (size_t i = 0; i < SESSIONS_MAX; i++)
        if (sessions[i].machine >= 0 && now - sessions[i].heard > SESSION_MS)
            close_fd(&sessions[i].machine);
}

static void forward_udp(const struct target *target)
{
    struct pollfd polls[SESSIONS_MAX + 1];
    for (size_t i = 0; i < SESSIONS_MAX; i++)
        sessions[i].machine = -1;
    for (;;) {
        bool any = false;
        polls[SESSIONS_MAX] = (struct pollfd){ .fd = LISTENER, .events = POLLIN };
        for (size_t i = 0; i < SESSIONS_MAX; i++) {
            polls[i] = (struct pollfd){ .fd = sessions[i].machine, .events = POLLIN };
            any = any || sessions[i].machine >= 0;
        }
        poll(polls, SESSIONS_MAX + 1, any ? SESSION_MS / 4 : -1);
        for (size_t i = 0; i < SESSIONS_MAX; i++)
            if (polls[i].revents && sessions[i].machine >= 0)
                from_machine(&sessions[i]);
        if (polls[SESSIONS_MAX].revents)
            from_outside(target);
        forget_silent();
    }
}

/* ---- arguments ---- */

static bool parse_target(const char *address, const char *port, struct target *target)
{
    struct sockaddr_in *four = (struct sockaddr_in *)&target->address;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)&target->address;
    uint16_t number = htons((uint16_t)atoi(port));
    if (inet_pton(AF_INET, address, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = number;
        target->size = sizeof *four;
        return number != 0;
    }
    six->sin6_family = AF_INET6;
    six->sin6_port = number;
    target->size = sizeof *six;
    return number != 0 && inet_pton(AF_INET6, address, &six->sin6_addr) == 1;
}

/* As process 1 of its namespace it hears only what it says that it hears. */
static void end_now(int number)
{
    (void)number;
    _exit(0);
}

int forward_main(int argc, char **argv)
{
    struct target target = { .size = 0 };
    bool udp = argc == 3 && strcmp(argv[0], "udp") == 0;
    if (argc != 3 || (!udp && strcmp(argv[0], "tcp") != 0) || !parse_target(argv[1], argv[2], &target)) {
        dprintf(2, "usage: insula-keeper forward tcp|udp ADDRESS PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, end_now);
    if (udp)
        forward_udp(&target);
    else
        forward_tcp(&target);
    perror("insula-keeper forward");
    return 1;
}
