/* Files in and out as streams of entries: `put` and `get`. */
#ifndef INSULA_ENTRIES_H
#define INSULA_ENTRIES_H

#include "channels.h"

enum {
    ENTRY_MAX = 16384,  /* bytes of fields of one entry */
    FOLDERS_MAX = 1024, /* folders within folders */
};

void put_run(const struct request *request);
void get_run(const struct request *request);
void stat_run(const struct request *request);

/* The letter of a kind of file, and back (0: unknown). */
char kind_letter(unsigned mode);
unsigned kind_mode(char letter);

#endif
