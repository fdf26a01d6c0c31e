/* Control groups. They are entered by who is to be in them, before it becomes what is to be held: so nothing that comes of it is
 * ever outside.
 *
 *     insula-keeper enter [--group N]… -- COMMAND…
 *
 * Each N is an open `cgroup.procs` of a group. It is closed before COMMAND runs, which therefore can move nobody.
 */
#include "keeper.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool take_group(struct groups *groups, const char *number)
{
    if (groups->count == GROUPS_MAX)
        return false;
    groups->entrances[groups->count] = atoi(number);
    return groups->entrances[groups->count++] > 2;
}

bool enter_groups(const struct groups *groups)
{
    bool entered = true;
    for (size_t i = 0; i < groups->count; i++) {
        if (write(groups->entrances[i], "0", 1) != 1) { /* 0: whoever writes it; see cgroups(7) */
            dprintf(2, "cannot enter its control group: %s\n", strerror(errno));
            entered = false;
        }
        close(groups->entrances[i]);
    }
    return entered;
}

int enter_main(int argc, char **argv)
{
    struct groups groups = { .count = 0 };
    int at = 0;
    while (at + 1 < argc && strcmp(argv[at], "--group") == 0 && take_group(&groups, argv[at + 1]))
        at += 2;
    if (at + 1 >= argc || strcmp(argv[at], "--") != 0) {
        dprintf(2, "usage: insula-keeper enter [--group N]… -- COMMAND…\n");
        return 2;
    }
    if (!enter_groups(&groups))
        return 126;
    execvp(argv[at + 1], argv + at + 1);
    dprintf(2, "cannot start %s: %s\n", argv[at + 1], strerror(errno));
    return 127;
}
