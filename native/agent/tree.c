#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

bool path_is_tame(const char *path)
{
    for (const char *at = path;; at++) {
        size_t length = strcspn(at, "/");
        if (length == 0 || (length == 1 && at[0] == '.') || (length == 2 && at[0] == '.' && at[1] == '.'))
            return false;
        at += length;
        if (!*at)
            return true;
    }
}

int tree_open(struct tree *tree, const char *path)
{
    tree->parent = tree->file = tree->replaced = -1;
    tree->depth = 0;
    tree->counter = 0;
    tree->top = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return tree->top < 0 ? errno : 0;
}

/* The folder at the first `length` bytes of a path below the top. A descriptor, or -1. */
static int walk(const struct tree *tree, const char *path, size_t length)
{
    char name[NAME_MAX + 1];
    int at = openat(tree->top, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (size_t begin = 0; at >= 0 && begin < length;) {
        size_t size = strcspn(path + begin, "/");
        if (size > NAME_MAX) {
            close(at);
            errno = ENAMETOOLONG;
            return -1;
        }
        memcpy(name, path + begin, size);
        name[size] = 0;
        int next = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int error = errno;
        close(at);
        errno = error;
        at = next;
        begin += size + 1;
    }
    return at;
}

/* Make tree->parent the folder of a path; the last component is `name`. */
static int find_parent(struct tree *tree, const char *path, const char **name)
{
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : 0;
    *name = slash ? slash + 1 : path;
    if (tree->parent >= 0 && strlen(tree->parent_path) == length && memcmp(tree->parent_path, path, length) == 0)
        return 0;
    if (tree->parent >= 0)
        close(tree->parent);
    tree->parent = walk(tree, path, length);
    if (tree->parent < 0)
        return errno;
    memcpy(tree->parent_path, path, length);
    tree->parent_path[length] = 0;
    return 0;
}

static void set_time(int folder, const char *name, uint64_t mtime_ns)
{
    struct timespec times[2] = {
        { .tv_nsec = UTIME_OMIT },
        { .tv_sec = (time_t)(mtime_ns / 1000000000), .tv_nsec = (long)(mtime_ns % 1000000000) },
    };
    utimensat(folder, name, times, AT_SYMLINK_NOFOLLOW); /* some file systems keep no times */
}

/* Who is no root keeps everything as his own; that is no failure. */
static int set_owner(int folder, const char *name, const struct entry *entry)
{
    if (entry->uid == (uid_t)-1 && entry->gid == (gid_t)-1)
        return 0;
    if (fchownat(folder, name, entry->uid, entry->gid, AT_SYMLINK_NOFOLLOW) == 0 || geteuid() != 0)
        return 0;
    return errno;
}

/* ---- folders ---- */

static int end_folder(struct tree *tree)
{
    const struct open_folder *folder = &tree->folders[--tree->depth];
    int error = 0;
    if (!folder->has_mode && !folder->has_mtime)
        return 0;
    int fd = walk(tree, tree->folder, folder->length);
    if (fd < 0)
        return errno;
    if (folder->has_mode && fchmod(fd, folder->mode) < 0)
        error = errno;
    if (folder->has_mtime)
        set_time(fd, ".", folder->mtime_ns);
    close(fd);
    return error;
}

/* End the folders the path is not in. */
static int leave_folders(struct tree *tree, const char *path)
{
    int error = 0;
    while (tree->depth > 0 && error == 0) {
        size_t length = tree->folders[tree->depth - 1].length;
        if (strncmp(path, tree->folder, length) == 0 && path[length] == '/')
            break;
        error = end_folder(tree);
    }
    return error;
}

static int make_folder(struct tree *tree, const struct entry *entry, const char *name)
{
    struct stat status;
    bool made = mkdirat(tree->parent, name, 0700) == 0;
    if (!made && errno != EEXIST)
        return errno;
    if (!made && (fstatat(tree->parent, name, &status, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(status.st_mode)))
        return ENOTDIR;
    if (tree->depth == FOLDERS_MAX)
        return ENAMETOOLONG;
    struct open_folder *folder = &tree->folders[tree->depth++];
    strcpy(tree->folder, entry->path);
    folder->length = (uint16_t)strlen(entry->path);
    folder->has_mode = entry->has_mode || made;
    folder->mode = entry->has_mode ? entry->mode : 0755;
    folder->has_mtime = entry->has_mtime;
    folder->mtime_ns = entry->mtime_ns;
    return set_owner(tree->parent, name, entry);
}

/* ---- everything else: made under a temporary name, then renamed ---- */

static void choose_temporary(struct tree *tree)
{
    snprintf(tree->temporary, sizeof tree->temporary, ".insula-put-%d-%u", (int)getpid(), tree->counter++);
    unlinkat(tree->parent, tree->temporary, 0);
}

static void close_replaced(struct tree *tree)
{
    if (tree->replaced >= 0)
        close(tree->replaced);
    tree->replaced = -1;
}

static int put_in_place(struct tree *tree, const char *name)
{
    close_replaced(tree);
    tree->replaced = openat(tree->parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC); /* -1: nothing is there */
    if (renameat(tree->parent, tree->temporary, tree->parent, name) < 0)
        return errno;
    unlinkat(tree->parent, tree->temporary, 0); /* renaming one link of a file to another leaves both */
    return 0;
}

static int make_hard_link(struct tree *tree, const struct entry *entry)
{
    if (!path_is_tame(entry->target))
        return EINVAL;
    const char *slash = strrchr(entry->target, '/');
    int folder = walk(tree, entry->target, slash ? (size_t)(slash - entry->target) : 0);
    if (folder < 0)
        return errno;
    int error = linkat(folder, slash ? slash + 1 : entry->target, tree->parent, tree->temporary, 0) < 0 ? errno : 0;
    close(folder);
    return error;
}

static int make_special(struct tree *tree, const struct entry *entry)
{
    dev_t device = makedev((unsigned)(entry->size >> 32), (unsigned)entry->size);
    mode_t mode = entry->has_mode ? entry->mode : 0644;
    if (mknodat(tree->parent, tree->temporary, (mode_t)kind_mode(entry->kind) | 0600, device) < 0)
        return errno;
    int error = set_owner(tree->parent, tree->temporary, entry);
    if (error == 0 && fchmodat(tree->parent, tree->temporary, mode, 0) < 0)
        error = errno;
    return error;
}

static int make_other(struct tree *tree, const struct entry *entry, const char *name)
{
    int error = 0;
    choose_temporary(tree);
    if (entry->kind == 'h')
        error = make_hard_link(tree, entry);
    else if (entry->kind != 'l')
        error = make_special(tree, entry);
    else if (symlinkat(entry->target, tree->parent, tree->temporary) < 0)
        error = errno;
    else
        error = set_owner(tree->parent, tree->temporary, entry);
    if (error == 0 && entry->has_mtime && entry->kind != 'h')
        set_time(tree->parent, tree->temporary, entry->mtime_ns);
    if (error == 0)
        error = put_in_place(tree, name);
    if (error)
        unlinkat(tree->parent, tree->temporary, 0);
    return error;
}

static int begin_file(struct tree *tree)
{
    choose_temporary(tree);
    tree->file = openat(tree->parent, tree->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    return tree->file < 0 ? errno : 0;
}

int tree_begin(struct tree *tree, const struct entry *entry)
{
    const char *name;
    if (!path_is_tame(entry->path) || !kind_mode(entry->kind))
        return EINVAL;
    int error = leave_folders(tree, entry->path);
    if (error == 0)
        error = find_parent(tree, entry->path, &name);
    if (error)
        return error;
    if (entry->kind == 'd')
        return make_folder(tree, entry, name);
    if (entry->kind == 'f')
        return begin_file(tree);
    return make_other(tree, entry, name);
}

static void drop_file(struct tree *tree)
{
    if (tree->file < 0)
        return;
    close(tree->file);
    tree->file = -1;
    unlinkat(tree->parent, tree->temporary, 0);
}

int tree_end_file(struct tree *tree, const struct entry *entry)
{
    const char *slash = strrchr(entry->path, '/');
    int error = set_owner(tree->parent, tree->temporary, entry); /* before the mode: a new owner clears setuid */
    if (error == 0 && fchmod(tree->file, entry->has_mode ? entry->mode : 0644) < 0)
        error = errno;
    if (error == 0 && entry->has_mtime)
        set_time(tree->parent, tree->temporary, entry->mtime_ns);
    if (close(tree->file) < 0 && error == 0) /* some file systems say only now that there is no room */
        error = errno;
    tree->file = -1;
    if (error == 0)
        error = put_in_place(tree, slash ? slash + 1 : entry->path);
    if (error)
        unlinkat(tree->parent, tree->temporary, 0);
    return error;
}

int tree_finish(struct tree *tree)
{
    int error = 0;
    while (tree->depth > 0) {
        int this = end_folder(tree);
        error = error ? error : this;
    }
    return error;
}

void tree_close(struct tree *tree)
{
    drop_file(tree);
    tree_finish(tree);
    close_replaced(tree);
    if (tree->parent >= 0)
        close(tree->parent);
    if (tree->top >= 0)
        close(tree->top);
    tree->parent = tree->top = -1;
}
