/* Small files of the guest, read whole and replaced whole. */
#ifndef INSULA_FILES_H
#define INSULA_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Read at most size - 1 bytes and end them with NUL. Bytes read, or -1 (errno). */
ssize_t read_text(const char *path, char *to, size_t size);

/* The first line, without its end. False when there is none. */
bool read_line(const char *path, char *to, size_t size);

/* Write the whole of `bytes`; false (errno) on failure. For descriptors that block. */
bool write_all(int fd, const void *bytes, size_t length);

/* Replace a file: a new one beside it, flushed, renamed over it. Where renaming cannot be (a file mounted over), written
 * in place. One that is as wanted already is left alone. 0 or an errno. */
int replace_file(const char *path, const void *bytes, size_t length, mode_t mode);

/* The same for what the host says again at every boot: written in place, which in a guest that was just loaded takes a third of the
 * time. What is torn by a crash is mended by that. */
int rewrite_file(const char *path, const void *bytes, size_t length, mode_t mode);

/* Whether this process waits for the disk at each file (it does), or somebody syncs when all is done. */
void files_flush_at_once(bool wanted);

#endif
