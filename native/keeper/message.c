/* How a holder is spoken to: one packet is one request or answer, with descriptors beside the words. */
#define _GNU_SOURCE
#include "hold.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void take_fds(struct msghdr *header, struct request *request)
{
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part; part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        request->fd_count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(request->fds, CMSG_DATA(part), request->fd_count * sizeof(int));
    }
}

static void split(struct request *request, size_t length)
{
    request->bytes[length] = 0;
    for (size_t at = 0; at < length && request->count < HOLD_WORDS_MAX; at += strlen(request->bytes + at) + 1)
        request->words[request->count++] = request->bytes + at;
    request->words[request->count] = NULL;
}

bool request_receive(int client, struct request *request)
{
    union { struct cmsghdr align; char bytes[CMSG_SPACE(HOLD_FDS_MAX * sizeof(int))]; } control;
    struct iovec part = { .iov_base = request->bytes, .iov_len = HOLD_MESSAGE_MAX };
    struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
    request->count = request->fd_count = 0;
    ssize_t got = recvmsg(client, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    if (got == 0)
        return false;
    take_fds(&header, request);
    if (!(header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
        split(request, (size_t)got);
    return true;
}

void request_close_fds(struct request *request)
{
    for (size_t i = 0; i < request->fd_count; i++)
        close(request->fds[i]);
    request->fd_count = 0;
}

void reply(int client, const char *text, size_t length, const int *fds, size_t count)
{
    union { struct cmsghdr align; char bytes[CMSG_SPACE(2 * sizeof(int))]; } control = { 0 };
    struct iovec part = { .iov_base = (char *)text, .iov_len = length };
    struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };
    if (count > 0) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(rights), fds, count * sizeof(int));
    }
    (void)!sendmsg(client, &header, MSG_NOSIGNAL | MSG_DONTWAIT); /* who does not read its answers goes without */
}

void reply_ok(int client)
{
    reply(client, "ok", 2, NULL, 0);
}

void reply_error(int client, const char *what, int number)
{
    char text[512];
    int length = snprintf(text, sizeof text, "error%c%s: %s", 0, what, strerror(number));
    reply(client, text, (size_t)length < sizeof text ? (size_t)length : sizeof text - 1, NULL, 0);
}

void reply_spaces(int client, const char *text, size_t length, const struct spaces *spaces)
{
    int fds[] = { spaces->net, spaces->user };
    reply(client, text, length, fds, spaces->user >= 0 ? 2 : 1);
}

int accept_own(int listen)
{
    struct ucred peer = { .uid = (uid_t)-1 };
    socklen_t size = sizeof peer;
    int client = accept4(listen, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client >= 0 && (getsockopt(client, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != geteuid())) {
        close(client);
        return -1;
    }
    return client;
}
