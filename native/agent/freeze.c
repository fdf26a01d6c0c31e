/* With cgroup2, whole groups are frozen: all but the agent's own, those above it, and init's. What lives in one of these
 * all the same (or anywhere, where there is no cgroup2) is stopped by SIGSTOP. What was frozen is written down in a file
 * before it is done, so that it can be thawed whatever becomes of the process that froze it; what was frozen or stopped
 * before, by somebody else, is left alone. */
#include "freeze.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cgroups.h"
#include "files.h"
#include "loop.h"
#include "task.h"

/* A line each: `g PATH` for a group, `p PID START` for a process. */
static const char ledger[] = "/run/insula-frozen";

enum { PATIENCE = 2000, PASSES = 5 };

/* ---- groups ---- */

/* Is the agent in this group, or below it? Paths are as in /proc/self/cgroup. */
static bool holds_agent(const char *group)
{
    const char *own = cgroup_own();
    size_t length = strlen(group);
    return length <= 1 || (strncmp(own, group, length) == 0 && (own[length] == '/' || own[length] == 0));
}

static bool is_spared(const char *group)
{
    return holds_agent(group) || strcmp(group, "/init.scope") == 0;
}

static int set_frozen(const char *group, bool frozen)
{
    char path[2 * PATH_MAX];
    snprintf(path, sizeof path, "%s%s/cgroup.freeze", cgroup_root(), group);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = write(fd, frozen ? "1" : "0", 1) == 1 ? 0 : errno;
    close(fd);
    return error;
}

static bool is_frozen(const char *group, const char *file, const char *word)
{
    char path[2 * PATH_MAX], text[256];
    snprintf(path, sizeof path, "%s%s/%s", cgroup_root(), group, file);
    return read_text(path, text, sizeof text) > 0 && strstr(text, word);
}

static int freeze_group(const char *group, FILE *record)
{
    if (is_frozen(group, "cgroup.freeze", "1"))
        return 0;
    if (fprintf(record, "g %s\n", group) < 0 || fflush(record) != 0)
        return errno;
    int error = set_frozen(group, true);
    return error == ENOENT ? 0 : error; /* it ended meanwhile */
}

/* Freeze what is below a group that holds the agent. */
static int freeze_below(const char *group, FILE *record)
{
    char path[2 * PATH_MAX];
    int error = 0;
    snprintf(path, sizeof path, "%s%s", cgroup_root(), group);
    DIR *folder = opendir(path);
    if (!folder)
        return errno;
    struct dirent *entry;
    while (error == 0 && (entry = readdir(folder))) {
        if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
            continue;
        if (snprintf(path, PATH_MAX, "%s/%s", strcmp(group, "/") == 0 ? "" : group, entry->d_name) >= PATH_MAX)
            continue;
        if (holds_agent(path))
            error = freeze_below(path, record);
        else if (!is_spared(path))
            error = freeze_group(path, record);
    }
    closedir(folder);
    return error;
}

/* ---- processes ---- */

struct process {
    int pid;
    char state;
    int session;
    unsigned long flags;
    char start[24]; /* in ticks since boot: with the pid it is unique */
};

/* The numbers after the name's closing bracket in /proc/PID/stat: state, parent, group, session, tty, foreground, flags;
 * the start is the 20th. */
static bool read_process(int pid, struct process *process)
{
    char path[64], text[1024], *word, *rest;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    if (read_text(path, text, sizeof text) <= 0 || !(rest = strrchr(text, ')')))
        return false;
    process->pid = pid;
    rest++;
    for (int i = 1; i <= 20; i++) {
        if (!(word = strtok_r(NULL, " \n", &rest)))
            return false;
        if (i == 1)
            process->state = word[0];
        else if (i == 4)
            process->session = atoi(word);
        else if (i == 7)
            process->flags = strtoul(word, NULL, 10);
        else if (i == 20)
            snprintf(process->start, sizeof process->start, "%s", word);
    }
    return true;
}

