/* The verbs of the agent. docs/wire.md says what each takes and answers. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "channels.h"
#include "entries.h"
#include "exec.h"
#include "freeze.h"
#include "identity.h"
#include "kernel.h"
#include "power.h"
#include "task.h"

static void ping_run(const struct request *request)
{
    static uint8_t buffer[WIRE_PAYLOAD_MAX];
    struct wire_writer fields;
    struct wire_field data;
    wire_writer_init(&fields, buffer, sizeof buffer);
    if (wire_find(request->fields, request->length, TAG_DATA, &data))
        wire_put_bytes(&fields, TAG_DATA, data.bytes, data.length);
    answer(request, &fields);
}

static void clock_run(const struct request *request)
{
    uint64_t now = wire_find_u64(request->fields, request->length, TAG_TIME_NS, 0);
    struct timespec time = { .tv_sec = (time_t)(now / 1000000000), .tv_nsec = (long)(now % 1000000000) };
    if (now == 0)
        answer_errno(request, EINVAL, NULL);
    else if (clock_settime(CLOCK_REALTIME, &time) < 0)
        answer_errno(request, errno, NULL);
    else
        answer_done(request);
}

/* The kernel counts what is added as entropy, and with the second call uses it from now on. */
static void reseed_run(const struct request *request)
{
    struct random_pool pool = { 0 };
    struct wire_field data;
    if (!wire_find(request->fields, request->length, TAG_DATA, &data) || data.length < 32 || data.length > sizeof pool.data) {
        answer_errno(request, EINVAL, NULL);
        return;
    }
    memcpy(pool.data, data.bytes, data.length);
    pool.bytes = (int32_t)data.length;
    pool.entropy_bits = pool.bytes * 8;
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    int error = fd < 0 || ioctl(fd, KERNEL_RNDADDENTROPY, &pool) < 0 || ioctl(fd, KERNEL_RNDRESEEDCRNG) < 0 ? errno : 0;
    explicit_bzero(&pool, sizeof pool);
    if (fd >= 0)
        close(fd);
    if (error)
        answer_errno(request, error, "/dev/urandom");
    else
        answer_done(request);
}

static void sync_job(const struct request *request, struct wire_writer *fields)
{
    (void)request;
    (void)fields;
    sync();
}

static void sync_run(const struct request *request)
{
    task_run(request, sync_job);
}

static void hangup_run(const struct request *request)
{
    channels_cut("EHANGUP");
    answer_done(request);
}

const struct verb verbs[] = {
    { "ping", ping_run },
    { "exec", exec_run },
    { "put", put_run },
    { "get", get_run },
    { "stat", stat_run },
    { "clock", clock_run },
    { "reseed", reseed_run },
    { "identity", identity_run },
    { "addresses", addresses_run },
    { "freeze", freeze_run },
    { "thaw", thaw_run },
    { "sync", sync_run },
    { "shutdown", shutdown_run },
    { "hangup", hangup_run },
    { NULL, NULL },
};
