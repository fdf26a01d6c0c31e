/* Processes the agent started, and (as PID 1) those nobody else waits for. */
#ifndef INSULA_CHILDREN_H
#define INSULA_CHILDREN_H

#include <signal.h>
#include <stdbool.h>
#include <sys/types.h>

struct child {
    pid_t pid;
    void (*ended)(struct child *child, int status); /* a status of waitpid; the child is forgotten already */
    struct child *next;
};

/* Watch SIGCHLD, and let `asked` hear of the signals by which somebody asks the agent to stop. */
void children_init(void (*asked)(int signal));

/* fork. In the new process signals are as a fresh program expects them; 0 there, the pid here, or -1. */
pid_t child_fork(struct child *child, void (*ended)(struct child *, int));

/* Nobody waits for it any more; it is still reaped. */
void child_forget(struct child *child);

/* Signal every process of a session, once. False when there is none. */
bool session_signal(pid_t session, int number);

/* The same, but for the group of its leader. */
bool session_signal_others(pid_t session, int number);

#endif
