#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "entries.h"
#include "files.h"
#include "link.h"
#include "tree.h"
#include "users.h"

/* A stream of entries is: u32 length, the fields, and for a regular file its content. */
enum stage { LENGTH, FIELDS, CONTENT, DONE };

struct put {
    struct channel channel;
    enum stage stage;
    int error;
    uint8_t head[ENTRY_MAX]; /* of what is read now: `have` of `want` bytes */
    size_t have, want;
    uint64_t left; /* content still to come */
    struct entry entry;
    struct tree tree;
};

static void next_stage(struct put *put, enum stage stage, size_t want)
{
    put->stage = stage;
    put->have = 0;
    put->want = want;
}

static void finish(struct put *put, int error)
{
    put->error = error;
    put->stage = DONE;
}

/* By name where this guest knows it, else by number; without either it is the agent's own. */
static void choose_owner(struct entry *entry, const uint8_t *fields, size_t length)
{
    char name[NAME_SIZE];
    if (!wire_find_text(fields, length, TAG_UNAME, name, sizeof name) || !name[0] || !user_id(name, &entry->uid))
        entry->uid = (uid_t)wire_find_u64(fields, length, TAG_UID, (uid_t)-1);
    if (!wire_find_text(fields, length, TAG_GNAME, name, sizeof name) || !name[0] || !group_id(name, &entry->gid))
        entry->gid = (gid_t)wire_find_u64(fields, length, TAG_GID, (gid_t)-1);
}

static bool parse_entry(struct entry *entry, const uint8_t *fields, size_t length)
{
    struct wire_field field;
    char kind[2];
    if (!wire_fields_valid(fields, length) || !wire_find_text(fields, length, TAG_PATH, entry->path, sizeof entry->path))
        return false;
    if (!wire_find_text(fields, length, TAG_KIND, kind, sizeof kind) || !kind[0])
        return false;
    entry->kind = kind[0];
    wire_find_text(fields, length, TAG_TARGET, entry->target, sizeof entry->target);
    entry->has_mode = wire_find(fields, length, TAG_MODE, &field);
    entry->mode = (mode_t)wire_find_u64(fields, length, TAG_MODE, 0) & 07777;
    entry->has_mtime = wire_find(fields, length, TAG_MTIME_NS, &field);
    entry->mtime_ns = wire_find_u64(fields, length, TAG_MTIME_NS, 0);
    entry->size = wire_find_u64(fields, length, TAG_SIZE, 0);
    choose_owner(entry, fields, length);
    return true;
}

static void end_content(struct put *put)
{
    int error = tree_end_file(&put->tree, &put->entry);
    if (error)
        finish(put, error);
    else
        next_stage(put, LENGTH, 4);
}

static void end_fields(struct put *put)
{
    if (!parse_entry(&put->entry, put->head, put->want)) {
        finish(put, EPROTO);
        return;
    }
    int error = tree_begin(&put->tree, &put->entry);
    if (error) {
        finish(put, error);
        return;
    }
    if (put->entry.kind != 'f') {
        next_stage(put, LENGTH, 4);
        return;
    }
    put->left = put->entry.size;
    put->stage = CONTENT;
    if (put->left == 0)
        end_content(put);
}

static void end_length(struct put *put)
{
    uint32_t length = wire_get_u32(put->head);
    put->entry.path[0] = 0;
    if (length > ENTRY_MAX)
        finish(put, EPROTO);
    else if (length > 0)
        next_stage(put, FIELDS, length);
    else
        finish(put, tree_finish(&put->tree)); /* the end of the stream: 0 is success */
}

static size_t take_head(struct put *put, const uint8_t *bytes, size_t length)
{
    size_t taken = put->want - put->have < length ? put->want - put->have : length;
    memcpy(put->head + put->have, bytes, taken);
    put->have += taken;
    if (put->have < put->want)
        return taken;
    if (put->stage == LENGTH)
        end_length(put);
    else
        end_fields(put);
    return taken;
}

static size_t take_content(struct put *put, const uint8_t *bytes, size_t length)
{
    size_t taken = put->left < length ? (size_t)put->left : length;
    if (!write_all(put->tree.file, bytes, taken)) {
        finish(put, errno);
        return taken;
    }
    put->left -= taken;
    if (put->left == 0)
        end_content(put);
    return taken;
}

static void put_data(struct channel *channel, const uint8_t *bytes, uint32_t length)
{
    struct put *put = (struct put *)channel;
    for (uint32_t at = 0; at < length && put->stage != DONE;)
        at += (uint32_t)(put->stage == CONTENT ? take_content(put, bytes + at, length - at)
                                               : take_head(put, bytes + at, length - at));
    channel_consumed(channel, length);
}

static void put_eof(struct channel *channel)
{
    struct put *put = (struct put *)channel;
    if (put->stage != DONE)
        finish(put, EPROTO); /* before the entry that ends the stream */
}

static void put_hang_up(struct channel *channel)
{
    struct put *put = (struct put *)channel;
    tree_close(&put->tree);
    free(put);
}

static void put_settle(struct channel *channel)
{
    struct put *put = (struct put *)channel;
    struct wire_writer fields;
    uint8_t buffer[8192];
    if (put->stage != DONE)
        return;
    wire_writer_init(&fields, buffer, sizeof buffer);
    if (put->error)
        put_failure(&fields, put->error, put->entry.path);
    channel_result(channel, &fields);
    link_flush(); /* before what was replaced is freed */
    put_hang_up(channel);
}

static const struct channel_kind kind = {
    .data = put_data, .eof = put_eof, .settle = put_settle, .hang_up = put_hang_up
};

void put_run(const struct request *request)
{
    char path[PATH_MAX];
    struct put *put = calloc(1, sizeof *put);
    if (!put) {
        answer_errno(request, ENOMEM, NULL);
        return;
    }
    int error = wire_find_text(request->fields, request->length, TAG_PATH, path, sizeof path) ? 0 : EINVAL;
    if (error == 0)
        error = tree_open(&put->tree, path);
    if (error) {
        answer_errno(request, error, path);
        free(put);
        return;
    }
    users_begin();
    next_stage(put, LENGTH, 4);
    channel_open(&put->channel, request, &kind);
    channel_widen(&put->channel);
}
