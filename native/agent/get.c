#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "entries.h"
#include "link.h"
#include "loop.h"
#include "users.h"

enum {
    LINKS_MAX = 4096, /* files with several links that are remembered; beyond, each link becomes a file */
    DOUBTED_MAX = 65536, /* bytes a file may claim to have, though no disk holds any of them, and not be believed */
    MADE_UP_MAX = 16 << 20, /* bytes of a file whose content is made while it is read */
};

struct level {
    DIR *folder;
    size_t length; /* of the path of what is in it, up to and with the slash */
};

struct seen {
    dev_t device;
    ino_t inode;
    char *path;
};

struct get {
    struct channel channel;
    struct watch turn; /* always ready, so that it takes its turn among all that produces */
    bool over;
    int error;
    char path[PATH_MAX]; /* of the entry at hand, as the receiver sees it */

    char *roots, *next_root, *roots_end; /* NUL-terminated paths, one after the other */
    struct level levels[FOLDERS_MAX];
    size_t depth;

    uint8_t entry[4 + ENTRY_MAX]; /* what is to be sent before anything else */
    size_t entry_sent, entry_length;
    int file; /* and after it the content of this, or -1 */
    uint64_t left;

    struct seen *seen;
    size_t seen_count;
};

static void finish(struct get *get, int error)
{
    get->error = error;
    get->over = true;
}

/* ---- entries ---- */

/* The path under which this very file was sent before, or NULL; then it is remembered. */
static const char *sent_before(struct get *get, const struct stat *status)
{
    for (size_t i = 0; i < get->seen_count; i++)
        if (get->seen[i].inode == status->st_ino && get->seen[i].device == status->st_dev)
            return get->seen[i].path;
    if (!get->seen)
        get->seen = malloc(LINKS_MAX * sizeof *get->seen);
    if (get->seen && get->seen_count < LINKS_MAX) {
        struct seen *seen = &get->seen[get->seen_count];
        *seen = (struct seen){ status->st_dev, status->st_ino, strdup(get->path) };
        if (seen->path)
            get->seen_count++;
    }
    return NULL;
}

static void write_entry(struct get *get, char kind, const struct stat *status, const char *target)
{
    struct wire_writer fields;
    char letter[2] = { kind };
    wire_writer_init(&fields, get->entry + 4, ENTRY_MAX);
    wire_put_text(&fields, TAG_PATH, get->path);
    wire_put_text(&fields, TAG_KIND, letter);
    wire_put_u64(&fields, TAG_MODE, status->st_mode & 07777);
    wire_put_u64(&fields, TAG_UID, status->st_uid);
    wire_put_u64(&fields, TAG_GID, status->st_gid);
    wire_put_text(&fields, TAG_UNAME, user_name(status->st_uid));
    wire_put_text(&fields, TAG_GNAME, group_name(status->st_gid));
    wire_put_u64(&fields, TAG_MTIME_NS, (uint64_t)status->st_mtim.tv_sec * 1000000000u + (uint64_t)status->st_mtim.tv_nsec);
    if (kind == 'f')
        wire_put_u64(&fields, TAG_SIZE, (uint64_t)status->st_size);
    if (kind == 'c' || kind == 'b')
        wire_put_u64(&fields, TAG_SIZE, (uint64_t)major(status->st_rdev) << 32 | minor(status->st_rdev));
    if (target)
        wire_put_text(&fields, TAG_TARGET, target);
    wire_set_u32(get->entry, (uint32_t)fields.length);
    get->entry_sent = 0;
    get->entry_length = 4 + fields.length;
}

/* What files of /proc and /sys say of their size is 0 or a page, whatever reading them gives. */
static bool is_doubtful(const struct stat *status)
{
    return status->st_size == 0 || (status->st_blocks == 0 && status->st_size <= DOUBTED_MAX);
}

/* The content of `file`, read to its end, in a file that knows its size; `file` is closed. Returns -1 with errno. */
static int read_out(int file, struct stat *status)
{
    char bytes[16384];
    ssize_t got = 0;
    int copy = memfd_create("content", MFD_CLOEXEC);
    status->st_size = 0;
    while (copy >= 0 && status->st_size <= MADE_UP_MAX && (got = read(file, bytes, sizeof bytes)) > 0) {
        if (write(copy, bytes, (size_t)got) != got) { /* memory is short */
            errno = ENOMEM;
            got = -1;
            break;
        }
        status->st_size += got;
    }
    if (got > 0)
        errno = EFBIG;
    int error = copy < 0 || got != 0 ? errno : 0;
    close(file);
    if (error && copy >= 0)
        close(copy);
    errno = error;
    if (error)
        return -1;
    lseek(copy, 0, SEEK_SET);
    return copy;
}

