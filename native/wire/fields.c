#include "wire.h"

#include <string.h>

enum { FIELD_HEADER = 6 };

void wire_writer_init(struct wire_writer *writer, void *buffer, size_t size)
{
    *writer = (struct wire_writer){ .buffer = buffer, .size = size };
}

void wire_put_bytes(struct wire_writer *writer, uint16_t tag, const void *bytes, size_t length)
{
    size_t room = writer->size - writer->length;
    if (writer->overflow || room < FIELD_HEADER || length > room - FIELD_HEADER) {
        writer->overflow = true;
        return;
    }
    uint8_t *at = writer->buffer + writer->length;
    wire_set_u16(at, tag);
    wire_set_u32(at + 2, (uint32_t)length);
    if (length > 0)
        memcpy(at + FIELD_HEADER, bytes, length);
    writer->length += FIELD_HEADER + length;
}

void wire_put_text(struct wire_writer *writer, uint16_t tag, const char *text)
{
    wire_put_bytes(writer, tag, text, strlen(text));
}

void wire_put_u64(struct wire_writer *writer, uint16_t tag, uint64_t value)
{
    uint8_t bytes[8];
    wire_set_u64(bytes, value);
    wire_put_bytes(writer, tag, bytes, sizeof bytes);
}

void wire_cursor_init(struct wire_cursor *cursor, const uint8_t *fields, size_t length)
{
    *cursor = (struct wire_cursor){ .at = fields, .end = fields + length };
}

enum wire_got wire_field_next(struct wire_cursor *cursor, struct wire_field *field)
{
    size_t held = (size_t)(cursor->end - cursor->at);
    if (held == 0)
        return WIRE_MORE;
    if (held < FIELD_HEADER)
        return WIRE_MALFORMED;
    uint32_t length = wire_get_u32(cursor->at + 2);
    if (length > held - FIELD_HEADER)
        return WIRE_MALFORMED;
    *field = (struct wire_field){ .tag = wire_get_u16(cursor->at), .length = length, .bytes = cursor->at + FIELD_HEADER };
    cursor->at += FIELD_HEADER + length;
    return WIRE_GOT;
}

bool wire_fields_valid(const uint8_t *fields, size_t length)
{
    struct wire_cursor cursor;
    struct wire_field field;
    enum wire_got got;
    wire_cursor_init(&cursor, fields, length);
    while ((got = wire_field_next(&cursor, &field)) == WIRE_GOT)
        ;
    return got == WIRE_MORE;
}

bool wire_find(const uint8_t *fields, size_t length, uint16_t tag, struct wire_field *field)
{
    struct wire_cursor cursor;
    wire_cursor_init(&cursor, fields, length);
    while (wire_field_next(&cursor, field) == WIRE_GOT)
        if (field->tag == tag)
            return true;
    return false;
}

uint64_t wire_find_u64(const uint8_t *fields, size_t length, uint16_t tag, uint64_t otherwise)
{
    struct wire_field field;
    uint64_t value;
    return wire_find(fields, length, tag, &field) && wire_field_u64(&field, &value) ? value : otherwise;
}

bool wire_find_text(const uint8_t *fields, size_t length, uint16_t tag, char *to, size_t size)
{
    struct wire_field field;
    if (wire_find(fields, length, tag, &field))
        return wire_field_text(&field, to, size);
    to[0] = 0;
    return false;
}

bool wire_field_u64(const struct wire_field *field, uint64_t *value)
{
    if (field->length != 8)
        return false;
    *value = wire_get_u64(field->bytes);
    return true;
}

bool wire_field_text(const struct wire_field *field, char *to, size_t size)
{
    if (field->length >= size || (field->length > 0 && memchr(field->bytes, 0, field->length))) {
        to[0] = 0;
        return false;
    }
    memcpy(to, field->bytes, field->length);
    to[field->length] = 0;
    return true;
}

bool wire_field_is(const struct wire_field *field, const char *text)
{
    return field->length == strlen(text) && memcmp(field->bytes, text, field->length) == 0;
}
