/*
 * The probe: tries to get out of the jail it runs in and says of each attempt, a line each on standard output,
 * `name<TAB>blocked|open<TAB>why`. Each is made by a child of its own, so that one that is killed for it ends nothing else.
 *
 *     insula-probe disk=/path/of/another/machines/disk tcp=PORT pid=PID ...
 */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATIENCE = 5, OPEN = 0, BLOCKED = 1 };

static char **words;

const char *target(const char *name)
{
    size_t length = strlen(name);
    for (char **word = words; *word != NULL; word++)
        if (strncmp(*word, name, length) == 0 && (*word)[length] == '=')
            return *word + length + 1;
    return "";
}

long target_number(const char *name)
{
    return strtol(target(name), NULL, 10);
}

static void say(const char *name, const char *result, const char *why)
{
    printf("%s\t%s\t%s\n", name, result, why);
    fflush(stdout);
}

/* The child's exit status is 0 for open, else the error's number; nothing the child does can make it less than the truth. */
static void try(const struct attempt *attempt)
{
    int status;
    pid_t child = fork();
    if (child < 0) {
        say(attempt->name, "untried", strerror(errno));
        return;
    }
    if (child == 0) {
        alarm(PATIENCE);
        errno = 0;
        if (attempt->make() >= 0)
            _exit(OPEN);
        _exit(errno > 0 && errno < 255 ? errno : BLOCKED);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFSIGNALED(status))
        say(attempt->name, "blocked", WTERMSIG(status) == SIGALRM ? "no answer" : strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) == OPEN)
        say(attempt->name, "open", "it succeeded");
    else
        say(attempt->name, "blocked", strerror(WEXITSTATUS(status)));
}

int main(int argc, char *argv[])
{
    (void)argc;
    words = argv + 1;
    const struct attempt *const all[] = {file_attempts, network_attempts, process_attempts, kernel_attempts};
    for (size_t part = 0; part < sizeof all / sizeof *all; part++)
        for (const struct attempt *attempt = all[part]; attempt->name != NULL; attempt++)
            try(attempt);
    say("done", "blocked", "");
    return 0;
}
