/* What the agent tells about itself and its guest when a life begins. */
#ifndef INSULA_HELLO_H
#define INSULA_HELLO_H

#include <stddef.h>
#include <stdint.h>

size_t hello_write(uint8_t *at, size_t size, uint16_t version);

#endif
