#define _GNU_SOURCE
#include "util.h"

#include <sys/mman.h>

enum { SPARES = 4, SPARE_MAX = 524288 };

static struct spare { void *bytes; size_t size; } spares[SPARES];

void *memory_take(size_t *size)
{
    for (int i = 0; i < SPARES; i++) {
        struct spare spare = spares[i];
        if (!spare.bytes || spare.size < *size)
            continue;
        spares[i] = (struct spare){ 0 };
        *size = spare.size;
        return spare.bytes;
    }
    void *bytes = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return bytes == MAP_FAILED ? NULL : bytes;
}

/* The largest are kept. */
void memory_give(void *bytes, size_t size)
{
    struct spare given = { bytes, size };
    for (int i = 0; i < SPARES && size <= SPARE_MAX; i++) {
        if (spares[i].size >= given.size)
            continue;
        struct spare smaller = spares[i];
        spares[i] = given;
        given = smaller;
    }
    if (given.bytes)
        munmap(given.bytes, given.size);
}

bool memory_is_spare(void)
{
    for (int i = 0; i < SPARES; i++)
        if (spares[i].bytes)
            return true;
    return false;
}

void memory_release(void)
{
    for (int i = 0; i < SPARES; i++)
        if (spares[i].bytes)
            munmap(spares[i].bytes, spares[i].size);
    for (int i = 0; i < SPARES; i++)
        spares[i] = (struct spare){ 0 };
}
