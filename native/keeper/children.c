/* The programs a holder has started, each known by a name. They end with it. */
#define _GNU_SOURCE
#include "hold.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { START_WORDS = 7, POLITE_MS = 2000, AT_EMPTY = 0x1000 /* AT_EMPTY_PATH */ };

struct child {
    pid_t pid; /* 0: free */
    char name[HOLD_NAME_MAX];
};

static struct child children[HOLD_CHILDREN_MAX];

static struct child *find(const char *name)
{
    for (size_t i = 0; i < HOLD_CHILDREN_MAX; i++)
        if (children[i].pid && strcmp(children[i].name, name) == 0)
            return &children[i];
    return NULL;
}

static struct child *unused(void)
{
    for (size_t i = 0; i < HOLD_CHILDREN_MAX; i++)
        if (!children[i].pid)
            return &children[i];
    return NULL;
}

void children_reap(void)
{
    for (size_t i = 0; i < HOLD_CHILDREN_MAX; i++)
        if (children[i].pid && waitpid(children[i].pid, NULL, WNOHANG) != 0)
            children[i].pid = 0;
}

/* ---- starting ---- */

/* Descriptors of the message become 1 and 2 (the first) and 3, 4… (the others). None of them is below 3 now. */
static bool place_descriptors(struct request *request)
{
    for (size_t i = 0; i < request->fd_count; i++) { /* out of the way of their places */
        int high = fcntl(request->fds[i], F_DUPFD_CLOEXEC, 64);
        if (high < 0)
            return false;
        request->fds[i] = high;
    }
    int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
    int words = request->fd_count > 0 ? request->fds[0] : nowhere;
    if (nowhere < 0 || dup2(nowhere, 0) < 0 || dup2(words, 1) < 0 || dup2(words, 2) < 0)
        return false;
    for (size_t i = 1; i < request->fd_count; i++)
        if (dup2(request->fds[i], 2 + (int)i) < 0)
            return false;
    return true;
}

static void be_default(void)
{
    sigset_t none;
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void fail(int trouble, const char *what)
{
    dprintf(trouble, "%s: %s", what, strerror(errno));
    _exit(126);
}

/* Where /proc is not to be seen, a program of ours is executed by its descriptor. */
static void execute(char **words, int self)
{
    static char *environment[] = { "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", NULL };
    if (strcmp(words[0], "insula-keeper") == 0)
        syscall(SYS_execveat, self, "", words, environment, AT_EMPTY);
    else
        execve(words[0], words, environment);
}

/* A program that is not in a room may change its rights, and with them loses what makes it end with us. So it gets a parent that
 * does not, and stays to end it. */
static void guard(int trouble, pid_t holder)
{
    sigset_t heard, none;
    int nothing[1] = { 0 };
    sigemptyset(&none);
    sigemptyset(&heard);
    sigaddset(&heard, SIGTERM);
    sigaddset(&heard, SIGCHLD);
    sigprocmask(SIG_BLOCK, &heard, NULL);
    pid_t guarded = fork();
    if (guarded < 0)
        fail(trouble, "cannot be started");
    if (guarded == 0) {
        sigprocmask(SIG_SETMASK, &none, NULL);
        return;
    }
    close_others(nothing, 0);
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != holder)
        kill(guarded, SIGKILL);
    while (waitpid(guarded, NULL, WNOHANG) == 0)
        if (sigwaitinfo(&heard, NULL) == SIGTERM)
            kill(guarded, SIGKILL);
    _exit(0);
}

