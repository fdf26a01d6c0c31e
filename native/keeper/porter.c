/* The porter stands outside the jail and only waits, so that somebody is told when the machine has ended:
 *
 *     insula-keeper porter [--ready-fd N] [--patience SECONDS] [--show FILE PLACE]… [--group N]… [--ended-argc K WORD…]
 *                          -- JAIL-COMMAND…
 *
 * It leaves its caller at once (the process that was started exits with 0) and starts JAIL-COMMAND with all the descriptors it
 * was given itself. Number N is the caller's pipe for the porter; for JAIL-COMMAND the same number is the porter's own pipe, on
 * which the inner half says `ready` or `failed: …`. One such line is passed to the caller; if there is none because
 * JAIL-COMMAND failed, the line holds what that said on standard error. When nothing comes within SECONDS (90), the caller
 * is told so. Whoever said neither is killed, with all that came from it.
 *
 * --show (root only) makes FILE appear at PLACE, an existing file, for JAIL-COMMAND alone: in a mount namespace of its own. So a
 * jail whose user may not walk to FILE can be shown it, as long as that user may read FILE itself.
 *
 * --group: JAIL-COMMAND, and with it all that comes of it, is put into the control group whose `cgroup.procs` is open as N. The
 * porter itself is in none of them: it is who outlives the machine, and a group can go only when nobody is in it.
 *
 * When the inner half is pid 1 of a pid namespace, the process that made the namespace (bwrap's own) is of no more use and is
 * killed; the inner half then becomes a child of the porter, who is subreaper. When no child is left the K words are executed.
 */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATIENCE = 90 /* seconds */, SHOWN_MAX = 8 };

struct porter {
    int ready_fd;
    double patience;
    struct { const char *file, *place; } shown[SHOWN_MAX];
    size_t shown_count;
    struct groups groups;
    char **ended; /* NULL-terminated copy, or NULL */
    char **command;
};

struct heard {
    char text[2048];
    size_t length;
};

/* ---- arguments ---- */

static bool take_ended(struct porter *porter, const char *count, int argc, char **words)
{
    int wanted = atoi(count);
    if (wanted < 1 || wanted > argc)
        return false;
    porter->ended = calloc((size_t)wanted + 1, sizeof *porter->ended);
    if (porter->ended)
        memcpy(porter->ended, words, (size_t)wanted * sizeof *words);
    return porter->ended != NULL;
}

static bool parse(struct porter *porter, int argc, char **argv)
{
    int at = 0;
    while (at + 1 < argc && strcmp(argv[at], "--") != 0) {
        if (strcmp(argv[at], "--ready-fd") == 0) {
            porter->ready_fd = atoi(argv[at + 1]);
            if (porter->ready_fd < 3 || fcntl(porter->ready_fd, F_GETFD) < 0)
                return false;
            at += 2;
        } else if (strcmp(argv[at], "--patience") == 0) {
            porter->patience = strtod(argv[at + 1], NULL);
            if (!(porter->patience > 0 && porter->patience < 86400))
                return false;
            at += 2;
        } else if (strcmp(argv[at], "--show") == 0 && at + 2 < argc && porter->shown_count < SHOWN_MAX) {
            porter->shown[porter->shown_count].file = argv[at + 1];
            porter->shown[porter->shown_count++].place = argv[at + 2];
            at += 3;
        } else if (strcmp(argv[at], "--group") == 0) {
            if (!take_group(&porter->groups, argv[at + 1]))
                return false;
            at += 2;
        } else if (strcmp(argv[at], "--ended-argc") == 0) {
            if (porter->ended || !take_ended(porter, argv[at + 1], argc - at - 2, argv + at + 2))
                return false;
            at += 2 + atoi(argv[at + 1]);
        } else {
            return false;
        }
    }
    porter->command = argv + at + 1;
    return at + 1 < argc;
}

/* ---- starting the jail ---- */

/* Standard input, output and error from and to nowhere. */
static void be_silent(void)
{
    int nowhere = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3 && nowhere >= 0; fd++)
        if (fd != nowhere)
            dup2(nowhere, fd);
    if (nowhere > 2)
        close(nowhere);
}

