/* Users and groups, read from /etc/passwd and /etc/group of the guest: a static program has no other sources of names. */
#ifndef INSULA_USERS_H
#define INSULA_USERS_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum { NAME_SIZE = 64, GROUPS_MAX = 256 };

struct user {
    char name[NAME_SIZE];
    char home[PATH_MAX];
    char shell[PATH_MAX];
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX];
    size_t group_count;
};

/* Find `name`, `uid` or `uid:gid`. False when a name is not there, or no id can be read. A uid without an entry has the
 * home `/`; one given with a gid has no other groups. */
bool user_find(const char *wanted, struct user *user);

/* The name of an id, or an empty string; and back. Answers are remembered while `users_begin` is not called again. */
void users_begin(void);
const char *user_name(uid_t uid);
const char *group_name(gid_t gid);
bool user_id(const char *name, uid_t *uid);
bool group_id(const char *name, gid_t *gid);

#endif
