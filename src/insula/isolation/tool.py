"""A closed room for one tool that reads what a guest may have written: qemu-img on somebody's disk, or a TPM.

It sees this system's public programs and the files it is handed, nothing else: no other path, no process, no network, and of the
kernel's calls those on a list (filters/). As root it runs as a user of its own. bubblewrap itself keeps root's rights until it
has mounted the files, which lie in folders that nobody else may walk through; the tool gives up the rest before it runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from insula.host.apparmor import is_loaded
from insula.host.native import native_path
from insula.host.process import Completed, run
from insula.isolation.filters import open_filter

# Mounted by path: all that a program of the host needs to be loaded. On systems without a merged /usr these are folders.
_PLACES: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
LABEL: Final = "insula-room"  # AppArmor's profile for it: apparmor/insula
READABLE: Final = "/r"
WRITABLE: Final = "/w"
_PROCESSES: Final = 512  # of the user in the room; as root that may be a machine's, whose QEMU has as many
_MEMORY: Final = 4 << 30  # bytes of address space
_NAMESPACES: Final = ("ipc", "pid", "net", "uts")


def tool_argv(
    command: Sequence[str],
    *,
    readable: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    uid: int | None = None,
    seconds: int | None = None,
    largest: int | None = None,
    lasting: bool = False,
    calls: Sequence[int] = (),
) -> list[str]:
    """The words that run ``command`` in its room.

    ``readable`` files are ``/r/0``, ``/r/1``… inside, ``writable`` ones, or folders, ``/w/0``…; a ``uid`` of its own must be
    let use them by their modes. ``seconds`` of CPU time are granted (None: any), and files up to ``largest`` bytes. A ``lasting``
    one outlives whoever starts it, and is process 1 of its room. ``calls``: what `tool_calls` gave, which must go along.
    """
    words = [
        "bwrap",
        *(f"--unshare-{name}" for name in _NAMESPACES),
        "--unshare-cgroup-try",
        "--as-pid-1" if lasting else "--die-with-parent",
        "--new-session",
    ]
    words += ["--clearenv", "--setenv", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin", "--setenv", "LC_ALL", "C.UTF-8"]
    words += ["--cap-drop", "ALL", "--hostname", "insula", "--chdir", "/", *_system()]
    for folder in ("/dev", READABLE, WRITABLE):
        words += ["--perms", "0755", "--dir", folder]
    words += ["--dev-bind", "/dev/null", "/dev/null"]
    for index, path in enumerate(readable):
        words += ["--ro-bind", str(path), f"{READABLE}/{index}"]
    for index, path in enumerate(writable):
        words += ["--bind", str(path), f"{WRITABLE}/{index}"]
    words += ["--remount-ro", "/"]  # the place that all these are in; what was bound stays as it is
    words += [word for number in calls for word in ("--seccomp", str(number))]
    limits = ["prlimit", "--core=0", "--memlock=0", "--nofile=512", f"--nproc={_PROCESSES}", f"--as={_MEMORY}"]
    if seconds is not None:
        limits.append(f"--cpu={seconds}")
    if largest is not None:
        limits.append(f"--fsize={largest}")
    return [*_entering(), *words, *_identity(uid), *limits, "--", *command]


def _entering() -> list[str]:
    """Who is held by AppArmor's profile for rooms, where the host has loaded it."""
    return [str(native_path("insula-keeper")), "enter", f"--label={LABEL}", "--"] if is_loaded(LABEL) else []


def run_tool(
    command: Sequence[str],
    *,
    readable: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    uid: int | None,
    largest: int,
    seconds: int | None = None,
    timeout: float | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run ``command`` in its room to its end; the words mean what they do for `tool_argv` and `run`. Raises ChildFailed."""
    with tool_calls() as calls:
        argv = tool_argv(command, readable=readable, writable=writable, uid=uid, seconds=seconds, largest=largest, calls=calls)
        return run(argv, check=check, timeout=timeout, pass_fds=[*pass_fds, *calls])


@contextmanager
def tool_calls() -> Iterator[list[int]]:
    """The descriptor of the filter for tools; none where this computer's architecture has no list."""
    calls = open_filter("room")
    try:
        yield [] if calls is None else [calls]
    finally:
        if calls is not None:
            os.close(calls)


def _identity(uid: int | None) -> list[str]:
    """Who the tool is: nobody else's user for root, the caller himself, in a user namespace, for others."""
    if uid is None:
        return ["--unshare-user", "--"]
    rights = [word for name in ("SETUID", "SETGID", "SETPCAP") for word in ("--cap-add", f"CAP_{name}")]
    dropped = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    return [*rights, "--", "setpriv", *dropped, "--no-new-privs", "--"]


def _system() -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in _PLACES:
        path = Path("/") / name
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    return words
