/* Which block device holds the root file system. */
#ifndef INSULA_ROOTDEV_H
#define INSULA_ROOTDEV_H

#include <stdbool.h>
#include <stddef.h>

/* `wanted` is a device (/dev/vda) or UUID=… of an ext4 file system; of several equal ones the first by name is taken, which
 * is on the first disk. False while there is none. `damaged`: the file system's last life found errors in it. */
bool find_root_device(const char *wanted, char *device, size_t size, bool *damaged);

#endif
