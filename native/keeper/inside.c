/* The holder's namespaces, and the process that waits in them. */
#define _GNU_SOURCE
#include "hold.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

bool enter_spaces(const struct spaces *spaces)
{
    return (spaces->user < 0 || setns(spaces->user, CLONE_NEWUSER) == 0) && setns(spaces->net, CLONE_NEWNET) == 0;
}

bool write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    int number = errno;
    if (fd >= 0)
        close(fd);
    errno = number;
    return done;
}

static bool become_root_inside(uid_t uid, gid_t gid)
{
    char users[32], groups[32];
    snprintf(users, sizeof users, "0 %u 1", (unsigned)uid);
    snprintf(groups, sizeof groups, "0 %u 1", (unsigned)gid);
    return write_text("/proc/self/setgroups", "deny") && write_text("/proc/self/uid_map", users) &&
           write_text("/proc/self/gid_map", groups);
}

bool enter_own_user(void)
{
    uid_t uid = geteuid();
    gid_t gid = getegid();
    return unshare(CLONE_NEWUSER) == 0 && become_root_inside(uid, gid);
}

static bool bring_up_loopback(void)
{
    struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
    int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool done = any >= 0 && ioctl(any, SIOCSIFFLAGS, &request) == 0;
    if (any >= 0)
        close(any);
    return done;
}

static bool make_spaces(const struct holder *holder)
{
    uid_t uid = geteuid();
    gid_t gid = getegid();
    if (holder->spaces.net >= 0)
        return enter_spaces(&holder->spaces);
    if (holder->spaces.user >= 0 && setns(holder->spaces.user, CLONE_NEWUSER) < 0)
        return false;
    if (unshare(CLONE_NEWNET | (holder->own_user ? CLONE_NEWUSER : 0)) < 0)
        return false;
    return (!holder->own_user || become_root_inside(uid, gid)) && bring_up_loopback();
}

static void serve_orphans(int listen, const struct spaces *spaces)
{
    static struct request request;
    for (;;) {
        struct pollfd wait = { .fd = listen, .events = POLLIN };
        poll(&wait, 1, -1);
        int client = accept_own(listen);
        if (client < 0)
            continue;
        wait.fd = client;
        while (poll(&wait, 1, 1000) > 0 && request_receive(client, &request)) {
            request_close_fds(&request);
            if (request.count > 0 && strcmp(request.words[0], "quit") == 0) {
                reply_ok(client);
                _exit(0);
            }
            reply_spaces(client, "ok\0orphan", 9, spaces);
        }
        close(client);
    }
}

static int open_own(const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/ns/%s", name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

void be_silent(void)
{
    int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; fd++)
        dup2(nowhere, fd);
}

/* The one inside. It says one byte when the namespaces are as they shall be, or an errno. */
static void stay_inside(struct holder *holder, int ready, int life)
{
    unsigned char word = 0;
    bool own = holder->own_user || holder->spaces.user >= 0;
    if (!make_spaces(holder))
        word = errno ? (unsigned char)errno : 255;
    (void)!write(ready, &word, 1);
    close(ready);
    if (word)
        _exit(1);
    struct spaces spaces = { .net = open_own("net"), .user = own ? open_own("user") : -1 };
    int kept[] = { holder->listen, life, spaces.net, spaces.user };
    be_silent();
    close_others(kept, 4);
    while (read(life, &word, 1) < 0 && errno == EINTR)
        ;
    if (holder->brief)
        _exit(0);
    serve_orphans(holder->listen, &spaces);
}

static int open_of(pid_t pid, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/%s", (int)pid, name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* 0, or the errno that says why not. */
int start_inside(struct holder *holder)
{
    int ready[2], life[2];
    unsigned char word = 255;
    if (pipe2(ready, O_CLOEXEC) < 0 || pipe2(life, O_CLOEXEC) < 0)
        return errno;
    holder->inside = fork();
    if (holder->inside < 0)
        return errno;
    if (holder->inside == 0) {
        close(ready[0]);
        close(life[1]);
        stay_inside(holder, ready[1], life[0]);
    }
    close(ready[1]);
    close(life[0]);
    holder->life = life[1];
    ssize_t got = read(ready[0], &word, 1);
    close(ready[0]);
    if (got != 1 || word)
        return word;
    if (holder->spaces.net < 0) {
        holder->spaces.net = open_of(holder->inside, "net");
        if (holder->own_user)
            holder->spaces.user = open_of(holder->inside, "user");
    }
    return holder->spaces.net < 0 || (holder->own_user && holder->spaces.user < 0) ? errno : 0;
}