static int send_file(struct get *get, int folder, const char *name, struct stat *status)
{
    const char *before = status->st_nlink > 1 ? sent_before(get, status) : NULL;
    if (before) {
        write_entry(get, 'h', status, before);
        return 0;
    }
    int file = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (file < 0)
        return errno;
    if (fstat(file, status) < 0 || !S_ISREG(status->st_mode)) {
        close(file);
        return ESTALE; /* something else took its place */
    }
    if (is_doubtful(status) && (file = read_out(file, status)) < 0)
        return errno;
    posix_fadvise(file, 0, 0, POSIX_FADV_SEQUENTIAL);
    write_entry(get, 'f', status, NULL);
    get->file = file;
    get->left = (uint64_t)status->st_size;
    return 0;
}

static int send_folder(struct get *get, int folder, const char *name, const struct stat *status)
{
    size_t length = strlen(get->path);
    if (get->depth == FOLDERS_MAX || length + 1 >= sizeof get->path)
        return ENAMETOOLONG;
    int fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno;
    DIR *opened = fdopendir(fd);
    if (!opened) {
        close(fd);
        return ENOMEM;
    }
    write_entry(get, 'd', status, NULL);
    strcpy(get->path + length, "/");
    get->levels[get->depth++] = (struct level){ opened, length + 1 };
    return 0;
}

