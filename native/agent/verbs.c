/* The verbs of the agent. docs/wire.md says what each takes and answers. */
#include <errno.h>
#include <unistd.h>

#include "channels.h"
#include "entries.h"
#include "exec.h"
#include "freeze.h"
#include "identity.h"
#include "power.h"
#include "renew.h"
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
    int error = clock_set(wire_find_u64(request->fields, request->length, TAG_TIME_NS, 0));
    if (error)
        answer_errno(request, error, NULL);
    else
        answer_done(request);
}

static void reseed_run(const struct request *request)
{
    struct wire_field data;
    bool given = wire_find(request->fields, request->length, TAG_DATA, &data);
    int error = given ? generator_reseed(data.bytes, data.length) : EINVAL;
    if (error)
        answer_errno(request, error, error == EINVAL ? NULL : "/dev/urandom");
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
    { "renew", renew_run },
    { "prepare", prepare_run },
    { "addresses", addresses_run },
    { "freeze", freeze_run },
    { "thaw", thaw_run },
    { "sync", sync_run },
    { "shutdown", shutdown_run },
    { "hangup", hangup_run },
    { NULL, NULL },
};
