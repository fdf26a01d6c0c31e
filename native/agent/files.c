#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

ssize_t read_text(const char *path, char *to, size_t size)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    to[0] = 0;
    if (fd < 0)
        return -1;
    size_t held = 0;
    ssize_t got = 0;
    while (held < size - 1 && (got = read(fd, to + held, size - 1 - held)) > 0)
        held += (size_t)got;
    int error = errno;
    close(fd);
    errno = error;
    to[held] = 0;
    return got < 0 ? -1 : (ssize_t)held;
}

bool read_line(const char *path, char *to, size_t size)
{
    if (read_text(path, to, size) <= 0)
        return false;
    to[strcspn(to, "\n")] = 0;
    return to[0] != 0;
}

bool write_all(int fd, const void *bytes, size_t length)
{
    const char *at = bytes;
    while (length > 0) {
        ssize_t sent = write(fd, at, length);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return false;
        at += sent;
        length -= (size_t)sent;
    }
    return true;
}

static bool flush_at_once = true;

void files_flush_at_once(bool wanted)
{
    flush_at_once = wanted;
}

static int write_new(const char *path, int flags, const void *bytes, size_t length, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | flags, mode);
    if (fd < 0)
        return errno;
    int error = 0;
    if (!write_all(fd, bytes, length) || fchmod(fd, mode) < 0 || (flush_at_once && fsync(fd) < 0))
        error = errno;
    close(fd);
    return error;
}

static bool is_so(const char *path, const void *bytes, size_t length, mode_t mode)
{
    char held[4096];
    struct stat status;
    if (length >= sizeof held - 1 || lstat(path, &status) < 0 || !S_ISREG(status.st_mode))
        return false;
    if ((size_t)status.st_size != length || (status.st_mode & 07777) != mode)
        return false;
    return read_text(path, held, sizeof held) == (ssize_t)length && memcmp(held, bytes, length) == 0;
}

int rewrite_file(const char *path, const void *bytes, size_t length, mode_t mode)
{
    if (is_so(path, bytes, length, mode))
        return 0;
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return replace_file(path, bytes, length, mode);
    struct stat status;
    bool longer = fstat(fd, &status) < 0 || status.st_size > (off_t)length; /* to cut a file off takes a disk's journal a while */
    int error = write_all(fd, bytes, length) && (!longer || ftruncate(fd, (off_t)length) == 0) ? 0 : errno;
    close(fd);
    return error;
}

int replace_file(const char *path, const void *bytes, size_t length, mode_t mode)
{
    char temporary[PATH_MAX];
    if (is_so(path, bytes, length, mode))
        return 0;
    if (snprintf(temporary, sizeof temporary, "%s.insula-new", path) >= (int)sizeof temporary)
        return ENAMETOOLONG;
    unlink(temporary);
    int error = write_new(temporary, O_EXCL, bytes, length, mode);
    if (error == 0 && rename(temporary, path) < 0)
        error = errno;
    if (error == 0)
        return 0;
    unlink(temporary);
    if (error == EBUSY || error == EROFS)
        return write_new(path, O_TRUNC, bytes, length, mode);
    return error;
}
