/* Moves bytes over TCP as fast as it goes: the same small program at both ends, in guests and outside.
 *
 *     flow serve PORT                    for who connects: take what he sends, or send what he wants, as often as anybody comes
 *     flow send ADDRESS PORT BYTES       to who serves; prints the seconds until he has it all
 *     flow take ADDRESS PORT BYTES       from who serves; prints the seconds until it is all here
 *
 * Who connects begins with a byte that says what he does, and eight for how many bytes, the highest first.
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 16, HEAD = 9 };

static char piece[PIECE];

static int push(int to, uint64_t left)
{
    while (left > 0) {
        ssize_t done = write(to, piece, left < PIECE ? (size_t)left : PIECE);
        if (done <= 0)
            return -1;
        left -= (uint64_t)done;
    }
    return 0;
}

static int pull(int from, uint64_t left)
{
    while (left > 0) {
        ssize_t done = read(from, piece, left < PIECE ? (size_t)left : PIECE);
        if (done <= 0)
            return -1;
        left -= (uint64_t)done;
    }
    return 0;
}

static void answer(int peer)
{
    unsigned char head[HEAD];
    uint64_t bytes = 0;
    for (size_t had = 0; had < sizeof head;) {
        ssize_t done = read(peer, head + had, sizeof head - had);
        if (done <= 0)
            return;
        had += (size_t)done;
    }
    for (int at = 1; at < HEAD; at++)
        bytes = bytes << 8 | head[at];
    if (head[0] == 's') {
        if (pull(peer, bytes) == 0)
            push(peer, 1);
    } else {
        push(peer, bytes);
    }
}

static int serve(struct sockaddr_in *here)
{
    int on = 1, door = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(door, (struct sockaddr *)here, sizeof *here) != 0 || listen(door, 8) != 0)
        return 1;
    puts("ready");
    fflush(stdout);
    for (;;) {
        int peer = accept(door, NULL, NULL);
        if (peer < 0)
            return 1;
        answer(peer);
        close(peer);
    }
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static int go(char what, struct sockaddr_in *there, uint64_t bytes)
{
    unsigned char head[HEAD] = { (unsigned char)what };
    for (int at = 1; at < HEAD; at++)
        head[at] = (unsigned char)(bytes >> (8 * (HEAD - 1 - at)));
    double begun = now();
    int peer = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(peer, (struct sockaddr *)there, sizeof *there) != 0 || write(peer, head, sizeof head) != sizeof head)
        return 1;
    if (what == 's' ? push(peer, bytes) != 0 || pull(peer, 1) != 0 : pull(peer, bytes) != 0)
        return 1;
    printf("%.6f\n", now() - begun);
    return 0;
}

int main(int count, char **words)
{
    struct sockaddr_in other = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY) };
    signal(SIGPIPE, SIG_IGN);
    if (count == 3 && strcmp(words[1], "serve") == 0) {
        other.sin_port = htons((uint16_t)atoi(words[2]));
        return serve(&other);
    }
    if (count != 5 || inet_pton(AF_INET, words[2], &other.sin_addr) != 1)
        return 2;
    other.sin_port = htons((uint16_t)atoi(words[3]));
    return go(words[1][0], &other, strtoull(words[4], NULL, 10));
}
