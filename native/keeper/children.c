/* The programs a holder has started, each known by a name. They end with it. */
#define _GNU_SOURCE
#include "hold.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
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

/* Go on as process 1 of a namespace of its own, which is the holder's child as this one is, once the holder has been told of it.
 * It takes the rights that one has inside, so the holder itself cannot start it so. */
static void be_first(int trouble)
{
    int told[2];
    pid_t first = pipe2(told, O_CLOEXEC) < 0 ? -1 : (pid_t)syscall(SYS_clone, CLONE_NEWPID | CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
    char zero = 0;
    if (first < 0)
        fail(trouble, "cannot have processes of its own");
    if (first == 0) {
        close(told[1]);
        while (read(told[0], &zero, 1) < 0 && errno == EINTR)
            ;
        close(told[0]);
        return;
    }
    struct iovec parts[] = { { &zero, 1 }, { &first, sizeof first } };
    _exit(writev(trouble, parts, 2) < 0 ? 126 : 0);
}

/* Whether nobody reads there any more: the holder does until this has become the program, so it has ended. */
static bool is_unheard(int trouble)
{
    struct pollfd end = { .fd = trouble };
    return poll(&end, 1, 0) != 0;
}

static void be_in_room(struct request *request, int trouble, int calls)
{
    char **words = request->words;
    long uid = strcmp(words[3], "-") == 0 ? -1 : strtol(words[3], NULL, 10);
    be_first(trouble);
    if (!enter_room(strcmp(words[5], "-") == 0 ? NULL : words[5]))
        fail(trouble, "cannot make a room");
    if (!bound_resources(uid >= 0))
        fail(trouble, "cannot bound what it takes");
    if (!reduce_rights(uid, strtoul(words[4], NULL, 16)))
        fail(trouble, "cannot give up rights");
    /* Late, for a change of user takes it back. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || is_unheard(trouble))
        _exit(126);
    if (calls >= 0 && !take_calls(calls))
        fail(trouble, "cannot be held to its system calls");
}

static void become_child(struct request *request, const struct spaces *spaces, int self, pid_t holder, int trouble)
{
    char **words = request->words;
    bool inside = strcmp(words[2], "inside") == 0, whole = strcmp(words[4], "-") == 0;
    bool held = strchr(words[4], '+') && request->fd_count > 0;
    int calls = held ? fcntl(request->fds[--request->fd_count], F_DUPFD_CLOEXEC, 128) : -1;
    trouble = fcntl(trouble, F_DUPFD_CLOEXEC, 128);
    self = fcntl(self, F_DUPFD_CLOEXEC, 128);
    if (inside && !enter_spaces(spaces))
        fail(trouble, "cannot enter the fabric's namespaces");
    if (!inside && !whole && geteuid() != 0 && !enter_own_user())
        fail(trouble, "cannot have a user namespace");
    if (!place_descriptors(request))
        fail(trouble, "cannot hand over descriptors");
    setsid();
    be_default();
    if (whole)
        guard(trouble, holder);
    else
        be_in_room(request, trouble, calls);
    execute(words + START_WORDS - 1, self);
    fail(trouble, "cannot be executed");
}

/* Everything of ours is close-on-exec; so the end of `trouble` without a word says that the program runs. A zero and a number
 * before that say which process it is now, where it is not `pid` any more, which has then ended. */
static bool hear_trouble(int trouble, char *text, size_t size, pid_t *pid)
{
    size_t length = 0;
    ssize_t got;
    while ((got = read(trouble, text + length, size - 1 - length)) > 0 || (got < 0 && errno == EINTR))
        length += got > 0 ? (size_t)got : 0;
    if (length > sizeof *pid && text[0] == 0) {
        waitpid(*pid, NULL, 0);
        memcpy(pid, text + 1, sizeof *pid);
        length -= 1 + sizeof *pid;
        memmove(text, text + 1 + sizeof *pid, length);
    }
    text[length] = 0;
    return length > 0;
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
    } else if (hear_trouble(trouble[0], text, sizeof text, &pid)) {
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
