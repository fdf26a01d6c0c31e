#include "power.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#include "children.h"
#include "files.h"
#include "freeze.h"
#include "link.h"
#include "loop.h"

enum { MERCY = 3000, DRAIN = 1000, MOUNTS_MAX = 256 };

/* ---- as PID 1 ---- */

/* Reap until nobody is left, or so many milliseconds passed. */
static void wait_for_all(uint64_t milliseconds)
{
    uint64_t end = now_ms() + milliseconds;
    while (now_ms() < end) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid < 0)
            return;
        if (pid == 0)
            poll(NULL, 0, 10);
    }
}

static void let_go_of_disks(void)
{
    static char places[MOUNTS_MAX][256];
    size_t count = 0;
    char line[1024];
    FILE *mounts = fopen("/proc/self/mounts", "re");
    while (mounts && count < MOUNTS_MAX && fgets(line, sizeof line, mounts)) {
        char *place = strchr(line, ' ');
        if (line[0] != '/' || !place) /* only what is on a device */
            continue;
        place++;
        place[strcspn(place, " ")] = 0;
        snprintf(places[count++], sizeof places[0], "%s", place);
    }
    if (mounts)
        fclose(mounts);
    while (count-- > 0)
        if (strcmp(places[count], "/") == 0 || umount2(places[count], UMOUNT_NOFOLLOW) < 0)
            mount(NULL, places[count], NULL, MS_REMOUNT | MS_RDONLY, NULL);
}

_Noreturn void power_cut(bool again)
{
    sync();
    reboot(again ? RB_AUTOBOOT : RB_POWER_OFF);
    reboot(RB_HALT_SYSTEM);
    for (;;)
        pause();
}

_Noreturn void power_down(bool again)
{
    link_drain(DRAIN);
    thaw_all();
    kill(-1, SIGTERM);
    kill(-1, SIGCONT);
    wait_for_all(MERCY);
    kill(-1, SIGKILL);
    wait_for_all(MERCY);
    sync();
    let_go_of_disks();
    power_cut(again);
}

/* ---- as a service ---- */

static bool asked_reboot;

/* systemd listens to these even when nothing else of it answers. */
static void ask_init(void)
{
    kill(1, SIGRTMIN + (asked_reboot ? 5 : 4));
}

static void helper_ended(struct child *child, int status)
{
    free(child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        ask_init();
}

static void ask_system(void)
{
    const char *what = asked_reboot ? "reboot" : "poweroff";
    struct child *child = malloc(sizeof *child);
    pid_t pid = child ? child_fork(child, helper_ended) : -1;
    if (pid == 0) {
        setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
        thaw_all();
        if (access("/run/systemd/system", F_OK) == 0)
            execlp("systemctl", "systemctl", what, "--no-block", NULL);
        execlp(what, what, NULL);
        _exit(127);
    }
    if (pid < 0) {
        free(child);
        ask_init();
    }
}

void shutdown_run(const struct request *request)
{
    char how[16];
    wire_find_text(request->fields, request->length, TAG_HOW, how, sizeof how);
    asked_reboot = strcmp(how, "reboot") == 0;
    if (!asked_reboot && strcmp(how, "poweroff") != 0) {
        answer_errno(request, EINVAL, NULL);
        return;
    }
    answer_done(request);
    if (getpid() == 1)
        power_down(asked_reboot);
    ask_system();
}

void power_asked(int number)
{
    if (getpid() == 1)
        power_down(number == SIGTERM || number == SIGINT || number == SIGRTMIN + 5); /* as other small inits understand them */
    if (number != SIGTERM && number != SIGINT)
        return;
    channels_hang_up();
    exit(0);
}
