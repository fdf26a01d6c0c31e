#include "hostkeys.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "files.h"

static const char folder_name[] = "/etc/ssh", prefix[] = "ssh_host_";

/* `ssh_host_TYPE_key`, and what belongs to it: `.pub`, `-cert.pub`. */
static bool is_key(const char *name, bool *private)
{
    const char *end = strncmp(name, prefix, sizeof prefix - 1) == 0 ? strstr(name, "_key") : NULL;
    *private = end && end[4] == 0;
    return end && (end[4] == 0 || strcmp(end + 4, ".pub") == 0 || strcmp(end + 4, "-cert.pub") == 0);
}

bool host_keys_wanted(void)
{
    bool private, found = access("/usr/sbin/sshd", X_OK) == 0 || access("/usr/local/sbin/sshd", X_OK) == 0;
    DIR *folder = opendir(folder_name);
    struct dirent *entry;
    while (folder && !found && (entry = readdir(folder)))
        found = is_key(entry->d_name, &private);
    if (folder)
        closedir(folder);
    return found;
}

void host_keys_remove(char *removed, size_t size)
{
    char path[PATH_MAX];
    size_t length = 0;
    bool private;
    DIR *folder = opendir(folder_name);
    struct dirent *entry;
    removed[0] = 0;
    while (folder && (entry = readdir(folder))) {
        if (!is_key(entry->d_name, &private))
            continue;
        snprintf(path, sizeof path, "%s/%s", folder_name, entry->d_name);
        if (unlink(path) == 0 && private && length + strlen(entry->d_name) + 2 <= size)
            length += (size_t)sprintf(removed + length, "%s\n", entry->d_name);
    }
    if (folder)
        closedir(folder);
}

int host_key_set(const struct wire_field *field)
{
    const uint8_t *end = memchr(field->bytes, 0, field->length);
    char path[PATH_MAX];
    size_t name = end ? (size_t)(end - field->bytes) : 0;
    if (name == 0 || name > NAME_MAX || field->bytes[0] == '.' || memchr(field->bytes, '/', name))
        return EINVAL;
    mkdir(folder_name, 0755);
    snprintf(path, sizeof path, "%s/%s", folder_name, (const char *)field->bytes);
    bool public = name > 4 && memcmp(end - 4, ".pub", 4) == 0;
    return replace_file(path, end + 1, field->length - name - 1, public ? 0644 : 0600);
}

int host_key_make(const char *name)
{
    char path[PATH_MAX], type[32];
    size_t length = strlen(name) - (sizeof prefix - 1) - 4; /* of a name that is a key's */
    int status;
    if (length >= sizeof type)
        return EINVAL;
    snprintf(type, sizeof type, "%.*s", (int)length, name + sizeof prefix - 1);
    snprintf(path, sizeof path, "%s/%s", folder_name, name);
    pid_t pid = fork();
    if (pid < 0)
        return errno;
    if (pid == 0) {
        execl("/usr/bin/ssh-keygen", "ssh-keygen", "-q", "-t", type, "-N", "", "-f", path, NULL);
        _exit(127);
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return errno;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : ENOEXEC;
}

void host_keys_tell_server(void)
{
    char text[64], path[64];
    if (!read_line("/run/sshd.pid", text, sizeof text))
        return;
    int pid = atoi(text);
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    if (pid > 1 && read_line(path, text, sizeof text) && strcmp(text, "sshd") == 0)
        kill(pid, SIGHUP);
}
