/* QEMU as a child: started with nothing but what it needs, its words kept, ended when asked. */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { QEMU_LOG_MAX = 65536 };

static void become_qemu(const int *kept_given, size_t count, int words, pid_t parent, char *const argv[])
{
    int kept[256];
    sigset_t none;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* where there is no pid namespace to end with us */
    if (getppid() != parent)
        _exit(127);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_IGN); /* a file that grew beyond its bound is an error to handle, not an end */
    dup2(words, 1);
    dup2(words, 2);
    memcpy(kept, kept_given, count * sizeof *kept);
    for (size_t i = 0; i < count; i++)
        fcntl(kept[i], F_SETFD, 0);
    close_others(kept, count);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execv(argv[0], argv);
    dprintf(2, "cannot start %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

bool qemu_start(struct keeper *keeper, int *kept, size_t count, char *const argv[])
{
    int words[2];
    pid_t self = getpid();
    keeper->qemu.last_ring = (struct ring){ .bytes = (uint8_t *)keeper->qemu.last, .size = LAST_WORDS };
    if (pipe2(words, O_CLOEXEC) < 0)
        return false;
    keeper->qemu.pid = fork();
    if (keeper->qemu.pid == 0)
        become_qemu(kept, count, words[1], self, argv);
    close(words[1]);
    for (size_t i = 0; i < count; i++)
        close(kept[i]); /* QEMU's now: its end must show on the sockets */
    keeper->qemu.words = words[0];
    set_nonblocking(words[0]);
    return keeper->qemu.pid > 0;
}

void qemu_words(struct keeper *keeper)
{
    struct qemu *qemu = &keeper->qemu;
    char bytes[4096];
    ssize_t got = read(qemu->words, bytes, sizeof bytes);
    if (got > 0) {
        ring_add(&qemu->last_ring, bytes, (size_t)got);
        if (keeper->fd.qemu_log >= 0 && qemu->logged < QEMU_LOG_MAX) /* its first words; the last are in the exit record */
            (void)!write(keeper->fd.qemu_log, bytes, (size_t)got);
        qemu->logged += (size_t)got;
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        close_fd(&qemu->words);
    }
}

void qemu_kill(struct keeper *keeper)
{
    keeper->qemu.killed = true;
    keeper->qemu.kill_at = 0;
    if (!keeper->ended && keeper->qemu.pid > 0)
        kill(keeper->qemu.pid, SIGKILL); /* ours until we reap it, so the number cannot be somebody else's */
}
