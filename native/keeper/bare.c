/* A machine's processes where its whole jail cannot be had (no bubblewrap, or no user namespaces) and its owner wants it none the
 * less: with as much of the jail as can be had.
 *
 *     insula-keeper bare --way WAY [--root FOLDER] [--show FILE PLACE]… [--uid N] [--member N] [--calls N] -- COMMAND…
 *
 * WAY says how namespaces are made: `user`: all of them, in a user namespace; `root`: all but that, by the rights of who is root;
 * `none`. Where there are any, COMMAND is process 1 of its own and sees FOLDER, read-only, with FILEs at PLACEs (existing files
 * below FOLDER); else it sees all there is. It runs as user N, in group N and in that of --member; in any case without capabilities
 * that it could use, without new privileges, and held to the filter of system calls that is open as N. What cannot be done of all
 * this ends it: who asks finds out by trying which way goes.
 */
#define _GNU_SOURCE
#include "hold.h"
#include "keeper.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SHOWN_MAX = 8, CALLS_MAX = 4096 /* BPF_MAXINSNS */, MODE_FILTER = 2 /* SECCOMP_MODE_FILTER */ };
enum { SPACES = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS };

struct bare {
    enum way { WAY_UNKNOWN, WAY_USER, WAY_ROOT, WAY_NONE } way;
    const char *root;
    struct { const char *file, *place; } shown[SHOWN_MAX];
    size_t shown_count;
    long uid, member; /* -1: none is asked for */
    int calls;
    char **command;
};

static void refuse(const char *what)
{
    dprintf(2, "cannot %s: %s\n", what, strerror(errno));
    _exit(126);
}

/* ---- arguments ---- */

static enum way way_named(const char *name)
{
    if (strcmp(name, "user") == 0)
        return WAY_USER;
    if (strcmp(name, "root") == 0)
        return WAY_ROOT;
    return strcmp(name, "none") == 0 ? WAY_NONE : WAY_UNKNOWN;
}

/* How many words the option at the beginning of `words` takes; 0: it is none. */
static int take_option(struct bare *bare, int count, char **words)
{
    if (count < 2)
        return 0;
    if (strcmp(words[0], "--show") == 0) {
        if (count < 3 || bare->shown_count == SHOWN_MAX)
            return 0;
        bare->shown[bare->shown_count].file = words[1];
        bare->shown[bare->shown_count++].place = words[2];
        return 3;
    }
    if (strcmp(words[0], "--way") == 0)
        bare->way = way_named(words[1]);
    else if (strcmp(words[0], "--root") == 0)
        bare->root = words[1];
    else if (strcmp(words[0], "--uid") == 0)
        bare->uid = strtol(words[1], NULL, 10);
    else if (strcmp(words[0], "--member") == 0)
        bare->member = strtol(words[1], NULL, 10);
    else if (strcmp(words[0], "--calls") == 0)
        bare->calls = atoi(words[1]);
    else
        return 0;
    return 2;
}

static bool parse(struct bare *bare, int argc, char **argv)
{
    int at = 0, taken;
    while (at < argc && strcmp(argv[at], "--") != 0) {
        if ((taken = take_option(bare, argc - at, argv + at)) == 0)
            return false;
        at += taken;
    }
    bare->command = argv + at + 1;
    return at + 1 < argc && bare->way != WAY_UNKNOWN && (bare->way == WAY_NONE || bare->root);
}

/* ---- layer by layer ---- */

static void become(const struct bare *bare)
{
    gid_t member = (gid_t)bare->member;
    if (bare->uid < 0)
        return;
    bound_capabilities(0);
    if (setgroups(bare->member >= 0 ? 1 : 0, &member) < 0)
        refuse("change its groups");
    if (setresgid((gid_t)bare->uid, (gid_t)bare->uid, (gid_t)bare->uid) < 0 ||
        setresuid((uid_t)bare->uid, (uid_t)bare->uid, (uid_t)bare->uid) < 0)
        refuse("change its user");
    prctl(PR_SET_DUMPABLE, 1); /* else its own files in /proc are root's, and it could not say who it is in a user namespace */
}

static void enter_user(void)
{
    char users[48], groups[48];
    snprintf(users, sizeof users, "%u %u 1", (unsigned)geteuid(), (unsigned)geteuid());
    snprintf(groups, sizeof groups, "%u %u 1", (unsigned)getegid(), (unsigned)getegid());
    if (unshare(CLONE_NEWUSER) < 0)
        refuse("make a user namespace");
    if (!write_text("/proc/self/setgroups", "deny") || !write_text("/proc/self/uid_map", users) ||
        !write_text("/proc/self/gid_map", groups))
        refuse("map its user");
}

static void enter_spaces_and_root(const struct bare *bare)
{
    if (unshare(SPACES) < 0)
        refuse("make namespaces");
    (void)!unshare(CLONE_NEWCGROUP); /* kernels may have none */
    if (sethostname("insula", 6) < 0)
        refuse("name its host");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        refuse("have mounts of its own");
    for (size_t i = 0; i < bare->shown_count; i++)
        if (mount(bare->shown[i].file, bare->shown[i].place, NULL, MS_BIND, NULL) < 0)
            refuse("show it a file");
    if (!take_root(bare->root))
        refuse("give it its root");
}

/* Process 1 of the new namespace goes on; who made it waits for its end, and is of no more use. */
static void be_first(void)
{
    int status, nothing[1] = { 0 };
    pid_t first = fork();
    if (first < 0)
        refuse("fork");
    if (first == 0)
        return;
    close_others(nothing, 0);
    while (waitpid(first, &status, 0) < 0)
        if (errno != EINTR)
            _exit(126);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static void hold_to_calls(int calls)
{
    static uint64_t filter[CALLS_MAX]; /* struct sock_filter, and struct sock_fprog below: seccomp(2) */
    ssize_t size = pread(calls, filter, sizeof filter, 0);
    if (size <= 0 || size % (ssize_t)sizeof *filter)
        refuse("read the filter of system calls");
    close(calls);
    struct { unsigned short length; uint64_t *filter; } program = { (unsigned short)((size_t)size / sizeof *filter), filter };
    if (prctl(PR_SET_SECCOMP, MODE_FILTER, &program) < 0)
        refuse("hold it to its system calls");
}

int bare_main(int argc, char **argv)
{
    struct bare bare = { .uid = -1, .member = -1, .calls = -1 };
    if (!parse(&bare, argc, argv)) {
        dprintf(2, "usage: insula-keeper bare --way user|root|none [--root FOLDER] [--show FILE PLACE]… [--uid N] [--member N] "
                   "[--calls N] -- COMMAND…\n");
        return 2;
    }
    if (bare.way != WAY_ROOT) /* which needs the rights that this takes */
        become(&bare);
    if (bare.way == WAY_USER)
        enter_user();
    if (bare.way != WAY_NONE) {
        enter_spaces_and_root(&bare);
        be_first();
    }
    if (bare.way == WAY_ROOT)
        become(&bare);
    if (bare.uid >= 0)
        (void)!setsid(); /* as in the whole jail; refused where it leads a process group */
    clearenv();
    if (!reduce_rights(-1, 0))
        refuse("give up its rights");
    if (bare.calls >= 0)
        hold_to_calls(bare.calls);
    execv(bare.command[0], bare.command);
    dprintf(2, "cannot start %s: %s\n", bare.command[0], strerror(errno));
    return 127;
}
