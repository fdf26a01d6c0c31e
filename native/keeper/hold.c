/* The holder keeps a fabric: the network namespace that machines' networks are in, and the programs that serve it.
 *
 *     insula-keeper hold --listen N [--own-user | --user N] [--net N]
 *     insula-keeper hold --client N [--own-user]
 *
 * N are open descriptors: a listening SOCK_SEQPACKET socket, or a connected one, with whose end all ends; a network namespace that is there already, without which one is made;
 * and the user namespace that owns it. With --own-user that is made, too, and the caller is root in it. It leaves its caller when it serves, or says why it cannot.
 *
 * A message is a request, and so is its answer: NUL-separated words, the first of an answer being `ok` or `error`. Descriptors go
 * along both ways. Only who has our own user id is heard.
 *
 *     hello                        ok holder PID, or ok orphan (see below)
 *     namespaces                   ok, with the network namespace and the user namespace that owns it, if that is its own
 *     tap NAME                     ok, with an open tap device
 *     socket DOMAIN TYPE PROTOCOL  ok, with a socket of the namespace
 *     sysctl NAME VALUE            ok; NAME is a path below /proc/sys/net
 *     start NAME …, stop NAME, signal NAME NUMBER, children       see hold.h
 *     quit                         ok, when all has ended
 *
 * The process that serves is outside the namespaces, because some of the programs it starts must be. Another one is inside and only
 * waits. Should the first die the second answers in its place, as `orphan`: it hands out the namespaces, so that another holder can
 * go on with them, and leaves when told to quit. The programs that were started end with the first.
 */
#define _GNU_SOURCE
#include "hold.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TAP = 0x0002, NO_INFORMATION = 0x1000, VNET_HEADER = 0x4000 /* linux/if_tun.h, which a libc need not bring */ };

#define SET_INTERFACE _IOW('T', 202, int) /* TUNSETIFF */

/* ---- requests ---- */

static void give_tap(int client, const char *name)
{
    struct ifreq request = { .ifr_flags = TAP | NO_INFORMATION | VNET_HEADER };
    int tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (tap < 0) {
        reply_error(client, "/dev/net/tun", errno);
        return;
    }
    if (strlen(name) >= sizeof request.ifr_name) {
        reply_error(client, name, EINVAL);
        return;
    }
    strcpy(request.ifr_name, name);
    if (ioctl(tap, (int)SET_INTERFACE, &request) < 0)
        reply_error(client, name, errno);
    else
        reply(client, "ok", 2, &tap, 1);
}

static void give_socket(int client, char **words)
{
    int given = socket(atoi(words[1]), atoi(words[2]) | SOCK_CLOEXEC, atoi(words[3]));
    if (given < 0)
        reply_error(client, "socket", errno);
    else
        reply(client, "ok", 2, &given, 1);
}

static void set_sysctl(int client, const char *name, const char *value)
{
    char path[256];
    int length = snprintf(path, sizeof path, "/proc/sys/net/%s", name);
    if ((size_t)length >= sizeof path || strstr(name, ".."))
        reply_error(client, name, EINVAL);
    else if (write_text(path, value))
        reply_ok(client);
    else
        reply_error(client, path, errno);
}

/* What must be done in the namespaces is done by a process that is there for just that. False: it is nothing of the kind. */
static bool do_inside(struct holder *holder, int client, struct request *request)
{
    char **words = request->words;
    bool tap = request->count == 2 && strcmp(words[0], "tap") == 0;
    bool made = request->count == 4 && strcmp(words[0], "socket") == 0;
    bool set = request->count == 3 && strcmp(words[0], "sysctl") == 0;
    if (!tap && !made && !set)
        return false;
    pid_t pid = fork();
    if (pid == 0) {
        if (!enter_spaces(&holder->spaces))
            reply_error(client, "cannot enter the fabric's namespaces", errno);
        else if (tap)
            give_tap(client, words[1]);
        else if (made)
            give_socket(client, words);
        else
            set_sysctl(client, words[1], words[2]);
        _exit(0);
    }
    if (pid < 0)
        reply_error(client, "fork", errno);
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return true;
}

static void quit(struct holder *holder, int client)
{
    children_end();
    kill(holder->inside, SIGKILL);
    waitpid(holder->inside, NULL, 0);
    close_fd(&holder->listen); /* from now on nobody is here */
    if (client >= 0)
        reply_ok(client);
    _exit(0);
}

static void obey(struct holder *holder, int client, struct request *request)
{
    char **words = request->words, text[64];
    size_t count = request->count;
    if (count == 1 && strcmp(words[0], "hello") == 0)
        reply(client, text, (size_t)snprintf(text, sizeof text, "ok%cholder%c%d", 0, 0, (int)holder->inside), NULL, 0);
    else if (count == 1 && strcmp(words[0], "namespaces") == 0)
        reply_spaces(client, "ok", 2, &holder->spaces);
    else if (count == 1 && strcmp(words[0], "children") == 0)
        children_list(client);
    else if (count == 1 && strcmp(words[0], "quit") == 0)
        quit(holder, client);
    else if (count > 1 && strcmp(words[0], "start") == 0)
        children_start(client, request, &holder->spaces, holder->self);
    else if (count == 2 && strcmp(words[0], "stop") == 0)
        children_stop(client, words[1]);
    else if (count == 3 && strcmp(words[0], "signal") == 0)
        children_signal(client, words[1], atoi(words[2]));
    else if (!do_inside(holder, client, request))
        reply_error(client, "no such request", EINVAL);
}

