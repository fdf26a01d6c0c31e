#include <errno.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "entries.h"

static const struct {
    char letter;
    unsigned mode;
} kinds[] = {
    { 'f', S_IFREG }, { 'd', S_IFDIR }, { 'l', S_IFLNK }, { 'h', S_IFREG },
    { 'p', S_IFIFO }, { 'c', S_IFCHR }, { 'b', S_IFBLK }, { 's', S_IFSOCK },
};

char kind_letter(unsigned mode)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].mode == (mode & S_IFMT))
            return kinds[i].letter;
    return '?';
}

unsigned kind_mode(char letter)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].letter == letter)
            return kinds[i].mode;
    return 0;
}

void stat_run(const struct request *request)
{
    struct wire_writer fields;
    struct stat status;
    uint8_t buffer[PATH_MAX + 512];
    char path[PATH_MAX], target[PATH_MAX];
    if (!wire_find_text(request->fields, request->length, TAG_PATH, path, sizeof path)) {
        answer_errno(request, EINVAL, NULL);
        return;
    }
    if (lstat(path, &status) < 0) {
        answer_errno(request, errno, path);
        return;
    }
    char kind[2] = { kind_letter(status.st_mode) };
    wire_writer_init(&fields, buffer, sizeof buffer);
    wire_put_text(&fields, TAG_KIND, kind);
    wire_put_u64(&fields, TAG_MODE, status.st_mode & 07777);
    wire_put_u64(&fields, TAG_UID, status.st_uid);
    wire_put_u64(&fields, TAG_GID, status.st_gid);
    wire_put_u64(&fields, TAG_SIZE, (uint64_t)status.st_size);
    wire_put_u64(&fields, TAG_MTIME_NS, (uint64_t)status.st_mtim.tv_sec * 1000000000u + (uint64_t)status.st_mtim.tv_nsec);
    ssize_t length = kind[0] == 'l' ? readlink(path, target, sizeof target) : 0;
    if (length > 0)
        wire_put_bytes(&fields, TAG_TARGET, target, (size_t)length);
    answer(request, &fields);
}
