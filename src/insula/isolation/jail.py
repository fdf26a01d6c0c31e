"""The jail around a machine's processes: what it is made of goes in, the words of a command come out.

From outside in: an own user id (for root), limits, AppArmor's profile where the host has loaded it, then bubblewrap's namespaces
(user, mount, pid, ipc, uts, cgroup, and an empty network), then a list of allowed system calls. The root is a read-only copy of
what QEMU needs (roots.py). There is no /proc, no /sys, no /tmp; of /dev there is /dev/null. No place can be written: disks,
sockets and logs are handed in open.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from insula.host.apparmor import is_loaded
from insula.host.native import native_path

# QEMU has a thread per CPU and at most 64 for disk requests; the rest is the keeper and room.
_THREADS: Final = 512
_DESCRIPTORS: Final = 1024
LABEL: Final = "insula-jail"  # AppArmor's profile for it: apparmor/insula
PROFILES: Final = Path(__file__).parent / "apparmor" / "insula"


class Jail(msgspec.Struct, frozen=True):
    """``uid``: the host id inside (None: the caller's), ``groups``: further ones. ``shown``: files of the host and where they can
    be read inside; ``devices``: device nodes, and where they can be opened inside. ``calls``: a descriptor of the filter that all
    inside are held to (filters/). ``largest``: the bytes beyond which nobody inside can make a file grow (None: any)."""

    root: Path
    uid: int | None = None
    groups: tuple[int, ...] = ()
    shown: tuple[tuple[Path, str], ...] = ()
    devices: tuple[tuple[Path, str], ...] = ()
    calls: int | None = None
    largest: int | None = None


def jail_argv(jail: Jail, command: Sequence[str]) -> list[str]:
    """The words that run ``command`` (paths as inside) as process 1 of a new jail.

    Open descriptors that are not marked close-on-exec go along.
    """
    return [*_entering(jail), *_namespaces(jail), "--", *command]


def _entering(jail: Jail) -> list[str]:
    """Who is inside, and its limits (native/keeper/enter.c)."""
    words = [str(native_path("insula-keeper")), "enter", "--locked"]
    if jail.uid is not None:
        words += [f"--user={jail.uid}", f"--groups={','.join(map(str, jail.groups))}"]
    label = [f"--label={LABEL}"] if is_loaded(LABEL) else []
    return [*words, *limit_words(jail), *label, "--"]


def limit_words(jail: Jail) -> list[str]:
    """The limits of ``jail``, as words of `insula-keeper enter`."""
    words = ["--core=0", f"--nofile={_DESCRIPTORS}", "--memlock=0"]
    if jail.largest is not None:
        words.append(f"--fsize={jail.largest}")
    if jail.uid is not None:
        # Counted per user: only sensible where the machine has a user of its own.
        words.append(f"--nproc={_THREADS}")
    return words


def _namespaces(jail: Jail) -> list[str]:
    words = ["bwrap", "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    # An ordinary user's stays in its porter's session, though not in its process group: the kernel weighs sessions (autogroups),
    # and lets that user say how nice one is through a process of it that is not jailed, and through no other.
    session = ["--new-session"] if jail.uid is not None else []
    words += ["--unshare-cgroup-try", "--disable-userns", *session, "--clearenv", "--cap-drop", "ALL"]
    words += ["--hostname", "insula", "--chdir", "/"]
    words += ["--ro-bind", str(jail.root), "/", "--dev-bind", "/dev/null", "/dev/null"]
    for source, path in jail.shown:
        words += ["--ro-bind", str(source), path]
    for source, path in jail.devices:
        words += ["--dev-bind", str(source), path]
    if jail.calls is not None:
        words += ["--seccomp", str(jail.calls)]
    # No --die-with-parent: the machine outlives the command that started it. Process 1 is our command, and the jail ends with it.
    return [*words, "--as-pid-1"]
