/* The framing that host, keeper and agent speak; docs/wire.md is its one page of truth.
 *
 * Nothing here allocates, blocks or keeps state of its own: readers and writers work in buffers of the caller, and every
 * length that came from the other side is checked before it is used. Bytes handed out point into the caller's buffer.
 */
#ifndef INSULA_WIRE_H
#define INSULA_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    WIRE_VERSION = 1,
    WIRE_HEADER = 12,
    WIRE_PAYLOAD_MAX = 65536,
    WIRE_FRAME_MAX = WIRE_HEADER + WIRE_PAYLOAD_MAX, /* also the length of the zeros before a SYNC */
    WIRE_CHANNELS_MAX = 256,
    WIRE_MARK = 16,
    WIRE_NONCE = 16,
    WIRE_SYNC = WIRE_MARK + WIRE_NONCE + 8,  /* mark, nonce, u16 lowest, u16 highest, u32 0 */
    WIRE_ANSWER = WIRE_MARK + WIRE_NONCE + 8, /* mark, nonce, u16 version, u16 0, u32 length of the fields that follow */
    WIRE_HELLO_MAX = 4096,                   /* no answer carries more bytes of fields */
    WIRE_WINDOW = 262144,                    /* credit every stream starts with */
    WIRE_WINDOW_MAX = 4194304,               /* credit never adds up to more */
    WIRE_CREDIT_STEP = 1048576,              /* it is given at the latest when so much was consumed: some keep to that window */
};

enum wire_type {
    WIRE_OPEN = 1, WIRE_DATA, WIRE_EOF, WIRE_CREDIT, WIRE_SIGNAL, WIRE_RESIZE, WIRE_RESULT, WIRE_CLOSE
};

enum wire_stream { WIRE_STDIN = 0, WIRE_STDOUT = 1, WIRE_STDERR = 2 };

enum wire_tag {
    TAG_VERB = 1, TAG_ARGV, TAG_ENV, TAG_CWD, TAG_USER, TAG_TTY, TAG_ROWS, TAG_COLS,
    TAG_PATH = 10, TAG_MODE, TAG_UID, TAG_GID, TAG_SIZE, TAG_MTIME_NS, TAG_KIND, TAG_TARGET, TAG_UNAME, TAG_GNAME,
    TAG_CODE = 20, TAG_SIGNAL, TAG_ERROR, TAG_MESSAGE,
    TAG_VERSION = 30, TAG_ARCH, TAG_FEATURES, TAG_BOOT_ID, TAG_PID1, TAG_BUILD, TAG_KERNEL, TAG_OS,
    TAG_DATA = 40, TAG_TIME_NS, TAG_MACHINE_ID, TAG_HOSTNAME, TAG_HOST_KEY, TAG_MAC, TAG_ADDRESS, TAG_GATEWAY, TAG_DNS,
    TAG_NEW_MAC, TAG_UNTIL, TAG_WAIT_MS, TAG_ON_DROP, TAG_STATE, TAG_REASON, TAG_HOW, TAG_FOLLOW, TAG_INPUT,
    TAG_GATE, TAG_DONE, TAG_LEFT, TAG_FORMER
};

extern const uint8_t wire_mark[WIRE_MARK];

/* ---- integers, little-endian whatever the machine is ---- */

uint16_t wire_get_u16(const uint8_t *at);
uint32_t wire_get_u32(const uint8_t *at);
uint64_t wire_get_u64(const uint8_t *at);
void wire_set_u16(uint8_t *at, uint16_t value);
void wire_set_u32(uint8_t *at, uint32_t value);
void wire_set_u64(uint8_t *at, uint64_t value);

/* ---- frames ---- */

struct wire_frame {
    uint8_t type;
    uint8_t stream;
    uint32_t channel;
    uint32_t length;
    const uint8_t *payload;
};

/* Write the WIRE_HEADER bytes that announce `length` bytes of payload. */
void wire_header(uint8_t *at, uint8_t type, uint8_t stream, uint32_t channel, uint32_t length);

/* An incremental reader over the caller's buffer of at least WIRE_FRAME_MAX bytes (twice that moves fewer bytes about):
 *
 *     room = wire_reader_space(&reader, &at);  n = read(fd, at, room);  wire_reader_filled(&reader, n);
 *     while ((got = wire_reader_next(&reader, &frame)) == WIRE_GOT) handle(&frame);
 *
 * A frame's payload stays valid until the next wire_reader_space. After WIRE_MALFORMED nothing was taken: either give
 * the connection up, or wire_reader_seek. There is always room after next or seek returned WIRE_MORE.
 */
struct wire_reader {
    uint8_t *buffer;
    size_t size, begin, end;
};

