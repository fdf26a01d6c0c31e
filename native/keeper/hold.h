/* The holder of a fabric: hold.c is its life, inside.c its namespaces, message.c how it is spoken to, children.c the programs it
 * starts, room.c what they may see, rights.c what they may do. */
#ifndef KEEPER_HOLD_H
#define KEEPER_HOLD_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum {
    HOLD_CLIENTS_MAX = 32,
    HOLD_MESSAGE_MAX = 16384,
    HOLD_WORDS_MAX = 256,
    HOLD_FDS_MAX = 8,
    HOLD_CHILDREN_MAX = 1024,
    HOLD_NAME_MAX = 64,
};

int hold_main(int argc, char **argv);
int forward_main(int argc, char **argv);

/* Where the fabric's network is, and the user namespace that owns it (-1: the host's own). */
struct spaces {
    int user, net;
};

/* Become part of them. Only ever in a process that was forked for it. */
bool enter_spaces(const struct spaces *spaces);

/* Become root of a new user namespace that knows nobody else; all other namespaces stay. */
bool enter_own_user(void);

struct holder {
    int listen, self, life; /* `life`: our end of the pipe whose end tells the one inside */
    bool own_user, brief; /* `brief`: for one client, with whom it ends */
    struct spaces spaces;
    pid_t inside;
    int clients[HOLD_CLIENTS_MAX];
};

/* Start the process inside, and have the namespaces. 0, or the errno that says why not. */
int start_inside(struct holder *holder);

bool write_text(const char *path, const char *text);
void be_silent(void); /* standard input, output and error from and to nowhere */

/* What one request said: NUL-separated words, and the descriptors that came along. */
struct request {
    char bytes[HOLD_MESSAGE_MAX + 1];
    char *words[HOLD_WORDS_MAX + 1];
    size_t count;
    int fds[HOLD_FDS_MAX];
    size_t fd_count;
};

/* False when the peer has gone. A message that is too long or carries too many descriptors has no words. */
bool request_receive(int client, struct request *request);
void request_close_fds(struct request *request);

void reply(int client, const char *text, size_t length, const int *fds, size_t count);
void reply_ok(int client);
void reply_error(int client, const char *what, int number);
void reply_spaces(int client, const char *text, size_t length, const struct spaces *spaces);

/* A connection of somebody who has our own user id; -1 when there is none. */
int accept_own(int listen);

/* ---- children ---- */

/* start NAME inside|outside UID|- CAPABILITIES|- FOLDER|- ARGV…, with descriptors: [0] its output, the others from 3 on. With a `+`
 * behind CAPABILITIES the last descriptor is a filter of system calls, to which it is held. */
void children_start(int client, struct request *request, const struct spaces *spaces, int self);
void children_stop(int client, const char *name);
void children_signal(int client, const char *name, int number);
void children_list(int client);
void children_reap(void);
void children_end(void);

/* ---- rooms ---- */

/* In namespaces of our own for mounts, ipc, host name and cgroups: see only the system's programs, /dev/null, /dev/urandom, and `folder` (or nothing) at /n; all of it read-only. */
bool enter_room(const char *folder);

/* In a mount namespace of our own: see `folder` alone, with all that is mounted below it, read-only. */
bool take_root(const char *folder);

/* Let no program that is executed get other capabilities than those of `mask`. */
void bound_capabilities(unsigned long mask);

/* Be user `uid` (or who we are, if it is negative) with none but the capabilities of `mask`, now and in what is executed. */
bool reduce_rights(long uid, unsigned long mask);

/* Take no more than what serves networks needs. `own_user`: what is counted per user may be bounded, too. */
bool bound_resources(bool own_user);

/* Be held to the filter of system calls that is open as `calls`; not without "no new privileges". */
bool take_calls(int calls);

#endif
