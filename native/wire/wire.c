#include "wire.h"

#include <string.h>

const uint8_t wire_mark[WIRE_MARK] = {
    0x89, 0x49, 0x4E, 0x53, 0x55, 0x4C, 0x41, 0x0D, 0x0A, 0x1A, 0x0A, 0x53, 0x59, 0x4E, 0x43, 0x00
};

uint16_t wire_get_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

uint32_t wire_get_u32(const uint8_t *at)
{
    return wire_get_u16(at) | (uint32_t)wire_get_u16(at + 2) << 16;
}

uint64_t wire_get_u64(const uint8_t *at)
{
    return wire_get_u32(at) | (uint64_t)wire_get_u32(at + 4) << 32;
}

void wire_set_u16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

void wire_set_u32(uint8_t *at, uint32_t value)
{
    wire_set_u16(at, (uint16_t)value);
    wire_set_u16(at + 2, (uint16_t)(value >> 16));
}

void wire_set_u64(uint8_t *at, uint64_t value)
{
    wire_set_u32(at, (uint32_t)value);
    wire_set_u32(at + 4, (uint32_t)(value >> 32));
}

/* ---- frames ---- */

void wire_header(uint8_t *at, uint8_t type, uint8_t stream, uint32_t channel, uint32_t length)
{
    at[0] = 'I';
    at[1] = 'N';
    at[2] = type;
    at[3] = stream;
    wire_set_u32(at + 4, channel);
    wire_set_u32(at + 8, length);
}

void wire_reader_init(struct wire_reader *reader, void *buffer, size_t size)
{
    *reader = (struct wire_reader){ .buffer = buffer, .size = size };
}

size_t wire_reader_space(struct wire_reader *reader, uint8_t **at)
{
    size_t held = reader->end - reader->begin;
    bool tight = reader->size - reader->end < WIRE_FRAME_MAX;
    if (reader->begin > 0 && (held == 0 || tight)) {
        memmove(reader->buffer, reader->buffer + reader->begin, held);
        reader->begin = 0;
        reader->end = held;
    }
    *at = reader->buffer + reader->end;
    return reader->size - reader->end;
}

void wire_reader_filled(struct wire_reader *reader, size_t bytes)
{
    reader->end += bytes;
}

enum wire_got wire_reader_next(struct wire_reader *reader, struct wire_frame *frame)
{
    const uint8_t *at = reader->buffer + reader->begin;
    size_t held = reader->end - reader->begin;
    if ((held > 0 && at[0] != 'I') || (held > 1 && at[1] != 'N'))
        return WIRE_MALFORMED;
    if (held < WIRE_HEADER)
        return WIRE_MORE;
    uint32_t length = wire_get_u32(at + 8);
    if (length > WIRE_PAYLOAD_MAX)
        return WIRE_MALFORMED;
    if (held - WIRE_HEADER < length)
        return WIRE_MORE;
    *frame = (struct wire_frame){
        .type = at[2], .stream = at[3], .channel = wire_get_u32(at + 4), .length = length, .payload = at + WIRE_HEADER
    };
    reader->begin += WIRE_HEADER + length;
    return WIRE_GOT;
}

/* ---- the beginning of a life ---- */

/* Drop bytes until what is held begins with `needle`, or with as much of it as has come. True when it is all there. */
static bool seek(struct wire_reader *reader, const uint8_t *needle, size_t length)
{
    while (reader->begin < reader->end) {
        const uint8_t *at = reader->buffer + reader->begin;
        size_t held = reader->end - reader->begin;
        const uint8_t *found = memchr(at, needle[0], held);
        if (!found) {
            reader->begin = reader->end;
            return false;
        }
        reader->begin += (size_t)(found - at);
        held -= (size_t)(found - at);
        if (memcmp(found, needle, held < length ? held : length) == 0)
            return held >= length;
        reader->begin++;
    }
    return false;
}

enum wire_got wire_reader_seek_sync(struct wire_reader *reader, struct wire_sync *sync)
{
    if (!seek(reader, wire_mark, WIRE_MARK) || reader->end - reader->begin < WIRE_SYNC)
        return WIRE_MORE;
    const uint8_t *at = reader->buffer + reader->begin + WIRE_MARK;
    memcpy(sync->nonce, at, WIRE_NONCE);
    sync->lowest = wire_get_u16(at + WIRE_NONCE);
    sync->highest = wire_get_u16(at + WIRE_NONCE + 2);
    reader->begin += WIRE_SYNC;
    return WIRE_GOT;
}

