#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "cgroups.h"
#include "users.h"

static const char path_of_root[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
static const char path_of_users[] = "/usr/local/bin:/usr/bin:/bin";

/* ---- before fork ---- */

static char *copy_text(char **at, const struct wire_field *field)
{
    char *text = *at;
    memcpy(text, field->bytes, field->length);
    text[field->length] = 0;
    *at += field->length + 1;
    return text;
}

bool command_parse(const struct request *request, struct command *command)
{
    struct wire_cursor cursor;
    struct wire_field field;
    size_t fields = 0;
    *command = (struct command){ .rows = 24, .columns = 80 };
    wire_cursor_init(&cursor, request->fields, request->length);
    while (wire_field_next(&cursor, &field) == WIRE_GOT)
        fields++;
    /* Two lists of pointers, each ended by NULL; then the text, a NUL for each field. A frame bounds it all. */
    size_t pointers = (fields + 2) * sizeof(char *);
    command->memory = calloc(1, pointers + request->length + fields);
    if (!command->memory)
        return false;
    char **argv = command->memory, *text = (char *)command->memory + pointers;
    size_t argc = 0, envc = 0;
    for (int pass = 0; pass < 2; pass++) { /* argv first, so that both lists are without gaps */
        wire_cursor_init(&cursor, request->fields, request->length);
        while (wire_field_next(&cursor, &field) == WIRE_GOT) {
            if (pass == 0 && field.tag == TAG_ARGV)
                argv[argc++] = copy_text(&text, &field);
            else if (pass == 1 && field.tag == TAG_ENV)
                argv[argc + 1 + envc++] = copy_text(&text, &field);
            else if (pass == 1 && field.tag == TAG_CWD && field.length > 0)
                command->cwd = copy_text(&text, &field);
        }
    }
    command->argv = argv;
    command->env = argv + argc + 1;
    if (!wire_find_text(request->fields, request->length, TAG_USER, command->user, sizeof command->user) &&
        !wire_find(request->fields, request->length, TAG_USER, &field))
        strcpy(command->user, "root");
    command->tty = wire_find_u64(request->fields, request->length, TAG_TTY, 0) != 0;
    command->rows = (uint16_t)wire_find_u64(request->fields, request->length, TAG_ROWS, 24);
    command->columns = (uint16_t)wire_find_u64(request->fields, request->length, TAG_COLS, 80);
    return argc > 0;
}

/* ---- after fork, in the child: it may take its time ---- */

_Noreturn static void fail(int failures, const char *word, int error)
{
    struct failure failure = { .error = error };
    snprintf(failure.word, sizeof failure.word, "%s", word);
    while (write(failures, &failure, sizeof failure) < 0 && errno == EINTR)
        ;
    _exit(127);
}

static void take_streams(const struct command *command, const int streams[3], const struct user *user)
{
    if (command->tty) {
        ioctl(streams[0], TIOCSCTTY, 0);
        if (fchown(streams[0], user->uid, (gid_t)-1) == 0)
            fchmod(streams[0], 0620);
    }
    /* The pipes have numbers above 2: the agent's own 0 to 2 are always open. */
    for (int i = 0; i < 3; i++)
        dup2(streams[i], i);
}

/* Where the agent is nobody's root (a test, a container) staying who one is must do. */
static int become_user(const struct user *user)
{
    bool same = user->uid == geteuid() && user->gid == getegid();
    if (setgroups(user->group_count, user->groups) < 0 && !same)
        return errno;
    if (same)
        return 0;
    return setgid(user->gid) < 0 || setuid(user->uid) < 0 ? errno : 0;
}

/* The agent itself is spared when memory runs out; what it starts is not. */
static void be_killable(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "0", 1) == 1)
        close(fd);
}

static void make_environment(const struct command *command, const struct user *user)
{
    clearenv();
    setenv("PATH", user->uid == 0 ? path_of_root : path_of_users, 1);
    setenv("HOME", user->home, 1);
    setenv("USER", user->name, 1);
    setenv("LOGNAME", user->name, 1);
    setenv("SHELL", user->shell, 1);
    setenv("LANG", "C.UTF-8", 1);
    if (command->tty)
        setenv("TERM", "xterm", 1);
    for (char **given = command->env; *given; given++)
        if (strchr(*given, '='))
            putenv(*given);
}

_Noreturn static void search_and_run(char **argv, int failures)
{
    extern char **environ;
    const char *path = getenv("PATH");
    char file[PATH_MAX];
    int refused = ENOENT;
    if (strchr(argv[0], '/')) {
        execve(argv[0], argv, environ);
        refused = errno;
        path = NULL;
    }
    while (path && argv[0][0]) {
        size_t length = strcspn(path, ":");
        if (snprintf(file, sizeof file, "%.*s%s%s", (int)length, path, length ? "/" : "", argv[0]) < (int)sizeof file) {
            execve(file, argv, environ);
            if (errno != ENOENT && errno != ENOTDIR)
                refused = errno; /* as a shell does: a later folder may still have one that works */
        }
        path = path[length] ? path + length + 1 : NULL;
    }
    fail(failures, refused == ENOENT || refused == ENOTDIR ? "ENOENT" : "EACCES", refused);
}

_Noreturn void command_become(const struct command *command, const int streams[3], int failures)
{
    static struct user user;
    setsid();
    umask(022);
    cgroup_enter_exec();
    be_killable();
    if (!user_find(command->user, &user))
        fail(failures, "EUSER", ENOENT);
    take_streams(command, streams, &user);
    int error = become_user(&user);
    if (error)
        fail(failures, "EUSER", error);
    if (chdir(command->cwd ? command->cwd : user.home) < 0 && (command->cwd || chdir("/") < 0))
        fail(failures, "ECHDIR", errno);
    make_environment(command, &user);
    search_and_run(command->argv, failures);
}
