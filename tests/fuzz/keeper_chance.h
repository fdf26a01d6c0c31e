/* What the parts of keeper_world share: chance that a seed decides, and what must be so. */
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern uint64_t story, chance_state;

#define MUST(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "story %llu, line %d: not so: %s\n", (unsigned long long)story, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

uint64_t chance(void);
uint32_t below(uint32_t limit);

/* keeper_json.c */
void read_json(void);
void nest_json(void);
