/* Writing below one folder, and never beside it: every component of a path is opened on its own, following no link. */
#ifndef INSULA_TREE_H
#define INSULA_TREE_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "entries.h"

struct entry {
    char path[PATH_MAX];
    char target[PATH_MAX];
    char kind;
    bool has_mode, has_mtime;
    mode_t mode;
    uid_t uid; /* -1: as the agent's */
    gid_t gid;
    uint64_t mtime_ns, size;
};

/* A folder whose mode and time are set when all in it is there. Its path is the first `length` bytes of tree.folder. */
struct open_folder {
    uint16_t length;
    bool has_mode, has_mtime;
    mode_t mode;
    uint64_t mtime_ns;
};

struct tree {
    int top;
    int parent; /* the folder of the last entry, kept open for the next */
    char parent_path[PATH_MAX];
    char folder[PATH_MAX];
    struct open_folder folders[FOLDERS_MAX];
    size_t depth;
    int file; /* the regular file being written, in `parent` under the name `temporary` */
    int replaced; /* what had its name before: held, so that a large one is not freed while somebody waits for the answer */
    char temporary[48];
    unsigned counter;
};

/* All return 0 or an errno. */
int tree_open(struct tree *tree, const char *path);
int tree_begin(struct tree *tree, const struct entry *entry); /* for a regular file: tree->file takes its content */
int tree_end_file(struct tree *tree, const struct entry *entry);
int tree_finish(struct tree *tree);

/* Remove what is half done, close all. */
void tree_close(struct tree *tree);

/* Relative, and no component empty, `.` or `..`. */
bool path_is_tame(const char *path);

#endif
