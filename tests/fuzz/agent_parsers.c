/* The agent's parsers of what a host sends: frames, fields, commands and streams of entries, fed with stories of good, bent and
 * broken bytes. The same seed is always the same story.
 *
 *     agent_parsers SEED STORIES FOLDER      (a libFuzzer build calls LLVMFuzzerTestOneInput instead)
 *
 * Built with sanitizers. What is checked, beside them: a reader never takes what was not given and always finds its next life,
 * entries never lead out of the folder they are put into, answers are well formed, and nothing half written is left.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/channels.h"
#include "agent/entries.h"
#include "agent/link.h"
#include "agent/loop.h"
#include "agent/spawn.h"
#include "agent/tree.h"
#include "agent/users.h"

#define MUST(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "story %llu, line %d: not so: %s\n", (unsigned long long)story, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

enum { STORY_MAX = 300000 };

static uint64_t story, chance_state;

static uint32_t below(uint32_t limit) /* xorshift64* */
{
    chance_state ^= chance_state >> 12;
    chance_state ^= chance_state << 25;
    chance_state ^= chance_state >> 27;
    return (uint32_t)((chance_state * 0x2545F4914F6CDD1DULL) >> 33) % limit;
}

/* ---- the agent's surroundings ---- */

static unsigned answers;

bool link_room(void)
{
    return true;
}

void link_flush(void)
{
}

void link_send(uint8_t type, uint8_t stream, uint32_t channel, const void *payload, uint32_t length)
{
    (void)stream;
    (void)channel;
    MUST(length <= WIRE_PAYLOAD_MAX);
    MUST(type == WIRE_RESULT || type == WIRE_CREDIT);
    if (type == WIRE_RESULT)
        MUST(wire_fields_valid(payload, length));
    answers++;
}

void cgroup_enter_exec(void)
{
}

/* Whatever the request says, files go into our folder. */
static void put_here(const struct request *request)
{
    struct wire_writer fields;
    uint8_t buffer[64];
    wire_writer_init(&fields, buffer, sizeof buffer);
    wire_put_text(&fields, TAG_PATH, "inside");
    struct request ours = { request->channel, fields.buffer, fields.length };
    put_run(&ours);
}

static void parse_only(const struct request *request)
{
    struct command command;
    static struct user user;
    if (command_parse(request, &command)) {
        MUST(command.argv[0] != NULL);
        for (char **word = command.argv; *word; word++)
            MUST(strlen(*word) <= request->length);
        for (char **word = command.env; *word; word++)
            MUST(strlen(*word) <= request->length);
        user_find(command.user, &user);
    }
    free(command.memory);
    answer_done(request);
}

const struct verb verbs[] = { { "put", put_here }, { "exec", parse_only }, { "stat", stat_run }, { NULL, NULL } };

/* ---- what is checked ---- */

static void look_around(void)
{
    struct dirent *entry;
    DIR *outside = opendir("outside");
    MUST(outside);
    while ((entry = readdir(outside)))
        MUST(entry->d_name[0] == '.');
    closedir(outside);
    DIR *here = opendir(".");
    while ((entry = readdir(here)))
        MUST(entry->d_name[0] == '.' || strcmp(entry->d_name, "inside") == 0 || strcmp(entry->d_name, "outside") == 0);
    closedir(here);
    DIR *inside = opendir("inside");
    while ((entry = readdir(inside)))
        MUST(strncmp(entry->d_name, ".insula-put", 11) != 0);
    closedir(inside);
}

/* Feed the bytes in pieces, as a port would give them. */
static void live(const uint8_t *data, size_t size)
{
    static uint8_t buffer[2 * WIRE_FRAME_MAX];
    struct wire_reader reader;
    struct wire_frame frame;
    struct wire_sync sync;
    struct wire_answer said;
    bool scanning = size > 0 && data[0] & 1;
    wire_reader_init(&reader, buffer, sizeof buffer);
    for (size_t given = 0; given < size;) {
        uint8_t *at;
        size_t room = wire_reader_space(&reader, &at), piece = 1 + (data[given] * 257u) % 70000;
        MUST(room > 0);
        piece = piece < room ? piece : room;
        piece = piece < size - given ? piece : size - given;
        memcpy(at, data + given, piece);
        given += piece;
        wire_reader_filled(&reader, piece);
        for (enum wire_got got = WIRE_GOT; got == WIRE_GOT;) {
            got = scanning ? wire_reader_seek_sync(&reader, &sync) : wire_reader_next(&reader, &frame);
            MUST(reader.begin <= reader.end && reader.end <= reader.size);
            if (got == WIRE_GOT && scanning) {
                channels_hang_up();
                scanning = false;
            } else if (got == WIRE_GOT) {
                MUST(frame.payload + frame.length <= reader.buffer + reader.end);
                channels_frame(&frame);
                channels_settle();
            } else if (got == WIRE_MALFORMED) {
                scanning = true;
                got = WIRE_GOT;
            }
        }
    }
    struct wire_reader again;
    wire_reader_init(&again, buffer, sizeof buffer);
    wire_reader_filled(&again, size < sizeof buffer ? size : sizeof buffer);
    memcpy(buffer, data, again.end);
    while (wire_reader_seek_answer(&again, data, &said) == WIRE_GOT)
        MUST(said.length <= WIRE_HELLO_MAX && said.fields + said.length <= buffer + again.end);
    channels_hang_up();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size >= WIRE_NONCE)
        live(data, size);
    return 0;
}

/* ---- stories ---- */

struct text {
    uint8_t bytes[STORY_MAX];
    size_t length;
};

static void add(struct text *text, const void *bytes, size_t length)
{
    if (length == 0 || length > sizeof text->bytes - text->length)
        return;
    memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
}

