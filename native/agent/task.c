#include "task.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "children.h"
#include "files.h"
#include "loop.h"

enum { RESULT_MAX = 8192 };

struct task {
    struct channel channel;
    struct child child;
    bool ended;
    int status;
    int words; /* where the process says its fields */
};

static void task_ended(struct child *child, int status)
{
    struct task *task = CONTAINER(child, struct task, child);
    task->ended = true;
    task->status = status;
}

static void task_settle(struct channel *channel)
{
    struct task *task = CONTAINER(channel, struct task, channel);
    uint8_t buffer[RESULT_MAX];
    struct wire_writer fields;
    if (!task->ended)
        return;
    wire_writer_init(&fields, buffer, sizeof buffer);
    ssize_t got = read(task->words, buffer, sizeof buffer);
    if (got > 0)
        fields.length = (size_t)got;
    if (got < 0 || !WIFEXITED(task->status) || WEXITSTATUS(task->status) != 0)
        put_failure(&fields, ECANCELED, NULL);
    channel_result(channel, &fields);
    close(task->words);
    free(task);
}

static void task_hang_up(struct channel *channel)
{
    struct task *task = CONTAINER(channel, struct task, channel);
    if (!task->ended) {
        kill(task->child.pid, SIGKILL);
        child_forget(&task->child);
    }
    close(task->words);
    free(task);
}

static const struct channel_kind kind = { .settle = task_settle, .hang_up = task_hang_up };

_Noreturn static void be_task(const struct request *request, void (*job)(const struct request *, struct wire_writer *), int words)
{
    uint8_t buffer[RESULT_MAX];
    struct wire_writer fields;
    wire_writer_init(&fields, buffer, sizeof buffer);
    job(request, &fields);
    _exit(fields.overflow || !write_all(words, fields.buffer, fields.length) ? 1 : 0);
}

void task_run(const struct request *request, void (*job)(const struct request *, struct wire_writer *))
{
    int ends[2] = { -1, -1 };
    struct task *task = calloc(1, sizeof *task);
    pid_t pid = task && pipe2(ends, O_CLOEXEC) == 0 ? child_fork(&task->child, task_ended) : -1;
    if (pid == 0)
        be_task(request, job, ends[1]);
    int error = errno;
    if (ends[1] >= 0)
        close(ends[1]);
    if (pid > 0) {
        task->words = ends[0];
        channel_open(&task->channel, request, &kind);
        return;
    }
    if (ends[0] >= 0)
        close(ends[0]);
    free(task);
    answer_errno(request, error, NULL);
}
