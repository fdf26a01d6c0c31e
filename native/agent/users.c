#include "users.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char passwd[] = "/etc/passwd", group[] = "/etc/group";

enum { COLUMNS = 7, LINE = 8192 };

/* Split a line at its colons. Fewer columns than wanted: the line is none of ours. */
static bool split(char *line, char **columns, size_t wanted)
{
    line[strcspn(line, "\n")] = 0;
    for (size_t i = 0; i < wanted; i++) {
        if (!line)
            return false;
        columns[i] = line;
        if ((line = strchr(line, ':')))
            *line++ = 0;
    }
    return true;
}

static bool parse_id(const char *text, uint32_t *id)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value >= UINT32_MAX)
        return false;
    *id = (uint32_t)value;
    return true;
}

/* Call `found` with the columns of each line until it returns true. */
static bool each_line(const char *path, size_t wanted, bool (*found)(char **columns, void *context), void *context)
{
    char line[LINE], *columns[COLUMNS];
    FILE *file = fopen(path, "re");
    bool done = false;
    if (!file)
        return false;
    while (!done && fgets(line, sizeof line, file))
        done = split(line, columns, wanted) && found(columns, context);
    fclose(file);
    return done;
}

struct sought {
    const char *name; /* NULL: by id */
    uint32_t id;
    char *to; /* where the name goes, NAME_SIZE bytes */
    struct user *user;
};

static bool match(char **columns, struct sought *sought)
{
    uint32_t id;
    if (!parse_id(columns[2], &id))
        return false;
    if (sought->name ? strcmp(sought->name, columns[0]) != 0 : sought->id != id)
        return false;
    sought->id = id;
    if (sought->to)
        snprintf(sought->to, NAME_SIZE, "%s", columns[0]);
    return true;
}

static bool match_name(char **columns, void *context)
{
    return match(columns, context);
}

static bool match_user(char **columns, void *context)
{
    struct sought *sought = context;
    struct user *user = sought->user;
    if (!match(columns, sought) || !parse_id(columns[3], &user->gid))
        return false;
    user->uid = sought->id;
    snprintf(user->home, sizeof user->home, "%s", columns[5][0] ? columns[5] : "/");
    snprintf(user->shell, sizeof user->shell, "%s", columns[6][0] ? columns[6] : "/bin/sh");
    return true;
}

/* Is the user among the members (the fourth column)? Then this group is one of his. */
static bool collect_group(char **columns, void *context)
{
    struct user *user = context;
    uint32_t id;
    if (!parse_id(columns[2], &id) || user->group_count == GROUPS_MAX)
        return false;
    for (char *next, *member = columns[3]; member; member = next) {
        if ((next = strchr(member, ',')))
            *next++ = 0;
        if (strcmp(member, user->name) == 0 && id != user->gid) {
            user->groups[user->group_count++] = id;
            break;
        }
    }
    return false;
}

static bool find_by_id(struct user *user, uint32_t uid)
{
    struct sought sought = { .id = uid, .to = user->name, .user = user };
    if (each_line(passwd, COLUMNS, match_user, &sought))
        return true;
    user->uid = uid;
    user->gid = uid;
    snprintf(user->name, sizeof user->name, "%u", uid);
    snprintf(user->home, sizeof user->home, "%s", uid == 0 ? "/root" : "/");
    snprintf(user->shell, sizeof user->shell, "/bin/sh");
    return false;
}

bool user_find(const char *wanted, struct user *user)
{
    char text[NAME_SIZE];
    uint32_t uid, gid;
    memset(user, 0, sizeof *user);
    if (snprintf(text, sizeof text, "%s", wanted) >= (int)sizeof text)
        return false;
    struct sought sought = { .name = text, .to = user->name, .user = user };
    if (each_line(passwd, COLUMNS, match_user, &sought)) {
        user->groups[user->group_count++] = user->gid;
        each_line(group, 4, collect_group, user);
        return true;
    }
    char *colon = strchr(text, ':');
    if (colon)
        *colon++ = 0;
    if (strcmp(text, "root") == 0)
        uid = 0; /* there is always a root, even where no file says so */
    else if (!parse_id(text, &uid))
        return false;
    if (colon && !parse_id(colon, &gid))
        return false;
    bool listed = find_by_id(user, uid);
    if (colon)
        user->gid = gid;
    user->groups[user->group_count++] = user->gid;
    if (listed && !colon)
        each_line(group, 4, collect_group, user);
    return true;
}

/* ---- names for entries: few of them, asked for again and again ---- */

struct known {
    uint32_t id;
    char name[NAME_SIZE];
};

struct memory {
    struct known known[16];
    size_t count, next;
};

static struct memory users, groups;

void users_begin(void)
{
    users.count = users.next = 0;
    groups.count = groups.next = 0;
}

static struct known *remember(struct memory *memory, uint32_t id, const char *name)
{
    size_t most = sizeof memory->known / sizeof *memory->known;
    struct known *known = &memory->known[memory->next];
    memory->next = (memory->next + 1) % most;
    if (memory->count < most)
        memory->count++;
    known->id = id;
    snprintf(known->name, sizeof known->name, "%s", name);
    return known;
}

static const char *name_of(struct memory *memory, const char *path, uint32_t id)
{
    char name[NAME_SIZE] = "";
    for (size_t i = 0; i < memory->count; i++)
        if (memory->known[i].id == id)
            return memory->known[i].name;
    struct sought sought = { .id = id, .to = name };
    each_line(path, 3, match_name, &sought);
    return remember(memory, id, name)->name;
}

static bool id_of(struct memory *memory, const char *path, const char *name, uint32_t *id)
{
    for (size_t i = 0; i < memory->count; i++)
        if (strcmp(memory->known[i].name, name) == 0) {
            *id = memory->known[i].id;
            return true;
        }
    struct sought sought = { .name = name };
    if (!each_line(path, 3, match_name, &sought))
        return false;
    *id = remember(memory, sought.id, name)->id;
    return true;
}

const char *user_name(uid_t uid)
{
    return name_of(&users, passwd, uid);
}

const char *group_name(gid_t gid)
{
    return name_of(&groups, group, gid);
}

bool user_id(const char *name, uid_t *uid)
{
    return id_of(&users, passwd, name, uid);
}

bool group_id(const char *name, gid_t *gid)
{
    return id_of(&groups, group, name, gid);
}