static void add_frame(struct text *text, uint8_t type, uint32_t channel, const void *payload, size_t length)
{
    uint8_t header[WIRE_HEADER];
    wire_header(header, type, 0, channel, (uint32_t)length);
    add(text, header, sizeof header);
    add(text, payload, length);
}

static const char *const names[] = {
    "a", "b", "a/b", "a/b/c", "a/../b", "../outside/x", "/outside", "a//b", "", ".", "..", "link", "link/x", "a/", "./a", "inside",
};
static const char kinds[] = "fdlhpsfdl?";

static size_t make_entry(uint8_t *at, size_t size)
{
    struct wire_writer fields;
    uint64_t content = below(4) ? below(300) : below(100000);
    char kind[2] = { kinds[below(sizeof kinds - 1)] };
    wire_writer_init(&fields, at + 4, size - 4);
    wire_put_text(&fields, TAG_PATH, names[below(sizeof names / sizeof *names)]);
    wire_put_text(&fields, TAG_KIND, kind);
    if (below(2))
        wire_put_u64(&fields, TAG_MODE, below(010000) | 0700);
    if (below(2))
        wire_put_u64(&fields, TAG_MTIME_NS, (uint64_t)below(1u << 31) * 1000000007u);
    if (below(3) == 0)
        wire_put_text(&fields, TAG_UNAME, below(2) ? "root" : "nobody");
    wire_put_u64(&fields, TAG_SIZE, below(50) ? content : ~0ull);
    wire_put_text(&fields, TAG_TARGET, below(3) ? names[below(sizeof names / sizeof *names)] : "../outside");
    wire_set_u32(at, (uint32_t)fields.length);
    size_t length = 4 + fields.length;
    if (kind[0] == 'f') {
        content = content < size - length ? content : size - length;
        memset(at + length, 'x', content);
        length += content;
    }
    return length;
}

static void add_put(struct text *text, uint32_t channel)
{
    static uint8_t stream[STORY_MAX];
    uint8_t open[64];
    struct wire_writer fields;
    size_t length = 0, entries = below(12);
    wire_writer_init(&fields, open, sizeof open);
    wire_put_text(&fields, TAG_VERB, "put");
    add_frame(text, WIRE_OPEN, channel, open, fields.length);
    for (size_t i = 0; i < entries && length < 100000; i++)
        length += make_entry(stream + length, 120000);
    if (below(4)) {
        memset(stream + length, 0, 4);
        length += 4;
    }
    for (size_t sent = 0; sent < length;) {
        size_t piece = 1 + below(below(3) ? 60000 : 40);
        piece = piece < length - sent ? piece : length - sent;
        add_frame(text, WIRE_DATA, channel, stream + sent, piece);
        sent += piece;
    }
    if (below(2))
        add_frame(text, below(2) ? WIRE_EOF : WIRE_CLOSE, channel, NULL, 0);
}

static void add_request(struct text *text, uint32_t channel)
{
    static const uint16_t tags[] = { TAG_ARGV, TAG_ENV, TAG_CWD, TAG_USER, TAG_TTY, TAG_ROWS, TAG_COLS, TAG_PATH, TAG_DATA, 999 };
    uint8_t open[4096], value[200];
    struct wire_writer fields;
    wire_writer_init(&fields, open, sizeof open);
    wire_put_text(&fields, TAG_VERB, verbs[below(3)].name);
    for (uint32_t i = below(20); i > 0; i--) {
        size_t length = below(sizeof value);
        for (size_t j = 0; j < length; j++)
            value[j] = (uint8_t)(below(8) ? 'a' + below(26) : below(256));
        wire_put_bytes(&fields, tags[below(sizeof tags / sizeof *tags)], value, length);
    }
    add_frame(text, (uint8_t)(1 + below(9)), channel, open, fields.length);
}

static void bend(struct text *text)
{
    for (uint32_t i = below(4) ? below(6) : 0; i > 0 && text->length > 0; i--) {
        size_t at = below((uint32_t)text->length);
        if (below(2))
            text->bytes[at] = (uint8_t)below(256);
        else if (below(2))
            text->length = at;
        else
            text->bytes[at] ^= (uint8_t)(1u << below(8));
    }
}

static void tell(void)
{
    static struct text text;
    struct wire_sync sync = { .lowest = 1, .highest = 1 };
    uint8_t mark[WIRE_SYNC];
    text.length = 0;
    wire_write_sync(mark, &sync);
    uint8_t first = (uint8_t)below(256);
    add(&text, &first, 1);
    add(&text, mark, sizeof mark);
    for (uint32_t i = 1 + below(6); i > 0; i--) {
        if (below(3))
            add_put(&text, 1 + below(3));
        else
            add_request(&text, 1 + below(3));
        if (below(8) == 0)
            add(&text, mark, below(2) ? sizeof mark : below(sizeof mark));
    }
    bend(&text);
    LLVMFuzzerTestOneInput(text.bytes, text.length);
    look_around();
}

#ifndef INSULA_LIBFUZZER
static void make_world(const char *folder)
{
    if (chdir(folder) < 0 || mkdir("inside", 0700) < 0 || mkdir("outside", 0700) < 0 ||
        symlink("../outside", "inside/link") < 0) {
        perror(folder);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    uint64_t seed = strtoull(argv[1], NULL, 10), stories = strtoull(argv[2], NULL, 10);
    make_world(argv[3]);
    for (story = seed; story < seed + stories; story++) {
        chance_state = (story + 1) * 0x9E3779B97F4A7C15ULL;
        tell();
    }
    printf("%llu stories, %u answers\n", (unsigned long long)stories, answers);
    return answers > stories ? 0 : 1;
}
#endif