/* Nothing of it is seen outside this process and what comes from it, and it ends with them. */
static bool show(const struct porter *porter)
{
    if (porter->shown_count == 0)
        return true;
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
        dprintf(2, "cannot make a mount namespace: %s\n", strerror(errno));
        return false;
    }
    for (size_t i = 0; i < porter->shown_count; i++)
        if (mount(porter->shown[i].file, porter->shown[i].place, NULL, MS_BIND, NULL) < 0) {
            dprintf(2, "cannot show %s at %s: %s\n", porter->shown[i].file, porter->shown[i].place, strerror(errno));
            return false;
        }
    return true;
}

static void become_jail(const struct porter *porter, int ready, int words)
{
    sigset_t none;
    if (porter->ready_fd >= 0)
        dup2(ready, porter->ready_fd);
    dup2(words, 2);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, 0); /* where it stays in our session, what it signals as its process group is not us */
    if (!enter_groups(&porter->groups) || !show(porter))
        _exit(126);
    execvp(porter->command[0], porter->command);
    dprintf(2, "cannot start %s: %s\n", porter->command[0], strerror(errno));
    _exit(127);
}

static pid_t start_jail(const struct porter *porter, int *ready, int *words)
{
    int ready_pipe[2], words_pipe[2];
    if (pipe2(ready_pipe, O_CLOEXEC) < 0 || pipe2(words_pipe, O_CLOEXEC) < 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0)
        become_jail(porter, ready_pipe[1], words_pipe[1]);
    *ready = ready_pipe[0];
    *words = words_pipe[0];
    int kept[] = { ready_pipe[0], words_pipe[0], porter->ready_fd };
    close_others(kept, 3); /* disks, sockets and logs are the jail's alone */
    return pid;
}

/* ---- listening ---- */

/* Add what can be read now. False at the end of the stream. The end of a long text is what is kept. */
static bool hear(int fd, struct heard *heard)
{
    char bytes[1024];
    ssize_t got = read(fd, bytes, sizeof bytes);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    size_t room = sizeof heard->text - heard->length;
    if ((size_t)got > room) {
        size_t drop = (size_t)got - room;
        memmove(heard->text, heard->text + drop, heard->length - drop);
        heard->length -= drop;
    }
    memcpy(heard->text + heard->length, bytes, (size_t)got);
    heard->length += (size_t)got;
    return got > 0;
}

static void hear_the_rest(int fd, struct heard *heard)
{
    struct pollfd wait = { .fd = fd, .events = POLLIN };
    for (int i = 0; i < 4096 && poll(&wait, 1, 0) > 0 && hear(fd, heard); i++)
        ;
}

/* So that who waited is told that it was too long, and what was said meanwhile. */
static void note_delay(double patience, struct heard *spoken)
{
    struct heard before = *spoken;
    int length = snprintf(spoken->text, sizeof spoken->text, "not ready within %g s%s%.*s", patience,
                          before.length > 0 ? ": " : "", (int)before.length, before.text);
    spoken->length = (size_t)length < sizeof spoken->text ? (size_t)length : sizeof spoken->text - 1;
}

/* Wait until the inner half has said its line, nobody is left who could say it, or it is too late: then there is no line. */
static void listen_to_jail(double patience, int ready, int words, struct heard *line, struct heard *spoken)
{
    struct pollfd polls[] = { { .fd = ready, .events = POLLIN }, { .fd = words, .events = POLLIN } };
    int64_t deadline = now_ms() + (int64_t)(patience * 1000);
    set_nonblocking(ready);
    set_nonblocking(words);
    while (polls[0].fd >= 0) {
        int64_t left = deadline - now_ms();
        if (left <= 0) {
            line->length = 0;
            break;
        }
        if (poll(polls, 2, (int)left) <= 0)
            continue;
        if (polls[1].revents && !hear(words, spoken))
            polls[1].fd = -1;
        if (polls[0].revents && (!hear(ready, line) || memchr(line->text, '\n', line->length)))
            polls[0].fd = -1;
    }
    if (polls[1].fd >= 0)
        hear_the_rest(words, spoken);
    if (polls[0].fd >= 0)
        note_delay(patience, spoken);
}

