#include "streams.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum { PIPE_SIZE = 262144 };

bool pipe_open(int *ours, int *theirs, bool we_read)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    *ours = ends[we_read ? 0 : 1];
    *theirs = ends[we_read ? 1 : 0];
    fcntl(*ours, F_SETFL, O_NONBLOCK);
    fcntl(*ours, F_SETPIPE_SZ, PIPE_SIZE); /* refused to some; then it is smaller */
    return true;
}

void terminal_resize(int terminal, uint16_t rows, uint16_t columns)
{
    struct winsize size = { .ws_row = rows, .ws_col = columns };
    ioctl(terminal, TIOCSWINSZ, &size);
}

static bool open_terminal(struct streams *streams, const struct command *command)
{
    int unlocked = 0, number;
    char path[32];
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    streams->ours[1] = master;
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlocked) < 0 || ioctl(master, TIOCGPTN, &number) < 0)
        return false;
    snprintf(path, sizeof path, "/dev/pts/%d", number);
    terminal_resize(master, command->rows, command->columns);
    streams->ours[0] = fcntl(master, F_DUPFD_CLOEXEC, 0);
    streams->theirs[0] = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    streams->theirs[1] = streams->theirs[2] = streams->theirs[0];
    return streams->ours[0] >= 0 && streams->theirs[0] >= 0;
}

bool streams_open(struct streams *streams, const struct command *command)
{
    *streams = (struct streams){ { -1, -1, -1 }, { -1, -1, -1 } };
    if (command->tty)
        return open_terminal(streams, command);
    return pipe_open(&streams->ours[0], &streams->theirs[0], false) && pipe_open(&streams->ours[1], &streams->theirs[1], true) &&
           pipe_open(&streams->ours[2], &streams->theirs[2], true);
}

void streams_close_theirs(const struct streams *streams)
{
    for (int i = 0; i < 3; i++)
        if (streams->theirs[i] >= 0 && (i == 0 || streams->theirs[i] != streams->theirs[0]))
            close(streams->theirs[i]);
}
