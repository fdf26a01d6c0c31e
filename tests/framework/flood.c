/* Send UDP packets to an address as fast as it goes: flood ADDRESS SIZE */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { BATCH = 64, LONGEST = 1472 };

int main(int count, char **words)
{
    static char data[LONGEST];
    static struct iovec pieces[BATCH];
    static struct mmsghdr batch[BATCH];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
    int size = count == 3 ? atoi(words[2]) : 0;
    if (size < 1 || size > LONGEST || inet_pton(AF_INET, words[1], &to.sin_addr) != 1)
        return 2;
    for (int each = 0; each < BATCH; each++) {
        pieces[each] = (struct iovec){data, (size_t)size};
        batch[each].msg_hdr = (struct msghdr){.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &pieces[each], .msg_iovlen = 1};
    }
    int out = socket(AF_INET, SOCK_DGRAM, 0);
    for (;;)
        sendmmsg(out, batch, BATCH, 0); /* refusals of a port where nobody listens are no reason to stop */
}
