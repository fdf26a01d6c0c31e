#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static void set_append(int fd, int append)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0)
        fcntl(fd, F_SETFL, append ? flags | O_APPEND : flags & ~O_APPEND);
}

void log_init(struct log *log, int fd, int old, off_t limit)
{
    *log = (struct log){ .fd = fd, .old = old, .limit = limit };
    set_append(fd, 1); /* others may append lines of their own */
    if (old >= 0)
        set_append(old, 0);
}

static void move_to_old(struct log *log)
{
    char block[8192];
    off_t at = 0;
    ssize_t got;
    if (log->old >= 0 && ftruncate(log->old, 0) == 0) {
        while (at < 2 * log->limit && (got = pread(log->fd, block, sizeof block, at)) > 0) {
            if (pwrite(log->old, block, (size_t)got, at) != got)
                break;
            at += got;
        }
    }
    if (ftruncate(log->fd, 0) != 0)
        log->fd = -1; /* it could only grow without bound */
}

void log_write(struct log *log, const void *bytes, size_t length)
{
    struct stat status;
    if (log->fd < 0 || fstat(log->fd, &status) != 0 || (off_t)length > log->limit)
        return;
    /* Who else appends holds the lock for an instant. The moving can wait for a later line, though not for ever. */
    if (status.st_size + (off_t)length > log->limit) {
        bool locked = flock(log->fd, LOCK_EX | LOCK_NB) == 0;
        if (locked || status.st_size > 2 * log->limit)
            move_to_old(log);
        if (locked && log->fd >= 0)
            flock(log->fd, LOCK_UN);
    }
    while (log->fd >= 0 && length > 0) {
        ssize_t written = write(log->fd, bytes, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return;
        bytes = (const char *)bytes + written;
        length -= (size_t)written;
    }
}

void record_init(int fd, size_t size)
{
    set_append(fd, 0);
    (void)!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)size); /* where the file system cannot, writing later may fail */
}

void status_write(int fd, const char *json)
{
    char block[STATUS_BLOCK];
    size_t length = strnlen(json, sizeof block - 1);
    memset(block, ' ', sizeof block);
    memcpy(block, json, length);
    block[sizeof block - 1] = '\n';
    (void)!pwrite(fd, block, sizeof block, 0); /* a full disk: the old status stays, keeper.status tells the new one */
}

void exit_write(int fd, const char *json)
{
    size_t length = strlen(json);
    if (pwrite(fd, json, length, 0) == (ssize_t)length)
        (void)!ftruncate(fd, (off_t)length);
    fsync(fd);
}
