#include "children.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "files.h"
#include "loop.h"

static struct child *children;
static struct watch signals;
static void (*asked_to_stop)(int signal);
static struct rlimit inherited_files;

static void reap(void)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (struct child *child = children; child; child = child->next)
            if (child->pid == pid) {
                child_forget(child);
                child->ended(child, status);
                break;
            }
}

static void signals_ready(struct watch *watch, uint32_t events)
{
    struct signalfd_siginfo info;
    (void)events;
    while (read(watch->fd, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGCHLD)
            reap();
        else
            asked_to_stop((int)info.ssi_signo);
    }
}

void children_init(void (*asked)(int signal))
{
    sigset_t wanted;
    asked_to_stop = asked;
    sigemptyset(&wanted);
    int numbers[] = { SIGCHLD, SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGPWR, SIGRTMIN + 4, SIGRTMIN + 5 };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaddset(&wanted, numbers[i]);
    sigprocmask(SIG_BLOCK, &wanted, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    watch_init(&signals, signalfd(-1, &wanted, SFD_NONBLOCK | SFD_CLOEXEC), false, signals_ready);
    watch_for(&signals, EPOLLIN);

    /* Many channels and deep folders need many descriptors; children get back the limit they would have had. */
    getrlimit(RLIMIT_NOFILE, &inherited_files);
    struct rlimit most = inherited_files;
    most.rlim_cur = most.rlim_max < 65536 ? most.rlim_max : 65536;
    setrlimit(RLIMIT_NOFILE, &most);
}

static void be_fresh(void)
{
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setrlimit(RLIMIT_NOFILE, &inherited_files);
}

pid_t child_fork(struct child *child, void (*ended)(struct child *, int))
{
    pid_t pid = fork();
    if (pid == 0)
        be_fresh();
    if (pid > 0) {
        *child = (struct child){ .pid = pid, .ended = ended, .next = children };
        children = child;
    }
    return pid;
}

void child_forget(struct child *child)
{
    for (struct child **link = &children; *link; link = &(*link)->next)
        if (*link == child) {
            *link = child->next;
            return;
        }
}

/* Is this process in the session, in another group than its leader's? In its stat, after the bracket that ends the
 * name: state, parent, group, session. */
static bool is_in_other_group(const char *pid, pid_t session)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%.20s/stat", pid);
    if (read_text(path, text, sizeof text) < 0)
        return false;
    char *at = strrchr(text, ')');
    if (!at || strlen(at) < 4)
        return false;
    at += 3;
    strtol(at, &at, 10);
    pid_t group = (pid_t)strtol(at, &at, 10);
    return strtol(at, NULL, 10) == session && group != session;
}

bool session_signal(pid_t session, int number)
{
    bool found = kill(-session, number) == 0;
    return session_signal_others(session, number) || found;
}

bool session_signal_others(pid_t session, int number)
{
    bool found = false;
    DIR *processes = opendir("/proc");
    if (!processes)
        return false;
    struct dirent *entry;
    while ((entry = readdir(processes)))
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && is_in_other_group(entry->d_name, session))
            found |= kill(atoi(entry->d_name), number) == 0;
    closedir(processes);
    return found;
}
