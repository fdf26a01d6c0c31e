/* The guest's cgroup2 tree, where there is one: programs of `exec` get a group of their own beside the agent, so that
 * they can be frozen while the agent is not. */
#ifndef INSULA_CGROUPS_H
#define INSULA_CGROUPS_H

#include <limits.h>
#include <stdbool.h>

void cgroup_init(void);

/* In a child: leave the agent's group for that of exec. */
void cgroup_enter_exec(void);

/* The mount point of the tree, or NULL; and the agent's own group below it (`/`, `/system.slice/…`). */
const char *cgroup_root(void);
const char *cgroup_own(void);

#endif
