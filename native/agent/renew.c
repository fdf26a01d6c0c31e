/* The order matters: no secret is made before the generator was reseeded, no connection is left when the clock jumps (its
 * timers would fire, and the cable is out only for now), no hook runs before the guest is who it shall be.
 *
 * Somebody waits for it, and in a guest that has just been loaded everything costs more than ever after. So nothing is forked but
 * hooks, and what can be done a moment later is: files are flushed, timers started, the next boot's seed is made. */
#include "renew.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "children.h"
#include "files.h"
#include "hooks.h"
#include "hostkeys.h"
#include "identity.h"
#include "kernel.h"
#include "loop.h"
#include "names.h"
#include "sever.h"
#include "task.h"
#include "timers.h"
#include "urgency.h"

enum { HOOKS_TIME = 30000, A_MOMENT = 1000, SEED_MAX = 4096, KEYS_MAX = 1024 };

static const uint64_t jump = 60000000000; /* nanoseconds: what is due within a minute may well fire */

/* ---- what came of each part ---- */

static void done(struct wire_writer *fields, const char *part)
{
    wire_put_text(fields, TAG_DONE, part);
}

static void left(struct wire_writer *fields, const char *part, const char *why)
{
    char text[512];
    snprintf(text, sizeof text, "%s: %s", part, why);
    wire_put_text(fields, TAG_LEFT, text);
}

static void told(struct wire_writer *fields, const char *part, int error)
{
    if (error)
        left(fields, part, error_name(error));
    else
        done(fields, part);
}

/* ---- entropy ---- */

/* The kernel counts what is added as entropy, and with the second call uses it from now on. */
int generator_reseed(const uint8_t *bytes, size_t length)
{
    struct random_pool pool = { 0 };
    if (length < 32 || length > sizeof pool.data)
        return EINVAL;
    memcpy(pool.data, bytes, length);
    pool.bytes = (int32_t)length;
    pool.entropy_bits = pool.bytes * 8;
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    int error = fd < 0 || ioctl(fd, KERNEL_RNDADDENTROPY, &pool) < 0 || ioctl(fd, KERNEL_RNDRESEEDCRNG) < 0 ? errno : 0;
    explicit_bzero(&pool, sizeof pool);
    if (fd >= 0)
        close(fd);
    return error;
}

/* What the next boot would begin with is the same in all copies, too. */
static void renew_seed_file(void)
{
    static const char path[] = "/var/lib/systemd/random-seed";
    uint8_t seed[SEED_MAX];
    struct stat status;
    if (lstat(path, &status) < 0 || !S_ISREG(status.st_mode) || status.st_size == 0)
        return;
    size_t length = status.st_size < SEED_MAX ? (size_t)status.st_size : SEED_MAX;
    if (getrandom(seed, length, 0) == (ssize_t)length)
        replace_file(path, seed, length, 0600);
    explicit_bzero(seed, sizeof seed);
}

static void renew_entropy(const struct request *request, struct wire_writer *fields)
{
    struct wire_field data;
    if (!wire_find(request->fields, request->length, TAG_DATA, &data))
        return;
    told(fields, "entropy", generator_reseed(data.bytes, data.length));
}

/* ---- time ---- */

int clock_set(uint64_t now)
{
    struct timespec time = { .tv_sec = (time_t)(now / 1000000000), .tv_nsec = (long)(now % 1000000000) };
    if (now == 0)
        return EINVAL;
    return clock_settime(CLOCK_REALTIME, &time) < 0 ? errno : 0;
}

