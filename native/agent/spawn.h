/* Becoming another program: what happens between fork and execve. */
#ifndef INSULA_SPAWN_H
#define INSULA_SPAWN_H

#include <stdbool.h>
#include <stdint.h>

#include "channels.h"

/* What is to run, with NUL-terminated strings, all in one piece of memory. */
struct command {
    char **argv;
    char **env; /* K=V as given; later ones win */
    const char *cwd; /* NULL: the user's home */
    char user[80];
    bool tty;
    uint16_t rows, columns;
    void *memory;
};

/* Why a program could not be started, sent through the error pipe. `word` is what RESULT says. */
struct failure {
    char word[16];
    int error;
};

/* False: no argv, or memory is short. free(command->memory) afterwards. */
bool command_parse(const struct request *request, struct command *command);

/* In the child: streams[0..2] become 0..2 (a terminal: all the same), then the program. Never returns; `failures` hears
 * why it did not work. */
_Noreturn void command_become(const struct command *command, const int streams[3], int failures);

#endif
