#include "hooks.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cgroups.h"
#include "loop.h"

enum { HOOKS_MAX = 256, PIDFD_OPEN = 434 };

static const char place[] = "/etc/insula/fork.d";

/* As run-parts has it: what an editor or a package left there is none. */
static int is_hook(const struct dirent *entry)
{
    for (const char *at = entry->d_name; *at; at++)
        if (!isalnum((unsigned char)*at) && !strchr("_-", *at) && !(*at == '.' && at > entry->d_name))
            return 0;
    const char *end = strrchr(entry->d_name, '.');
    return !end || (strncmp(end, ".dpkg-", 6) != 0 && strcmp(end, ".insula-new") != 0);
}

_Noreturn static void be_hook(const char *path, const char *former)
{
    char name[65] = "";
    int nothing = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++)
        dup2(nothing, i);
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    cgroup_enter_exec();
    gethostname(name, sizeof name - 1);
    clearenv();
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/root", 1);
    setenv("LANG", "C.UTF-8", 1);
    setenv("INSULA_NAME", name, 1);
    setenv("INSULA_FORMER_NAME", former, 1);
    if (chdir("/") == 0)
        execl(path, path, NULL);
    _exit(127);
}

/* Wait until it ended; false when it had to be killed. */
static bool wait_for(pid_t pid, uint64_t until, int *status)
{
    struct pollfd ended = { .fd = (int)syscall(PIDFD_OPEN, pid, 0), .events = POLLIN };
    uint64_t now = now_ms();
    bool good = ended.fd < 0 || (now < until && poll(&ended, 1, (int)(until - now)) > 0);
    if (!good)
        kill(-pid, SIGKILL); /* it leads a session, and a group, of its own */
    if (ended.fd >= 0)
        close(ended.fd);
    while (waitpid(pid, status, 0) < 0 && errno == EINTR)
        ;
    return good;
}

static void run_hook(const char *name, const char *former, uint64_t until, char *failed, size_t size)
{
    char path[sizeof place + NAME_MAX + 1], word[32] = "";
    int status = 0;
    snprintf(path, sizeof path, "%s/%s", place, name);
    pid_t pid = fork();
    if (pid == 0)
        be_hook(path, former);
    if (pid < 0)
        snprintf(word, sizeof word, "cannot be started");
    else if (!wait_for(pid, until, &status))
        snprintf(word, sizeof word, "took too long");
    else if (WIFSIGNALED(status))
        snprintf(word, sizeof word, "ended by signal %d", WTERMSIG(status));
    else if (WEXITSTATUS(status) != 0)
        snprintf(word, sizeof word, "exit code %d", WEXITSTATUS(status));
    if (word[0] && !failed[0])
        snprintf(failed, size, "%s: %s", name, word);
}

bool hooks_exist(void)
{
    DIR *folder = opendir(place);
    struct dirent *entry;
    bool found = false;
    while (folder && !found && (entry = readdir(folder)))
        found = is_hook(entry);
    if (folder)
        closedir(folder);
    return found;
}

int hooks_run(const char *former, uint64_t milliseconds, char *failed, size_t size)
{
    struct dirent **found;
    struct stat status;
    uint64_t until = now_ms() + milliseconds;
    int ran = 0, count = scandir(place, &found, is_hook, alphasort);
    char path[sizeof place + NAME_MAX + 1];
    failed[0] = 0;
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%s", place, found[i]->d_name);
        if (ran < HOOKS_MAX && stat(path, &status) == 0 && S_ISREG(status.st_mode) && access(path, X_OK) == 0) {
            run_hook(found[i]->d_name, former, until, failed, size);
            ran++;
        }
        free(found[i]);
    }
    if (count >= 0)
        free(found);
    return ran;
}