enum wire_got { WIRE_MORE = 0, WIRE_GOT = 1, WIRE_MALFORMED = -1 };

void wire_reader_init(struct wire_reader *reader, void *buffer, size_t size);
size_t wire_reader_space(struct wire_reader *reader, uint8_t **at);
void wire_reader_filled(struct wire_reader *reader, size_t bytes);
enum wire_got wire_reader_next(struct wire_reader *reader, struct wire_frame *frame);

/* ---- the beginning of a life ---- */

struct wire_sync {
    uint8_t nonce[WIRE_NONCE];
    uint16_t lowest, highest;
};

struct wire_answer {
    uint16_t version; /* 0: none in common */
    const uint8_t *fields;
    uint32_t length;
};

/* Agent, scanning: drop bytes until a whole SYNC and take it. WIRE_GOT or WIRE_MORE. */
enum wire_got wire_reader_seek_sync(struct wire_reader *reader, struct wire_sync *sync);

/* Host: drop bytes until the whole answer to the SYNC with this nonce and take it. WIRE_GOT or WIRE_MORE. An answer that
 * comes twice (SYNC was repeated) shows as WIRE_MALFORMED between frames; seeking again then takes it at once. */
enum wire_got wire_reader_seek_answer(struct wire_reader *reader, const uint8_t nonce[WIRE_NONCE], struct wire_answer *answer);

/* Write the WIRE_SYNC bytes the host sends after WIRE_FRAME_MAX zeros. */
void wire_write_sync(uint8_t at[WIRE_SYNC], const struct wire_sync *sync);

/* Write the WIRE_ANSWER bytes that come before `length` bytes of hello fields. */
void wire_write_answer(uint8_t at[WIRE_ANSWER], const uint8_t nonce[WIRE_NONCE], uint16_t version, uint32_t length);

/* The version to speak with somebody who offers these, or 0. */
uint16_t wire_choose_version(const struct wire_sync *sync);

/* ---- fields ---- */

/* Writes into the caller's buffer. When it would overflow, `overflow` is set and nothing more is written. */
struct wire_writer {
    uint8_t *buffer;
    size_t size, length;
    bool overflow;
};

void wire_writer_init(struct wire_writer *writer, void *buffer, size_t size);
void wire_put_bytes(struct wire_writer *writer, uint16_t tag, const void *bytes, size_t length);
void wire_put_text(struct wire_writer *writer, uint16_t tag, const char *text);
void wire_put_u64(struct wire_writer *writer, uint16_t tag, uint64_t value);

struct wire_cursor {
    const uint8_t *at, *end;
};

struct wire_field {
    uint16_t tag;
    uint32_t length;
    const uint8_t *bytes;
};

void wire_cursor_init(struct wire_cursor *cursor, const uint8_t *fields, size_t length);
enum wire_got wire_field_next(struct wire_cursor *cursor, struct wire_field *field); /* WIRE_MORE: no field is left */
bool wire_fields_valid(const uint8_t *fields, size_t length);
bool wire_find(const uint8_t *fields, size_t length, uint16_t tag, struct wire_field *field);

/* The number in a field, or `otherwise` when it is absent or not 8 bytes long. */
uint64_t wire_find_u64(const uint8_t *fields, size_t length, uint16_t tag, uint64_t otherwise);

/* Copy a field to a NUL-terminated string. False, and an empty string, when it is absent, too long or holds a NUL. */
bool wire_find_text(const uint8_t *fields, size_t length, uint16_t tag, char *to, size_t size);
bool wire_field_u64(const struct wire_field *field, uint64_t *value);
bool wire_field_text(const struct wire_field *field, char *to, size_t size);
bool wire_field_is(const struct wire_field *field, const char *text);

/* ---- credit: one window per stream and direction ---- */

/* What we may still send. */
struct wire_window {
    uint32_t left;
};

/* What the other side may still send, and how much of what it sent we consumed without telling it yet. */
struct wire_grant {
    uint32_t left, owed, reach; /* reach: what may be on the way at most */
};

void wire_window_init(struct wire_window *window);
void wire_window_add(struct wire_window *window, uint32_t credit); /* what goes beyond WIRE_WINDOW_MAX is dropped */

void wire_grant_init(struct wire_grant *grant);
bool wire_grant_take(struct wire_grant *grant, uint32_t bytes); /* false: the sender overran its window */

/* Allow the largest window: for bulk, where every credit is felt. The credit to send for it. */
uint32_t wire_grant_widen(struct wire_grant *grant);

/* Bytes were consumed: the credit to send now, or 0 while it is too little to be worth a frame. */
uint32_t wire_grant_consumed(struct wire_grant *grant, uint32_t bytes);

#endif
