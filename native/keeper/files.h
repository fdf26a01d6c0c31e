/* What the keeper leaves on disk, all through descriptors it was given. Guest text ends here, so everything is bounded; a
 * full disk loses text and nothing else. */
#ifndef KEEPER_FILES_H
#define KEEPER_FILES_H

#include <stddef.h>
#include <sys/types.h>

/* A file that only grows, up to `limit` bytes; then its content moves to `old` and it begins anew. A little more
 * (twice the limit at most) while somebody else who appends holds its lock. */
struct log {
    int fd, old; /* -1: there is none */
    off_t limit;
};

void log_init(struct log *log, int fd, int old, off_t limit);
void log_write(struct log *log, const void *bytes, size_t length);

enum { STATUS_BLOCK = 1024, EXIT_RECORD_MAX = 8192 };

/* Make room on the disk now for what must be writable at the end, and let writes go where they are meant to. */
void record_init(int fd, size_t size);

/* Replace the status: one write of a block padded with blanks, so that no reader sees half of it. */
void status_write(int fd, const char *json);

/* Replace the exit record; on return it is on the disk. */
void exit_write(int fd, const char *json);

#endif
