/* What is entered on the way into a jail: control groups, a user of one's own, limits. One small program does it all: each that is
 * loaded on the way to a machine is waited for.
 *
 *     insula-keeper enter [--group N]… [--locked] [--user=UID] [--groups=GID,GID…] [--LIMIT=VALUE]… [--label=NAME] -- COMMAND…
 *
 * N is an open `cgroup.procs`. With --locked nothing that COMMAND starts gains rights (no new privileges, nothing inheritable);
 * with --user it is that user, in its group of the same number and in those of --groups alone, and has no capability, nor could
 * get one. LIMIT is core, nofile, memlock, fsize or nproc, both soft and hard (setrlimit(2)); a lower one that holds already stays.
 * COMMAND, and all that comes of it, is held by AppArmor's profile NAME.
 */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MEMBERSHIPS_MAX = 16, LIMITS = 5, LAST_CAPABILITY = 63 };

/* As <linux/capability.h> has them, which a C library of its own does not bring along: capget(2), version 3. */
enum { CAPABILITY_VERSION = 0x20080522, CAPABILITY_WORDS = 2 };
struct capability_header { uint32_t version; int pid; };
struct capability_sets { uint32_t effective, permitted, inheritable; };

static const struct { const char *option; int resource; } limits[LIMITS] = {
    { "--core=", RLIMIT_CORE },   { "--nofile=", RLIMIT_NOFILE }, { "--memlock=", RLIMIT_MEMLOCK },
    { "--fsize=", RLIMIT_FSIZE }, { "--nproc=", RLIMIT_NPROC },
};

struct way {
    struct groups groups;
    bool locked, is_user;
    uid_t user;
    gid_t memberships[MEMBERSHIPS_MAX];
    size_t membership_count;
    bool limited[LIMITS];
    rlim_t most[LIMITS];
    const char *label;
};

/* ---- arguments ---- */

static const char *after(const char *word, const char *option)
{
    size_t length = strlen(option);
    return strncmp(word, option, length) == 0 ? word + length : NULL;
}

/* The number that `text` begins with, up to a comma or its end. */
static bool take_number(const char **text, unsigned long long most, unsigned long long *number)
{
    char *end;
    if (**text < '0' || **text > '9')
        return false;
    errno = 0;
    *number = strtoull(*text, &end, 10);
    *text = *end == ',' ? end + 1 : end;
    return errno == 0 && *number <= most && (*end == 0 || *end == ',');
}

static bool take_user(struct way *way, const char *text)
{
    unsigned long long number;
    way->is_user = take_number(&text, UINT32_MAX - 1, &number) && *text == 0 && number > 0;
    way->user = (uid_t)number;
    return way->is_user;
}

static bool take_memberships(struct way *way, const char *text)
{
    unsigned long long number;
    while (*text) {
        if (way->membership_count == MEMBERSHIPS_MAX || !take_number(&text, UINT32_MAX - 1, &number))
            return false;
        way->memberships[way->membership_count++] = (gid_t)number;
    }
    return true;
}

static bool take_limit(struct way *way, const char *word)
{
    unsigned long long number;
    for (size_t i = 0; i < LIMITS; i++) {
        const char *text = after(word, limits[i].option);
        if (!text)
            continue;
        way->limited[i] = take_number(&text, INT64_MAX, &number) && *text == 0;
        way->most[i] = number;
        return way->limited[i];
    }
    return false;
}

static bool take_word(struct way *way, const char *word)
{
    const char *text;
    if (strcmp(word, "--locked") == 0)
        return way->locked = true;
    if ((text = after(word, "--user=")))
        return take_user(way, text);
    if ((text = after(word, "--groups=")))
        return take_memberships(way, text);
    if ((text = after(word, "--label=")))
        return (way->label = text)[0] != 0;
    return take_limit(way, word);
}

/* The index of the first word of COMMAND; 0: the words mean nothing. */
static int parse(struct way *way, int argc, char **argv)
{
    int at = 0;
    while (at + 1 < argc && strcmp(argv[at], "--") != 0) {
        bool is_group = strcmp(argv[at], "--group") == 0;
        if (is_group ? !take_group(&way->groups, argv[at + 1]) : !take_word(way, argv[at]))
            return 0;
        at += is_group ? 2 : 1;
    }
    return at + 1 < argc && (way->membership_count == 0 || way->is_user) ? at + 1 : 0;
}

/* ---- the way ---- */

static bool did(bool done, const char *what)
{
    if (!done)
        dprintf(2, "cannot %s: %s\n", what, strerror(errno));
    return done;
}

/* What the kernel does not know of is in no set. */
static bool drop_bounding_set(void)
{
    for (unsigned long each = 0; each <= LAST_CAPABILITY && prctl(PR_CAPBSET_READ, each, 0, 0, 0) >= 0; each++)
        if (prctl(PR_CAPBSET_DROP, each, 0, 0, 0) < 0)
            return false;
    return true;
}

/* With what is inheritable the ambient ones go, too: capabilities(7). */
static bool inherit_nothing(void)
{
    struct capability_header header = { .version = CAPABILITY_VERSION };
    struct capability_sets sets[CAPABILITY_WORDS];
    if (syscall(SYS_capget, &header, sets) < 0)
        return false;
    for (size_t i = 0; i < CAPABILITY_WORDS; i++)
        sets[i].inheritable = 0;
    return syscall(SYS_capset, &header, sets) == 0;
}

static bool lock_up(void)
{
    return did(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "give up new privileges")
           && did(inherit_nothing(), "give up inheritable capabilities");
}

static bool become_user(const struct way *way)
{
    return did(drop_bounding_set(), "drop capabilities") && did(setgroups(way->membership_count, way->memberships) == 0, "leave groups")
           && did(setresgid(way->user, way->user, way->user) == 0, "change its group")
           && did(setresuid(way->user, way->user, way->user) == 0, "change its user");
}

static bool limit(const struct way *way)
{
    for (size_t i = 0; i < LIMITS; i++) {
        struct rlimit now;
        if (!way->limited[i])
            continue;
        if (getrlimit(limits[i].resource, &now) < 0)
            return did(false, "read a limit");
        rlim_t most = way->most[i] < now.rlim_max ? way->most[i] : now.rlim_max;
        struct rlimit wanted = { most, most };
        if (setrlimit(limits[i].resource, &wanted) < 0)
            return did(false, "set a limit");
    }
    return true;
}

/* apparmor(7), "exec": for the next program, and all that come of it. */
static bool take_label(const char *label)
{
    char order[128];
    int length = snprintf(order, sizeof order, "exec %s", label);
    int fd = open("/proc/self/attr/apparmor/exec", O_WRONLY | O_CLOEXEC);
    bool taken = fd >= 0 && (size_t)length < sizeof order && write(fd, order, (size_t)length) == length;
    did(taken, "be held by AppArmor's profile");
    if (fd >= 0)
        close(fd);
    return taken;
}

int enter_main(int argc, char **argv)
{
    struct way way = { .is_user = false };
    int command = parse(&way, argc, argv);
    if (command == 0) {
        dprintf(2, "usage: insula-keeper enter [--group N]… [--locked] [--user=UID] [--groups=GID,…] [--LIMIT=VALUE]… [--label=NAME] -- COMMAND…\n");
        return 2;
    }
    if (!enter_groups(&way.groups) || (way.locked && !lock_up()) || (way.is_user && !become_user(&way)) || !limit(&way))
        return 126;
    if (way.label && !take_label(way.label))
        return 126;
    execvp(argv[command], argv + command);
    dprintf(2, "cannot start %s: %s\n", argv[command], strerror(errno));
    return 127;
}
