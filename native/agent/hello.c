#include "hello.h"

#include <limits.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "channels.h"
#include "files.h"
#include "wire/wire.h"

#ifndef INSULA_BUILD
#define INSULA_BUILD "by hand"
#endif

#if defined __x86_64__
#define ARCH "amd64"
#elif defined __aarch64__
#define ARCH "arm64"
#elif defined __riscv && __riscv_xlen == 64
#define ARCH "riscv64"
#elif defined __s390x__
#define ARCH "s390x"
#elif defined __i386__
#define ARCH "i386"
#else
#error "no Debian name is known for this architecture"
#endif

/* The value of ID= in os-release, without quotes. */
static void find_os(char *to, size_t size)
{
    static const char *const places[] = { "/etc/os-release", "/usr/lib/os-release" };
    char text[4096];
    to[0] = 0;
    for (size_t i = 0; i < 2 && !to[0]; i++) {
        if (read_text(places[i], text, sizeof text) < 0)
            continue;
        for (char *next, *line = text; line; line = next) {
            if ((next = strchr(line, '\n')))
                *next++ = 0;
            if (strncmp(line, "ID=", 3) != 0)
                continue;
            const char *value = line + 3 + strspn(line + 3, "\"'");
            size_t length = strcspn(value, "\"'");
            if (length < size) {
                memcpy(to, value, length);
                to[length] = 0;
            }
        }
    }
}

size_t hello_write(uint8_t *at, size_t size, uint16_t version)
{
    /* Neither changes while we run, and to read them anew takes a guest that has just been loaded a while. */
    static char boot_id[64], os[64];
    struct wire_writer fields;
    struct utsname name = { 0 };
    uname(&name);
    if (!os[0])
        find_os(os, sizeof os);
    wire_writer_init(&fields, at, size);
    wire_put_u64(&fields, TAG_VERSION, version);
    wire_put_text(&fields, TAG_BUILD, INSULA_BUILD);
    wire_put_text(&fields, TAG_ARCH, ARCH);
    for (size_t i = 0; verbs[i].name; i++)
        wire_put_text(&fields, TAG_FEATURES, verbs[i].name);
    if (boot_id[0] || read_line("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id))
        wire_put_text(&fields, TAG_BOOT_ID, boot_id);
    wire_put_u64(&fields, TAG_PID1, getpid() == 1);
    wire_put_text(&fields, TAG_KERNEL, name.release);
    if (os[0])
        wire_put_text(&fields, TAG_OS, os);
    wire_put_text(&fields, TAG_HOSTNAME, name.nodename);
    return fields.length;
}