static int send_entry(struct get *get, int folder, const char *name)
{
    struct stat status;
    char target[PATH_MAX];
    if (fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno;
    if (S_ISREG(status.st_mode))
        return send_file(get, folder, name, &status);
    if (S_ISDIR(status.st_mode))
        return send_folder(get, folder, name, &status);
    if (!S_ISLNK(status.st_mode)) {
        write_entry(get, kind_letter(status.st_mode), &status, NULL);
        return 0;
    }
    ssize_t length = readlinkat(folder, name, target, sizeof target - 1);
    if (length < 0)
        return errno;
    target[length] = 0;
    write_entry(get, 'l', &status, target);
    return 0;
}

/* ---- the walk ---- */

static int next_in_folder(struct get *get)
{
    struct level *level = &get->levels[get->depth - 1];
    struct dirent *found = readdir(level->folder);
    if (!found) {
        closedir(level->folder);
        get->depth--;
        return 0;
    }
    if (strcmp(found->d_name, ".") == 0 || strcmp(found->d_name, "..") == 0)
        return 0;
    if (level->length + strlen(found->d_name) >= sizeof get->path)
        return ENAMETOOLONG;
    strcpy(get->path + level->length, found->d_name);
    int error = send_entry(get, dirfd(level->folder), found->d_name);
    return error == ENOENT ? 0 : error; /* it was deleted while we looked */
}

static int next_tree(struct get *get)
{
    char *root = get->next_root;
    size_t length = strlen(root);
    get->next_root += length + 1;
    while (length > 0 && root[length - 1] == '/')
        root[--length] = 0;
    const char *slash = strrchr(root, '/');
    const char *name = slash ? slash + 1 : root;
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return EINVAL; /* a tree needs a name */
    strcpy(get->path, name);
    return send_entry(get, AT_FDCWD, root);
}

static void next_entry(struct get *get)
{
    int error = 0;
    if (get->depth > 0) {
        error = next_in_folder(get);
    } else if (get->next_root < get->roots_end) {
        error = next_tree(get);
    } else {
        wire_set_u32(get->entry, 0);
        get->entry_sent = 0;
        get->entry_length = 4;
        get->over = true;
    }
    if (error)
        finish(get, error);
}

/* ---- bytes ---- */

static size_t fill_content(struct get *get, uint8_t *at, size_t room)
{
    size_t wanted = get->left < room ? (size_t)get->left : room;
    ssize_t got = wanted > 0 ? read(get->file, at, wanted) : 0;
    if (got < 0 && errno == EINTR)
        return 0;
    if (got < 0 || (got == 0 && wanted > 0)) {
        finish(get, got < 0 ? errno : ESTALE); /* it became shorter than we said */
        return 0;
    }
    get->left -= (size_t)got;
    if (get->left == 0) {
        close(get->file);
        get->file = -1;
    }
    return (size_t)got;
}

/* Fill as much of `room` as there is to say; many small files share one frame. */
static size_t fill(struct get *get, uint8_t *at, size_t room)
{
    size_t filled = 0;
    while (filled < room && !get->error) {
        size_t waiting = get->entry_length - get->entry_sent;
        if (waiting > 0) {
            size_t piece = waiting < room - filled ? waiting : room - filled;
            memcpy(at + filled, get->entry + get->entry_sent, piece);
            get->entry_sent += piece;
            filled += piece;
        } else if (get->file >= 0) {
            filled += fill_content(get, at + filled, room - filled);
        } else if (get->over) {
            break;
        } else {
            next_entry(get);
        }
    }
    return filled;
}

static bool all_said(const struct get *get)
{
    return get->error || (get->over && get->entry_sent == get->entry_length);
}

/* One frame. With its header it is as long as the port takes in whole pieces (of 32 KiB): a rest would be a piece of its own. */
static size_t send_some(struct get *get)
{
    struct wire_window *window = &get->channel.window[WIRE_STDOUT];
    const uint32_t most = WIRE_PAYLOAD_MAX - WIRE_HEADER;
    size_t filled = fill(get, link_payload(), window->left < most ? window->left : most);
    if (filled > 0)
        link_commit(WIRE_DATA, WIRE_STDOUT, get->channel.id, (uint32_t)filled);
    window->left -= (uint32_t)filled;
    return filled;
}

static void my_turn(struct watch *watch, uint32_t events)
{
    struct get *get = CONTAINER(watch, struct get, turn);
    struct wire_window *window = &get->channel.window[WIRE_STDOUT];
    (void)events;
    while (link_room() && window->left > 0 && !all_said(get) && send_some(get) > 0)
        ;
    if (window->left == 0 || all_said(get))
        watch_for(watch, 0);
}

static void get_credit(struct channel *channel, int stream)
{
    struct get *get = (struct get *)channel;
    if (stream == WIRE_STDOUT && channel->window[stream].left > 0 && !all_said(get))
        watch_for(&get->turn, EPOLLIN);
}

static void get_hang_up(struct channel *channel)
{
    struct get *get = (struct get *)channel;
    watch_close(&get->turn);
    while (get->depth > 0)
        closedir(get->levels[--get->depth].folder);
    if (get->file >= 0)
        close(get->file);
    for (size_t i = 0; i < get->seen_count; i++)
        free(get->seen[i].path);
    free(get->seen);
    free(get->roots);
    free(get);
}

static void get_settle(struct channel *channel)
{
    struct get *get = (struct get *)channel;
    struct wire_writer fields;
    uint8_t buffer[8192];
    if (!all_said(get))
        return;
    wire_writer_init(&fields, buffer, sizeof buffer);
    if (get->error)
        put_failure(&fields, get->error, get->path);
    link_send(WIRE_EOF, WIRE_STDOUT, channel->id, NULL, 0);
    channel_result(channel, &fields);
    get_hang_up(channel);
}

static const struct channel_kind kind = { .credit = get_credit, .settle = get_settle, .hang_up = get_hang_up };

static int copy_roots(struct get *get, const struct request *request)
{
    struct wire_cursor cursor;
    struct wire_field field;
    get->roots = get->next_root = get->roots_end = malloc(request->length + 1);
    if (!get->roots)
        return ENOMEM;
    wire_cursor_init(&cursor, request->fields, request->length);
    while (wire_field_next(&cursor, &field) == WIRE_GOT) {
        if (field.tag != TAG_PATH)
            continue;
        if (!wire_field_text(&field, get->roots_end, PATH_MAX < field.length + 1 ? 0 : field.length + 1))
            return EINVAL;
        get->roots_end += field.length + 1;
    }
    return get->roots_end == get->roots ? EINVAL : 0;
}

void get_run(const struct request *request)
{
    struct get *get = calloc(1, sizeof *get);
    if (!get) {
        answer_errno(request, ENOMEM, NULL);
        return;
    }
    get->file = -1;
    watch_init(&get->turn, eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK), true, my_turn);
    int error = copy_roots(get, request);
    if (error || get->turn.fd < 0) {
        answer_errno(request, error ? error : ENFILE, NULL);
        get_hang_up(&get->channel);
        return;
    }
    users_begin();
    channel_open(&get->channel, request, &kind);
    watch_for(&get->turn, EPOLLIN);
}
