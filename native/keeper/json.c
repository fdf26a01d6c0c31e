#include "json.h"

#include <string.h>

/* Each skip_… returns what follows the thing, or NULL when the text is not that thing. */

static const char *skip_blanks(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\r' || *at == '\n'))
        at++;
    return at;
}

static const char *skip_literal(const char *at, const char *end, const char *word)
{
    size_t length = strlen(word);
    return (size_t)(end - at) >= length && memcmp(at, word, length) == 0 ? at + length : NULL;
}

static const char *skip_hex(const char *at, const char *end)
{
    if (end - at < 4)
        return NULL;
    for (int i = 0; i < 4; i++)
        if (at[i] == 0 || !strchr("0123456789abcdefABCDEF", at[i]))
            return NULL;
    return at + 4;
}

static const char *skip_string(const char *at, const char *end)
{
    if (at == end || *at++ != '"')
        return NULL;
    while (at && at < end && *at != '"') {
        if (*at < 0x20 || *at > 0x7E)
            return NULL;
        if (*at++ != '\\')
            continue;
        if (at == end || *at == 0 || !strchr("\"\\/bfnrtu", *at))
            return NULL;
        at = *at == 'u' ? skip_hex(at + 1, end) : at + 1;
    }
    return at && at < end ? at + 1 : NULL;
}

static const char *skip_digits(const char *at, const char *end)
{
    const char *first = at;
    while (at < end && *at >= '0' && *at <= '9')
        at++;
    return at > first ? at : NULL;
}

static const char *skip_number(const char *at, const char *end)
{
    if (at < end && *at == '-')
        at++;
    if (at < end && *at == '0')
        at++;
    else if (!(at = skip_digits(at, end)))
        return NULL;
    if (at < end && *at == '.' && !(at = skip_digits(at + 1, end)))
        return NULL;
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '+' || *at == '-'))
            at++;
        at = skip_digits(at, end);
    }
    return at;
}

static const char *skip_value(const char *at, const char *end, int depth);

static const char *skip_name(const char *at, const char *end)
{
    at = skip_string(at, end);
    if (!at)
        return NULL;
    at = skip_blanks(at, end);
    return at < end && *at == ':' ? skip_blanks(at + 1, end) : NULL;
}

static const char *skip_many(const char *at, const char *end, int depth, char close)
{
    if (depth >= JSON_DEPTH)
        return NULL;
    at = skip_blanks(at + 1, end);
    if (at < end && *at == close)
        return at + 1;
    for (;;) {
        if (close == '}' && !(at = skip_name(at, end)))
            return NULL;
        if (!(at = skip_value(at, end, depth + 1)))
            return NULL;
        at = skip_blanks(at, end);
        if (at == end)
            return NULL;
        if (*at == close)
            return at + 1;
        if (*at != ',')
            return NULL;
        at = skip_blanks(at + 1, end);
    }
}

static const char *skip_value(const char *at, const char *end, int depth)
{
    if (at == end)
        return NULL;
    switch (*at) {
    case '{':
        return skip_many(at, end, depth, '}');
    case '[':
        return skip_many(at, end, depth, ']');
    case '"':
        return skip_string(at, end);
    case 't':
        return skip_literal(at, end, "true");
    case 'f':
        return skip_literal(at, end, "false");
    case 'n':
        return skip_literal(at, end, "null");
    default:
        return skip_number(at, end);
    }
}

bool json_check(const char *text, size_t length, struct json *value)
{
    const char *end = text + length;
    const char *begin = skip_blanks(text, end);
    const char *after = skip_value(begin, end, 0);
    *value = (struct json){ 0 };
    if (!after || skip_blanks(after, end) != end)
        return false;
    *value = (struct json){ begin, (size_t)(after - begin) };
    return true;
}

bool json_next(struct json array, size_t *offset, struct json *value)
{
    const char *end = array.at + array.length;
    *value = (struct json){ 0 };
    if (array.length == 0 || (array.at[0] != '[' && array.at[0] != '{'))
        return false;
    const char *at = skip_blanks(array.at + (*offset ? *offset : 1), end);
    if (at < end && *at == ',')
        at = skip_blanks(at + 1, end);
    if (at >= end - 1)
        return false;
    const char *after = skip_value(at, end, 0);
    if (!after)
        return false;
    *value = (struct json){ at, (size_t)(after - at) };
    *offset = (size_t)(after - array.at);
    return true;
}

bool json_member(struct json object, const char *name, struct json *value)
{
    size_t offset = 0;
    struct json key;
    *value = (struct json){ 0 };
    if (object.length == 0 || object.at[0] != '{')
        return false;
    while (json_next(object, &offset, &key)) {
        const char *end = object.at + object.length;
        const char *at = skip_blanks(object.at + offset, end); /* the colon */
        at = skip_blanks(at + 1, end);
        const char *after = skip_value(at, end, 0);
        if (!after)
            return false;
        offset = (size_t)(after - object.at);
        if (json_is(key, name)) {
            *value = (struct json){ at, (size_t)(after - at) };
            return true;
        }
    }
    return false;
}

bool json_is(struct json value, const char *string)
{
    size_t length = strlen(string);
    return value.length == length + 2 && value.at[0] == '"' && memcmp(value.at + 1, string, length) == 0;
}

bool json_true(struct json value)
{
    return value.length == 4 && memcmp(value.at, "true", 4) == 0;
}

bool json_word(struct json value, char *to, size_t size)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    to[0] = 0;
    if (value.length < 3 || value.at[0] != '"' || value.length - 2 >= size)
        return false;
    for (size_t i = 1; i < value.length - 1; i++)
        if (!strchr(allowed, value.at[i]))
            return false;
    memcpy(to, value.at + 1, value.length - 2);
    to[value.length - 2] = 0;
    return true;
}
