#include "cgroups.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "files.h"

enum { CGROUP2_MAGIC = 0x63677270 };

static const char *root;
static char own[PATH_MAX];
static int exec_procs = -1; /* cgroup.procs of the group for exec */

static void find_own(void)
{
    char text[8192];
    strcpy(own, "/");
    if (read_text("/proc/self/cgroup", text, sizeof text) < 0)
        return;
    for (char *next, *line = text; line; line = next) {
        if ((next = strchr(line, '\n')))
            *next++ = 0;
        if (strncmp(line, "0::/", 4) == 0 && strlen(line + 3) < sizeof own)
            strcpy(own, line + 3);
    }
}

void cgroup_init(void)
{
    static const char *const places[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
    char path[2 * PATH_MAX];
    struct statfs status;
    for (size_t i = 0; i < 2 && !root; i++)
        if (statfs(places[i], &status) == 0 && (unsigned long)status.f_type == CGROUP2_MAGIC)
            root = places[i];
    if (!root)
        return;
    find_own();
    const char *below = strcmp(own, "/") == 0 ? "" : own;
    snprintf(path, sizeof path, "%s%s/insula-exec", root, below);
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        return;
    strcat(path, "/cgroup.procs");
    exec_procs = open(path, O_WRONLY | O_CLOEXEC);
}

void cgroup_enter_exec(void)
{
    if (exec_procs >= 0 && write(exec_procs, "0", 1) < 0)
        return; /* then it stays in the agent's group, and is not frozen: better than not running */
}

const char *cgroup_root(void)
{
    return root;
}

const char *cgroup_own(void)
{
    return own;
}
