/* Control groups. They are entered by who is to be in them, before it becomes what is to be held: so nothing that comes of it is
 * ever outside.
 *
 * Each is an open `cgroup.procs` of a group, closed before anything else runs, which therefore can move nobody.
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