static void become_child(struct request *request, const struct spaces *spaces, int self, pid_t holder, int trouble)
{
    char **words = request->words;
    bool inside = strcmp(words[2], "inside") == 0, whole = strcmp(words[4], "-") == 0;
    long uid = strcmp(words[3], "-") == 0 ? -1 : strtol(words[3], NULL, 10);
    trouble = fcntl(trouble, F_DUPFD_CLOEXEC, 128);
    self = fcntl(self, F_DUPFD_CLOEXEC, 128);
    if (inside && !enter_spaces(spaces))
        fail(trouble, "cannot enter the fabric's namespaces");
    if (!place_descriptors(request))
        fail(trouble, "cannot hand over descriptors");
    setsid();
    be_default();
    if (!whole && !enter_room(strcmp(words[5], "-") == 0 ? NULL : words[5]))
        fail(trouble, "cannot make a room");
    if (!whole && !reduce_rights(uid, strtoul(words[4], NULL, 16)))
        fail(trouble, "cannot give up rights");
    if (whole)
        guard(trouble, holder);
    /* Last, for a change of user takes it back. */
    else if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != holder)
        _exit(126);
    execute(words + START_WORDS - 1, self);
    fail(trouble, "cannot be executed");
}

/* Everything of ours is close-on-exec; so the end of `trouble` without a word says that the program runs. */
static bool hear_trouble(int trouble, char *text, size_t size)
{
    ssize_t got;
    do
        got = read(trouble, text, size - 1);
    while (got < 0 && errno == EINTR);
    text[got > 0 ? got : 0] = 0;
    return got > 0;
}

void children_start(int client, struct request *request, const struct spaces *spaces, int self)
{
    char text[256], answer[512];
    int trouble[2];
    struct child *child = unused();
    if (request->count < START_WORDS || strlen(request->words[1]) >= HOLD_NAME_MAX || !child) {
        reply_error(client, "cannot start", child ? EINVAL : EAGAIN);
        return;
    }
    if (find(request->words[1])) {
        reply_error(client, request->words[1], EEXIST);
        return;
    }
    if (pipe2(trouble, O_CLOEXEC) < 0) {
        reply_error(client, "pipe", errno);
        return;
    }
    pid_t holder = getpid(), pid = fork();
    if (pid == 0)
        become_child(request, spaces, self, holder, trouble[1]);
    int number = errno;
    close(trouble[1]);
    if (pid < 0) {
        reply_error(client, "fork", number);
    } else if (hear_trouble(trouble[0], text, sizeof text)) {
        waitpid(pid, NULL, 0);
        int length = snprintf(answer, sizeof answer, "error%c%s %s", 0, request->words[START_WORDS - 1], text);
        reply(client, answer, (size_t)length < sizeof answer ? (size_t)length : sizeof answer - 1, NULL, 0);
    } else {
        child->pid = pid;
        strcpy(child->name, request->words[1]);
        reply_ok(client);
    }
    close(trouble[0]);
}

/* ---- ending ---- */

/* It is ours and not yet waited for, so the number is its own. */
static void end_child(struct child *child)
{
    int pidfd = (int)syscall(SYS_pidfd_open, child->pid, 0);
    struct pollfd ended = { .fd = pidfd, .events = POLLIN };
    kill(child->pid, SIGTERM);
    if (pidfd < 0 || poll(&ended, 1, POLITE_MS) <= 0)
        kill(child->pid, SIGKILL);
    while (waitpid(child->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    if (pidfd >= 0)
        close(pidfd);
    child->pid = 0;
}

void children_stop(int client, const char *name)
{
    struct child *child = find(name);
    if (child)
        end_child(child);
    reply_ok(client);
}

void children_signal(int client, const char *name, int number)
{
    struct child *child = find(name);
    if (child && kill(child->pid, number) == 0)
        reply_ok(client);
    else
        reply_error(client, name, child ? errno : ESRCH);
}

void children_list(int client)
{
    static char text[HOLD_CHILDREN_MAX * HOLD_NAME_MAX + 8];
    size_t length = 2;
    memcpy(text, "ok", 2);
    for (size_t i = 0; i < HOLD_CHILDREN_MAX; i++)
        if (children[i].pid)
            length += (size_t)sprintf(text + length, "%c%s", 0, children[i].name);
    reply(client, text, length, NULL, 0);
}

void children_end(void)
{
    for (size_t i = 0; i < HOLD_CHILDREN_MAX; i++)
        if (children[i].pid)
            kill(children[i].pid, SIGTERM);
    for (size_t i = 0; i < HOLD_CHILDREN_MAX; i++)
        if (children[i].pid)
            end_child(&children[i]);
}
