/* Ids of one's own, and what their processes are shown. newuidmap(1) and newgidmap(1) map the ids that /etc/subuid and /etc/subgid
 * grant an ordinary user; they are started before the namespace is there, and side by side. */
#define _GNU_SOURCE
#include "keeper.h"
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

static bool failed(const char *what)
{
    dprintf(2, "cannot %s: %s\n", what, strerror(errno));
    return false;
}

/* ---- ids ---- */

/* In the child: wait until the namespace is there, then map `own` to 0 in it, and the range from `outside` to one from `inside`. */
static void map(int told, const char *program, pid_t whom, unsigned own, unsigned inside, unsigned outside, unsigned count)
{
    enum { WORDS = 7, DIGITS = 12 };
    unsigned numbers[WORDS] = { (unsigned)whom, 0, own, 1, inside, outside, count };
    char texts[WORDS][DIGITS], *words[WORDS + 2] = { (char *)program }, go;
    for (size_t i = 0; i < WORDS; i++) {
        snprintf(texts[i], DIGITS, "%u", numbers[i]);
        words[i + 1] = texts[i];
    }
    while (read(told, &go, 1) < 0 && errno == EINTR)
        ;
    execvp(program, words);
    dprintf(2, "cannot start %s: %s\n", program, strerror(errno));
    _exit(127);
}

static bool has_mapped(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return false;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool enter_ids(const struct ids *ids)
{
    int told[2];
    pid_t self = getpid(), mappers[2];
    if (ids->count == 0)
        return true;
    if (pipe2(told, O_CLOEXEC) < 0)
        return failed("make a pipe");
    for (int i = 0; i < 2; i++) {
        if ((mappers[i] = fork()) < 0)
            return failed("fork");
        if (mappers[i] > 0)
            continue;
        close(told[1]);
        if (i == 0)
            map(told[0], "newuidmap", self, geteuid(), ids->first, ids->first, ids->count);
        map(told[0], "newgidmap", self, getegid(), ids->first, ids->first_group, ids->count);
    }
    bool made = unshare(CLONE_NEWUSER) == 0 || failed("make a user namespace");
    close(told[0]);
    close(told[1]);
    bool users = has_mapped(mappers[0]), groups = has_mapped(mappers[1]);
    if (made && !(users && groups))
        dprintf(2, "cannot map the ids of /etc/subuid and /etc/subgid\n");
    return made && users && groups;
}

/* ---- files ---- */

bool take_shown(struct showing *showing, const char *file, const char *place)
{
    if (showing->count == SHOWN_MAX)
        return false;
    showing->shown[showing->count].file = file;
    showing->shown[showing->count++].place = place;
    return true;
}

static bool open_shown(const struct showing *showing, int *opened)
{
    for (size_t i = 0; i < showing->count; i++)
        if ((opened[i] = open(showing->shown[i].file, O_PATH | O_CLOEXEC)) < 0) {
            dprintf(2, "cannot show %s: %s\n", showing->shown[i].file, strerror(errno));
            return false;
        }
    return true;
}

/* Opened first: a place may cover where the next file is. */
bool show(const struct showing *showing)
{
    int opened[SHOWN_MAX];
    char path[64];
    if (showing->count == 0)
        return true;
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return failed("make a mount namespace");
    if (!open_shown(showing, opened))
        return false;
    for (size_t i = 0; i < showing->count; i++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", opened[i]);
        if (mount(path, showing->shown[i].place, NULL, MS_BIND, NULL) < 0) {
            dprintf(2, "cannot show %s at %s: %s\n", showing->shown[i].file, showing->shown[i].place, strerror(errno));
            return false;
        }
        close(opened[i]);
    }
    return true;
}
