/* The keeper's JSON reader and writer alone, on texts made of pieces. Part of keeper_world. */
#include "keeper/json.h"
#include "keeper/keeper.h"
#include "keeper_chance.h"

#include <string.h>

uint64_t story, chance_state;

uint64_t chance(void) /* xorshift64* */
{
    chance_state ^= chance_state >> 12;
    chance_state ^= chance_state << 25;
    chance_state ^= chance_state >> 27;
    return chance_state * 0x2545F4914F6CDD1DULL;
}

uint32_t below(uint32_t limit)
{
    return (uint32_t)(chance() >> 33) % limit;
}

static void walk(struct json value, int depth)
{
    struct json item, member;
    size_t offset = 0;
    char word[16];
    MUST(depth <= JSON_DEPTH);
    json_word(value, word, sizeof word);
    if (value.at[0] == '{')
        MUST(!json_member(value, "a", &member) || (member.at > value.at && member.at + member.length < value.at + value.length));
    while (value.at[0] == '[' && json_next(value, &offset, &item)) {
        MUST(item.length > 0 && item.at > value.at && item.at + item.length < value.at + value.length);
        walk(item, depth + 1);
    }
    if (value.at[0] == '{' && json_member(value, "a", &member))
        walk(member, depth + 1);
}

void read_json(void)
{
    static const char *const pieces[] = { "{", "}", "[", "]", ",", ":", "\"a\"", "\"\\u00e9\"", "\"", "\\", "1", "-0.5e3", "true",
                                          "null", " ", "\"a\": ", "{\"a\": [1]}", "[[[[[[", "]]]]]]", "e", "\\u12", "\x7f", "\xc3\xa9" };
    size_t count = below(24), length = 0;
    char built[400];
    struct json value;
    for (size_t i = 0; i < count; i++) {
        const char *piece = pieces[below(sizeof pieces / sizeof *pieces)];
        memcpy(built + length, piece, strlen(piece));
        length += strlen(piece);
    }
    char *exact = malloc(length ? length : 1); /* so that reading one byte too far is seen */
    MUST(exact);
    memcpy(exact, built, length);
    if (json_check(exact, length, &value))
        walk(value, 0);
    char written[512];
    struct text text;
    text_init(&text, written, sizeof written);
    text_add_string(&text, exact, length);
    MUST(text.overflow || json_check(text.at, text.length, &value));
    free(exact);
}

void nest_json(void)
{
    char nested[2 * JSON_DEPTH + 4];
    struct json value;
    for (size_t depth = 1; depth <= JSON_DEPTH + 1; depth++) {
        memset(nested, '[', depth);
        memset(nested + depth, ']', depth);
        MUST(json_check(nested, 2 * depth, &value) == (depth <= JSON_DEPTH));
    }
}
