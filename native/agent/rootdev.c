#include "rootdev.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

/* The superblock: Documentation/filesystems/ext4/super.rst in the kernel's sources. */
enum { SUPERBLOCK = 1024, MAGIC_AT = 0x38, STATE_AT = 0x3a, UUID_AT = 0x68, ERRORS = 2, UUID_TEXT = 36, NAME = 64 };

static unsigned little16(const uint8_t *bytes) { return bytes[0] | (unsigned)bytes[1] << 8; }

static bool read_superblock(const char *device, uint8_t block[1024])
{
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool whole = pread(fd, block, 1024, SUPERBLOCK) == 1024;
    close(fd);
    return whole && little16(block + MAGIC_AT) == 0xef53;
}

static void uuid_text(const uint8_t *bytes, char text[UUID_TEXT + 1])
{
    char *at = text;
    for (int i = 0; i < 16; i++)
        at += sprintf(at, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", bytes[i]);
}

static bool has_uuid(const char *device, const char *uuid)
{
    uint8_t block[1024];
    char text[UUID_TEXT + 1];
    if (!read_superblock(device, block))
        return false;
    uuid_text(block + UUID_AT, text);
    return strcasecmp(text, uuid) == 0;
}

static bool find_uuid(const char *uuid, char best[NAME])
{
    DIR *folder = opendir("/sys/class/block");
    struct dirent *entry;
    best[0] = 0;
    while (folder && (entry = readdir(folder))) {
        char device[NAME];
        int length = snprintf(device, sizeof device, "/dev/%s", entry->d_name);
        if (entry->d_name[0] == '.' || length >= (int)sizeof device || (best[0] && strcmp(device, best) > 0))
            continue;
        if (has_uuid(device, uuid))
            strcpy(best, device);
    }
    if (folder)
        closedir(folder);
    return best[0] != 0;
}

bool find_root_device(const char *wanted, char *device, size_t size, bool *damaged)
{
    char found[NAME];
    uint8_t block[1024];
    struct stat status;
    if (strncmp(wanted, "UUID=", 5) == 0) {
        if (!find_uuid(wanted + 5, found))
            return false;
        wanted = found;
    }
    if (stat(wanted, &status) < 0 || !S_ISBLK(status.st_mode) || snprintf(device, size, "%s", wanted) >= (int)size)
        return false;
    *damaged = read_superblock(device, block) && (little16(block + STATE_AT) & ERRORS);
    return true;
}
