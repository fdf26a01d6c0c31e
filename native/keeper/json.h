/* Reading JSON that a QEMU sent which may have been taken over.
 *
 * Text is checked once, strictly: RFC 8259, nested no deeper than JSON_DEPTH, every byte printable ASCII (QEMU escapes the
 * rest). Afterwards values are looked up in place; nothing is allocated.
 */
#ifndef KEEPER_JSON_H
#define KEEPER_JSON_H

#include <stdbool.h>
#include <stddef.h>

enum { JSON_DEPTH = 16 };

struct json {
    const char *at; /* one value, without blanks around it; NULL: none */
    size_t length;
};

bool json_check(const char *text, size_t length, struct json *value);

/* These take checked values only, or an empty one (then the answer is "no"). */
bool json_member(struct json object, const char *name, struct json *value);
bool json_next(struct json array, size_t *offset, struct json *value); /* offset begins at 0 */
bool json_is(struct json value, const char *string);
bool json_true(struct json value);

/* Copy a string of letters, digits, `-` and `_`. False, and an empty string, for anything else. */
bool json_word(struct json value, char *to, size_t size);

#endif