static uint64_t monotonic(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static uint64_t clock_now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* In a copy, timers that became late while nobody ran are not its to make up for: the machine it was copied from did, or will.
 * `since`: when the request came, on the monotonic clock. */
static void renew_time(const struct request *request, struct wire_writer *fields, bool copy, uint64_t since)
{
    uint64_t now = wire_find_u64(request->fields, request->length, TAG_TIME_NS, 0);
    if (now == 0)
        return;
    bool timers = copy && timers_exist(), late = timers && now > clock_now() + jump;
    int error = late ? timers_stop_late(now + jump) : 0;
    told(fields, "clock", clock_set(now + (monotonic() - since)));
    if (timers)
        told(fields, "timers", error);
}

/* ---- identity ---- */

static bool is_given(const struct request *request, const char *key)
{
    struct wire_cursor cursor;
    struct wire_field field;
    wire_cursor_init(&cursor, request->fields, request->length);
    while (wire_field_next(&cursor, &field) == WIRE_GOT)
        if (field.tag == TAG_HOST_KEY && field.length > strlen(key) && memcmp(field.bytes, key, strlen(key) + 1) == 0)
            return true;
    return false;
}

/* Of the kinds of keys there were, those that did not come with the request: the guest makes the quick one itself, the others are
 * told as paths. */
static int replace_missing_keys(const struct request *request, char *removed, struct wire_writer *fields)
{
    struct wire_field any;
    char path[256], *rest = removed, *key;
    bool given = wire_find(request->fields, request->length, TAG_HOST_KEY, &any);
    int error = 0;
    while ((key = strtok_r(NULL, "\n", &rest))) {
        snprintf(path, sizeof path, "/etc/ssh/%s", key);
        if (is_given(request, key))
            continue;
        if (!given && strcmp(key, "ssh_host_ed25519_key") == 0)
            error = host_key_make(key);
        else
            wire_put_text(fields, TAG_PATH, path);
    }
    return error;
}

static void renew_identity(const struct request *request, struct wire_writer *fields, bool copy)
{
    static const char *const words[IDENTITY_PARTS] = { "machine-id", "hostname", "host-keys", "network" };
    static char removed[KEYS_MAX];
    struct outcome outcome = { 0 };
    bool keys = copy && host_keys_wanted();
    if (keys)
        host_keys_remove(removed, sizeof removed);
    identity_apply(request, &outcome);
    if (keys) {
        int error = replace_missing_keys(request, removed, fields);
        outcome.errors[IDENTITY_HOST_KEYS] = outcome.errors[IDENTITY_HOST_KEYS] ? outcome.errors[IDENTITY_HOST_KEYS] : error;
        outcome.tried[IDENTITY_HOST_KEYS] = true;
    }
    for (int part = 0; part < IDENTITY_PARTS; part++)
        if (outcome.tried[part])
            told(fields, words[part], outcome.errors[part]);
}

/* ---- what nobody waits for ---- */

static struct timer later;

static void finished(struct child *child, int status)
{
    (void)status;
    free(child);
}

static void finish(struct timer *timer)
{
    (void)timer;
    struct child *child = malloc(sizeof *child);
    pid_t pid = child ? child_fork(child, finished) : -1;
    if (pid == 0) {
        timers_start_again();
        renew_seed_file();
        sync();
        _exit(0);
    }
    timers_forget();
    if (pid < 0)
        free(child);
}

/* ---- the verb ---- */

enum { ANSWER_MAX = 6144 };

static uint8_t answer_bytes[ANSWER_MAX];
static size_t answer_length;

/* In a process of its own: the agent answers meanwhile, whatever a hook does. */
static void hooks_job(const struct request *request, struct wire_writer *fields)
{
    char former[65], failed[320];
    uint64_t time = wire_find_u64(request->fields, request->length, TAG_WAIT_MS, HOOKS_TIME);
    wire_find_text(request->fields, request->length, TAG_FORMER, former, sizeof former);
    memcpy(fields->buffer, answer_bytes, answer_length);
    fields->length = answer_length;
    int ran = hooks_run(former, time < HOOKS_TIME ? time : HOOKS_TIME, failed, sizeof failed);
    if (failed[0])
        left(fields, "hooks", failed);
    else if (ran > 0)
        done(fields, "hooks");
}

/* What a renewal looks for is looked for now, so that the kernel has it in memory. */
static void look_ahead(struct timer *timer)
{
    (void)timer;
    identity_look_ahead();
    hooks_exist();
}

/* Not at once: whoever waits for this guest goes first. In copies it has been done. */
void renew_expect(void)
{
    static struct timer soon;
    static bool expected;
    if (!expected)
        timer_start(&soon, A_MOMENT, look_ahead);
    expected = true;
}

/* What a renewal would have to ask others for is asked now: see timers.h. */
void prepare_run(const struct request *request)
{
    look_ahead(NULL);
    int error = timers_exist() ? timers_look_ahead() : 0;
    urgency_begin(URGENT_SOON);
    if (error)
        answer_errno(request, error, NULL);
    else
        answer_done(request);
}

void renew_run(const struct request *request)
{
    uint64_t since = monotonic();
    struct wire_writer fields;
    char former[65];
    bool copy = wire_find_text(request->fields, request->length, TAG_FORMER, former, sizeof former);
    urgency_begin(URGENT_NOW);
    wire_writer_init(&fields, answer_bytes, sizeof answer_bytes);
    files_flush_at_once(false);
    renew_entropy(request, &fields);
    if (copy)
        told(&fields, "connections", sever_connections());
    renew_time(request, &fields, copy, since);
    renew_identity(request, &fields, copy);
    files_flush_at_once(true);
    timer_start(&later, A_MOMENT, finish);
    answer_length = fields.length;
    if (copy && hooks_exist())
        task_run(request, hooks_job);
    else
        answer(request, &fields);
}
