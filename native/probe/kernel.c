/* The kernel itself: namespaces, mounts, modules, and calls that nobody in a jail needs. */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/reboot.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

#define CALL(function, ...) \
    static long function(void) \
    { \
        return syscall(__VA_ARGS__); \
    }

enum { FIRST_NEW = 424, LAST_NEW = 1023, X32 = 0x40000000, NEW_USER = 0x10000000 };

static char nothing[256];

CALL(mount_tmpfs, SYS_mount, "none", "/usr", "tmpfs", 0, "")
CALL(remount_root, SYS_mount, "none", "/", NULL, MS_REMOUNT | MS_BIND, NULL)
CALL(root_unmounted, SYS_umount2, "/", MNT_DETACH)
CALL(root_pivoted, SYS_pivot_root, "/", "/")
CALL(root_changed, SYS_chroot, "/usr")
CALL(user_namespace, SYS_unshare, CLONE_NEWUSER)
CALL(net_namespace, SYS_unshare, CLONE_NEWNET)
CALL(mount_namespace, SYS_unshare, CLONE_NEWNS)
CALL(namespace_joined, SYS_setns, 0, 0)
CALL(module_loaded, SYS_init_module, nothing, sizeof nothing, "")
CALL(module_removed, SYS_delete_module, "nothing", 0)
CALL(kernel_replaced, SYS_kexec_load, 0, 0, NULL, 0)
CALL(key_made, SYS_add_key, "user", "x", "x", 1, -3)
CALL(keyring_joined, SYS_keyctl, 1, NULL)
CALL(ring_made, SYS_io_uring_setup, 4, nothing)
CALL(faults_taken, SYS_userfaultfd, 1)
CALL(groups_changed, SYS_setgroups, 0, NULL)
CALL(host_named, SYS_sethostname, "x", 1)
CALL(switched_off, SYS_reboot, 0xfee1dead, 672274793, RB_DISABLE_CAD, NULL)
CALL(swap_added, SYS_swapon, "/dev/null", 0)
CALL(accounting, SYS_acct, "/dev/null")
CALL(handle_opened, SYS_open_by_handle_at, -1, nothing, 0)
CALL(personality_changed, SYS_personality, ADDR_NO_RANDOMIZE)
CALL(kernel_log_read, SYS_syslog, 3, nothing, sizeof nothing)
CALL(quota_changed, SYS_quotactl, 0, NULL, 0, NULL)
CALL(watched_all, SYS_fanotify_init, 0, 0)

static long became_root(void)
{
    return geteuid() == 0 ? 0 : setuid(0);
}

static long time_changed(void)
{
    struct timespec then = {.tv_sec = 1};
    return clock_settime(CLOCK_REALTIME, &then);
}

/* The beginning of union bpf_attr (linux/bpf.h): an array of one value. */
static long bpf_map(void)
{
    uint32_t attributes[18] = {2, 4, 4, 1};
    return syscall(SYS_bpf, 0, attributes, sizeof attributes);
}

/* The beginning of struct perf_event_attr (linux/perf_event.h): the clock, of this process alone, outside the kernel. */
static long perf(void)
{
    struct {
        uint32_t type, size;
        uint64_t config, period, sample, format, flags, rest[8];
    } attributes = {.type = 1, .size = sizeof attributes, .flags = 3 << 5};
    return syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
}

static long cloned(void)
{
    return syscall(SYS_clone, NEW_USER | SIGCHLD, NULL, NULL, NULL, 0);
}

static long cloned_anew(void)
{
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    } words = {.flags = NEW_USER, .exit_signal = SIGCHLD};
    return syscall(SYS_clone3, &words, sizeof words);
}

static bool is_listed(long number)
{
    static const long listed[] = {SYS_pidfd_send_signal, SYS_pidfd_open, SYS_clone3, SYS_close_range, SYS_openat2,
                                  SYS_faccessat2, SYS_epoll_pwait2, SYS_futex_waitv};
    for (size_t at = 0; at < sizeof listed / sizeof *listed; at++)
        if (listed[at] == number)
            return true;
    return false;
}

/* What no machine has on its list is refused, or this kernel does not know it; any other error means that it was asked. */
static long of_tomorrow(void)
{
    for (long number = FIRST_NEW; number <= LAST_NEW; number++)
        if (!is_listed(number) && (syscall(number, -1, -1, -1, -1, -1, -1) >= 0 || (errno != EPERM && errno != ENOSYS)))
            return number;
    return -1;
}

#ifdef __x86_64__
static long of_x32(void)
{
    return syscall(X32 | SYS_getpid);
}

/* By the door of 32-bit programs (int 0x80) getpid is 20. */
static long of_i386(void)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "r8", "r9", "r10", "r11", "memory");
    errno = result < 0 ? (int)-result : 0;
    return result < 0 ? -1 : result;
}
#endif

const struct attempt kernel_attempts[] = {
    {"mount a tmpfs", mount_tmpfs},
    {"make the root writable", remount_root},
    {"unmount the root", root_unmounted},
    {"put another root in its place", root_pivoted},
    {"change its root", root_changed},
    {"have a new user namespace", user_namespace},
    {"have a new network namespace", net_namespace},
    {"have a new mount namespace", mount_namespace},
    {"have a process in a new user namespace", cloned},
    {"have one by the newer call", cloned_anew},
    {"join a namespace", namespace_joined},
    {"load a module", module_loaded},
    {"remove a module", module_removed},
    {"load another kernel", kernel_replaced},
    {"make a BPF map", bpf_map},
    {"add a key", key_made},
    {"join a keyring", keyring_joined},
    {"have an io_uring", ring_made},
    {"handle page faults", faults_taken},
    {"count the processor's events", perf},
    {"be root", became_root},
    {"change its groups", groups_changed},
    {"name the host", host_named},
    {"set the clock", time_changed},
    {"reboot", switched_off},
    {"add swap", swap_added},
    {"turn on accounting", accounting},
    {"open a file by its handle", handle_opened},
    {"change its personality", personality_changed},
    {"read the kernel's log", kernel_log_read},
    {"change a quota", quota_changed},
    {"watch the file system", watched_all},
    {"make a call of tomorrow", of_tomorrow},
#ifdef __x86_64__
    {"make a call of x32", of_x32},
    {"make a call of a 32-bit program", of_i386},
#endif
    {NULL, NULL},
};