enum wire_got wire_reader_seek_answer(struct wire_reader *reader, const uint8_t nonce[WIRE_NONCE], struct wire_answer *answer)
{
    uint8_t needle[WIRE_MARK + WIRE_NONCE];
    memcpy(needle, wire_mark, WIRE_MARK);
    memcpy(needle + WIRE_MARK, nonce, WIRE_NONCE);
    while (seek(reader, needle, sizeof needle)) {
        const uint8_t *at = reader->buffer + reader->begin;
        size_t held = reader->end - reader->begin;
        if (held < WIRE_ANSWER)
            return WIRE_MORE;
        uint32_t length = wire_get_u32(at + WIRE_ANSWER - 4);
        if (length > WIRE_HELLO_MAX) { /* nobody of ours says that */
            reader->begin++;
            continue;
        }
        if (held - WIRE_ANSWER < length)
            return WIRE_MORE;
        answer->version = wire_get_u16(at + WIRE_MARK + WIRE_NONCE);
        answer->fields = at + WIRE_ANSWER;
        answer->length = length;
        reader->begin += WIRE_ANSWER + length;
        return WIRE_GOT;
    }
    return WIRE_MORE;
}

void wire_write_sync(uint8_t at[WIRE_SYNC], const struct wire_sync *sync)
{
    memcpy(at, wire_mark, WIRE_MARK);
    memcpy(at + WIRE_MARK, sync->nonce, WIRE_NONCE);
    wire_set_u16(at + WIRE_MARK + WIRE_NONCE, sync->lowest);
    wire_set_u16(at + WIRE_MARK + WIRE_NONCE + 2, sync->highest);
    wire_set_u32(at + WIRE_MARK + WIRE_NONCE + 4, 0);
}

void wire_write_answer(uint8_t at[WIRE_ANSWER], const uint8_t nonce[WIRE_NONCE], uint16_t version, uint32_t length)
{
    memcpy(at, wire_mark, WIRE_MARK);
    memcpy(at + WIRE_MARK, nonce, WIRE_NONCE);
    wire_set_u16(at + WIRE_MARK + WIRE_NONCE, version);
    wire_set_u16(at + WIRE_MARK + WIRE_NONCE + 2, 0);
    wire_set_u32(at + WIRE_MARK + WIRE_NONCE + 4, length);
}

uint16_t wire_choose_version(const struct wire_sync *sync)
{
    return sync->lowest <= WIRE_VERSION && WIRE_VERSION <= sync->highest ? WIRE_VERSION : 0;
}

/* ---- credit ---- */

void wire_window_init(struct wire_window *window)
{
    window->left = WIRE_WINDOW;
}

void wire_window_add(struct wire_window *window, uint32_t credit)
{
    uint32_t room = WIRE_WINDOW_MAX - window->left;
    window->left += credit < room ? credit : room;
}

void wire_grant_init(struct wire_grant *grant)
{
    *grant = (struct wire_grant){ .left = WIRE_WINDOW, .reach = WIRE_WINDOW };
}

uint32_t wire_grant_widen(struct wire_grant *grant)
{
    uint32_t credit = WIRE_WINDOW_MAX - grant->left - grant->owed;
    grant->left += credit;
    grant->reach = WIRE_WINDOW_MAX;
    return credit;
}

bool wire_grant_take(struct wire_grant *grant, uint32_t bytes)
{
    if (bytes > grant->left)
        return false;
    grant->left -= bytes;
    return true;
}

uint32_t wire_grant_consumed(struct wire_grant *grant, uint32_t bytes)
{
    grant->owed += bytes;
    uint32_t step = grant->reach / 2 < WIRE_CREDIT_STEP ? grant->reach / 2 : WIRE_CREDIT_STEP;
    if (grant->owed < step)
        return 0;
    uint32_t credit = grant->owed;
    grant->left += credit;
    grant->owed = 0;
    return credit;
}