/* One line of printable ASCII. */
static void make_line(struct heard *heard)
{
    while (heard->length > 0 && heard->text[heard->length - 1] == '\n')
        heard->length--;
    for (size_t i = 0; i < heard->length; i++)
        if (heard->text[i] < 0x20 || heard->text[i] > 0x7E)
            heard->text[i] = heard->text[i] == '\n' ? ';' : '?';
}

static bool begins_with(const struct heard *heard, const char *word)
{
    return heard->length >= strlen(word) && memcmp(heard->text, word, strlen(word)) == 0;
}

static void tell_caller(const struct porter *porter, const struct heard *line, const struct heard *spoken)
{
    char answer[2 * sizeof line->text + 32];
    int length;
    if (begins_with(line, "ready"))
        length = snprintf(answer, sizeof answer, "ready\n");
    else if (begins_with(line, "failed: "))
        length = snprintf(answer, sizeof answer, "%.*s\n", (int)line->length, line->text);
    else if (spoken->length > 0)
        length = snprintf(answer, sizeof answer, "failed: %.*s\n", (int)spoken->length, spoken->text);
    else
        length = snprintf(answer, sizeof answer, "failed: the jail said nothing\n");
    if (porter->ready_fd >= 0)
        (void)!write(porter->ready_fd, answer, (size_t)length); /* a caller that has died does not read it */
}

/* ---- the life of a porter ---- */

static void kill_children(void)
{
    char path[64];
    int pid;
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    FILE *children = fopen(path, "re");
    while (children && fscanf(children, "%d", &pid) == 1)
        kill(pid, SIGKILL); /* ours and not yet reaped */
    if (children)
        fclose(children);
}

/* Children of a child that has ended become ours (we are subreaper) before we hear of its end, so each round finds them. */
static void end_all(pid_t jail)
{
    kill(jail, SIGKILL);
    do
        kill_children();
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR);
}

static void call_ended(const struct porter *porter)
{
    sigset_t none;
    int nothing[1] = { 0 };
    if (!porter->ended)
        return;
    close_others(nothing, 0);
    for (int number = 1; number < NSIG; number++) {
        signal(number, SIG_IGN); /* what came while it was blocked must not strike now */
        signal(number, SIG_DFL);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execvp(porter->ended[0], porter->ended);
}

static void stand(struct porter *porter)
{
    struct heard line = { .length = 0 }, spoken = { .length = 0 };
    int ready = -1, words = -1;
    pid_t jail = start_jail(porter, &ready, &words);
    if (jail > 0) {
        listen_to_jail(porter->patience, ready, words, &line, &spoken);
        make_line(&line);
        make_line(&spoken);
        if (begins_with(&line, "ready 1"))
            kill(jail, SIGKILL); /* not yet reaped, so it is still the one we started */
    }
    tell_caller(porter, &line, &spoken);
    close_fd(&porter->ready_fd);
    close(ready);
    close(words);
    if (jail > 0 && !begins_with(&line, "ready") && !begins_with(&line, "failed: "))
        end_all(jail);
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
    call_ended(porter);
}

int porter_main(int argc, char **argv)
{
    struct porter porter = { .ready_fd = -1, .patience = PATIENCE };
    sigset_t all;
    if (!parse(&porter, argc, argv)) {
        dprintf(2, "usage: insula-keeper porter [--ready-fd N] [--patience SECONDS] [--show FILE PLACE]… [--group N]… "
                   "[--ended-argc K WORD…] -- JAIL-COMMAND…\n");
        return 2;
    }
    pid_t pid = fork();
    if (pid < 0) {
        perror("insula-keeper porter: fork");
        return 1;
    }
    if (pid > 0)
        _exit(0);
    setsid();
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL); /* nothing but SIGKILL keeps it from calling who must be told */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    be_silent();
    stand(&porter);
    return 0;
}