/* Its group is frozen already, or it is in init's. */
static bool is_seen_to(int pid)
{
    char path[64], text[PATH_MAX];
    if (!cgroup_root())
        return false;
    snprintf(path, sizeof path, "/proc/%d/cgroup", pid);
    if (read_text(path, text, sizeof text) <= 0)
        return true;
    for (char *next, *line = text; line; line = next) {
        if ((next = strchr(line, '\n')))
            *next++ = 0;
        if (strncmp(line, "0::/", 4) == 0)
            return !holds_agent(line + 3);
    }
    return false;
}

static bool should_stop(const struct process *process)
{
    enum { KERNEL_THREAD = 0x00200000 };
    if (process->pid == 1 || process->pid == getpid() || process->pid == getppid() || process->flags & KERNEL_THREAD)
        return false;
    if (strchr("TtZX", process->state) || process->session == getsid(0))
        return false;
    return !is_seen_to(process->pid);
}

/* True: somebody new was stopped, so that there may be more whom he started meanwhile. */
static bool stop_pass(FILE *record)
{
    struct process process;
    bool stopped = false;
    DIR *processes = opendir("/proc");
    if (!processes)
        return false;
    struct dirent *entry;
    while ((entry = readdir(processes))) {
        int pid = atoi(entry->d_name);
        if (pid <= 0 || !read_process(pid, &process) || !should_stop(&process))
            continue;
        if (fprintf(record, "p %d %s\n", pid, process.start) < 0 || fflush(record) != 0)
            break;
        stopped |= kill(pid, SIGSTOP) == 0;
    }
    closedir(processes);
    return stopped;
}

/* ---- the ledger ---- */

static void each_frozen(void (*group)(const char *path), void (*process)(int pid, const char *start))
{
    char line[PATH_MAX + 8];
    FILE *record = fopen(ledger, "re");
    if (!record)
        return;
    while (fgets(line, sizeof line, record)) {
        line[strcspn(line, "\n")] = 0;
        char *space = strchr(line + 1, ' ');
        if (line[0] == 'g' && line[1] == ' ' && group)
            group(line + 2);
        else if (line[0] == 'p' && space && process) {
            char *start = strchr(space + 1, ' ');
            process(atoi(space + 1), start ? start + 1 : "");
        }
    }
    fclose(record);
}

static void thaw_group(const char *path)
{
    if (cgroup_root())
        set_frozen(path, false);
}

static void thaw_process(int pid, const char *start)
{
    struct process process;
    if (read_process(pid, &process) && strcmp(process.start, start) == 0)
        kill(pid, SIGCONT);
}

void thaw_all(void)
{
    each_frozen(thaw_group, thaw_process);
    unlink(ledger);
}

static uint64_t deadline;

/* Freezing takes effect when each process comes to a safe point; a moment, unless one hangs in a driver. */
static void wait_for_group(const char *path)
{
    while (now_ms() < deadline && !is_frozen(path, "cgroup.events", "frozen 1") && is_frozen(path, "cgroup.freeze", "1"))
        usleep(2000); /* cgroup.events tells changes by inotify only, and this is a process of its own */
}

/* ---- the verbs ---- */

static void freeze_job(const struct request *request, struct wire_writer *fields)
{
    int error = 0;
    (void)request;
    FILE *record = fopen(ledger, "ae");
    if (!record) {
        put_failure(fields, errno, ledger);
        return;
    }
    if (cgroup_root())
        error = freeze_below("/", record);
    for (int pass = 0; error == 0 && pass < PASSES && stop_pass(record); pass++)
        ;
    fclose(record);
    deadline = now_ms() + PATIENCE;
    if (cgroup_root())
        each_frozen(wait_for_group, NULL);
    if (error) {
        thaw_all();
        put_failure(fields, error, NULL);
    }
}

static void thaw_job(const struct request *request, struct wire_writer *fields)
{
    (void)request;
    (void)fields;
    thaw_all();
}

void freeze_run(const struct request *request)
{
    task_run(request, freeze_job);
}

void thaw_run(const struct request *request)
{
    task_run(request, thaw_job);
}