/* ---- the life of a holder ---- */

static void add_client(struct holder *holder)
{
    int client = accept_own(holder->listen);
    for (size_t i = 0; client >= 0 && i < HOLD_CLIENTS_MAX; i++)
        if (holder->clients[i] < 0) {
            holder->clients[i] = client;
            return;
        }
    close_fd(&client);
}

static void hear_client(struct holder *holder, int *client)
{
    static struct request request;
    bool there = request_receive(*client, &request);
    children_reap(); /* what its asker knows to have ended is no child any more, though the signal may still be on its way */
    if (there && request.count > 0)
        obey(holder, *client, &request);
    request_close_fds(&request);
    if (!there)
        close_fd(client);
    if (!there && holder->brief)
        quit(holder, -1);
}

static void hear_ends(int ends)
{
    struct signalfd_siginfo heard[8];
    while (read(ends, heard, sizeof heard) > 0)
        ;
    children_reap();
}

static void serve(struct holder *holder, int ends)
{
    struct pollfd polls[HOLD_CLIENTS_MAX + 2];
    for (;;) {
        polls[0] = (struct pollfd){ .fd = holder->listen, .events = POLLIN };
        polls[1] = (struct pollfd){ .fd = ends, .events = POLLIN };
        for (size_t i = 0; i < HOLD_CLIENTS_MAX; i++)
            polls[i + 2] = (struct pollfd){ .fd = holder->clients[i], .events = POLLIN };
        if (poll(polls, HOLD_CLIENTS_MAX + 2, -1) < 0)
            continue;
        if (polls[1].revents)
            hear_ends(ends);
        for (size_t i = 0; i < HOLD_CLIENTS_MAX; i++)
            if (polls[i + 2].revents)
                hear_client(holder, &holder->clients[i]);
        if (polls[0].revents)
            add_client(holder);
    }
}

static bool is_open(const char *text, int *fd)
{
    *fd = atoi(text);
    return *fd >= 3 && fcntl(*fd, F_SETFD, FD_CLOEXEC) == 0;
}

static bool parse(struct holder *holder, int argc, char **argv)
{
    for (int at = 0; at < argc; at++) {
        bool last = at + 1 == argc;
        if (strcmp(argv[at], "--own-user") == 0)
            holder->own_user = true;
        else if (!last && strcmp(argv[at], "--listen") == 0 && is_open(argv[at + 1], &holder->listen))
            at++;
        else if (!last && strcmp(argv[at], "--client") == 0 && is_open(argv[at + 1], &holder->clients[0]))
            at++;
        else if (!last && strcmp(argv[at], "--net") == 0 && is_open(argv[at + 1], &holder->spaces.net))
            at++;
        else if (!last && strcmp(argv[at], "--user") == 0 && is_open(argv[at + 1], &holder->spaces.user))
            at++;
        else
            return false;
    }
    holder->brief = holder->clients[0] >= 0;
    return (holder->listen >= 0) != holder->brief;
}

static void hold(struct holder *holder, int told)
{
    sigset_t all, ended;
    setsid();
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL); /* nothing but SIGKILL ends it, and `quit` */
    int number = start_inside(holder);
    (void)!write(told, &number, sizeof number);
    if (number)
        _exit(1);
    be_silent();
    int kept[] = { holder->listen, holder->clients[0], holder->self, holder->life, holder->spaces.net, holder->spaces.user };
    close_others(kept, 6);
    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    serve(holder, signalfd(-1, &ended, SFD_CLOEXEC | SFD_NONBLOCK));
}

int hold_main(int argc, char **argv)
{
    static struct holder holder = { .listen = -1, .self = -1, .life = -1, .spaces = { -1, -1 } };
    int told[2], number = EIO;
    for (size_t i = 0; i < HOLD_CLIENTS_MAX; i++)
        holder.clients[i] = -1;
    if (!parse(&holder, argc, argv)) {
        dprintf(2, "usage: insula-keeper hold --listen N [--own-user | --user N] [--net N]\n"
                   "       insula-keeper hold --client N [--own-user]\n");
        return 2;
    }
    holder.self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    set_nonblocking(holder.brief ? holder.clients[0] : holder.listen);
    if (holder.self < 0 || pipe2(told, O_CLOEXEC) < 0 || chdir("/") < 0) {
        perror("insula-keeper hold");
        return 1;
    }
    pid_t pid = fork();
    if (pid == 0)
        hold(&holder, told[1]);
    close(told[1]);
    if (pid < 0 || read(told[0], &number, sizeof number) != sizeof number || number) {
        dprintf(2, "cannot make a network namespace: %s\n", strerror(number));
        return 1;
    }
    return 0;
}
