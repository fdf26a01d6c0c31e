"""User namespaces with a full range of ids, and a closed room inside one: where foreign package scripts may be root.

``package_namespace`` gives a user namespace whose ids 0–65535 are ids of this host that own nothing: the range of
``/etc/subuid`` for an ordinary user (mapped by newuidmap), an unused one for root (mapped directly). ``confined`` gives
the command that runs a program there as root, in mount, pid, ipc and uts namespaces of its own, and sees of the host
only /usr, a handful of files of /etc, and one work folder.

bubblewrap is not used here: it resolves every path it binds by name, and the namespace's root may not walk through the
caller's private folders. Our stage starts *in* the work folder and binds ``.``, which needs no walk.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import ChildFailed, HostLacks
from insula.host.process import run, spawn

IDS: Final = 65536
# For root: a range above what distributions hand out by /etc/subuid (100 000 + n · 65 536 for the first 13 000 users).
ROOT_BASE: Final = 900_000_000
_PATIENCE: Final = 10.0  # seconds


class IdRange(msgspec.Struct, frozen=True):
    """``count`` ids of this host beginning at ``first``, for users and for groups."""

    first_uid: int
    first_gid: int
    count: int = IDS


def subordinate_range() -> IdRange:
    """The ids that stand for 0–65535 inside. Raises HostLacks (``no_subids``) when this user was given none."""
    if os.geteuid() == 0:
        return IdRange(ROOT_BASE, ROOT_BASE)
    return IdRange(_first_of(Path("/etc/subuid"), os.geteuid()), _first_of(Path("/etc/subgid"), os.geteuid()))


def _first_of(table: Path, uid: int) -> int:
    """The first large enough range of ``table`` (format: subuid(5)) for a user."""
    import pwd

    keys = {str(uid)}
    with contextlib.suppress(KeyError):
        keys.add(pwd.getpwuid(uid).pw_name)
    lines = table.read_text(errors="replace").splitlines() if table.exists() else []
    for line in lines:
        owner, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if owner in keys and first.isdecimal() and count.isdecimal() and int(count) >= IDS:
            return int(first)
    raise HostLacks(
        f"{table} grants this user no range of {IDS} ids",
        code="no_subids",
        hint="as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
    )


@contextlib.contextmanager
def package_namespace(*, with_self: bool = False) -> Iterator[int]:
    """A descriptor of a new user namespace in which 0–65535 are the ids of ``subordinate_range``.

    ``with_self`` also maps the calling user (as 65536), so that its root may hand over the caller's files and remove
    what packages left; nothing foreign ever runs in such a namespace. Raises HostLacks (``no_user_namespaces``,
    ``no_subids``).
    """
    ids = subordinate_range()
    uid_map, gid_map = [(0, ids.first_uid, ids.count)], [(0, ids.first_gid, ids.count)]
    if with_self:
        uid_map.append((IDS, os.geteuid(), 1))
        gid_map.append((IDS, os.getegid(), 1))
    ready_read, ready_write = os.pipe()
    hold_read, hold_write = os.pipe()
    # The holder keeps the namespace alive until we have a descriptor of it, or until we die.
    holder = spawn(["unshare", "--user", "--", "sh", "-c", "echo; read -r _"], stdin=hold_read, stdout=ready_write)
    os.close(hold_read)
    os.close(ready_write)
    descriptor = -1
    try:
        if os.read(ready_read, 1) == b"":
            raise HostLacks(
                "this host does not let us make a user namespace",
                code="no_user_namespaces",
                hint="to see why: unshare --user true",
            )
        _write_maps(holder.pid, uid_map, gid_map)
        descriptor = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_read)
        os.close(hold_write)
        holder.wait()
        holder.close()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_maps(pid: int, uid_map: Sequence[tuple[int, int, int]], gid_map: Sequence[tuple[int, int, int]]) -> None:
    if os.geteuid() == 0:
        for name, rows in (("uid_map", uid_map), ("gid_map", gid_map)):
            Path(f"/proc/{pid}/{name}").write_text("".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows))
        return
    for program, rows in (("newuidmap", uid_map), ("newgidmap", gid_map)):
        try:
            run([program, str(pid), *(str(number) for row in rows for number in row)])
        except ChildFailed as cause:
            raise HostLacks(
                "this host refuses to map the ids of /etc/subuid", code="no_subids", hint="run: apt-get install uidmap"
            ) from cause


def enter(namespace: int, network: int | None = None) -> list[str]:
    """The first words of a command that runs as root of a user namespace, and in a network namespace that belongs to it."""
    joined = [] if network is None else [f"--net=/proc/self/fd/{network}"]
    return ["nsenter", f"--user=/proc/self/fd/{namespace}", *joined, "--setuid=0", "--setgid=0", "--"]


def run_as_owner(argv: Sequence[str], *, cwd: Path) -> None:
    """Run one of our own commands on files that both the caller and ``package_namespace``'s ids own.

    As root that is just root; an ordinary user does it as root of a namespace that knows both. Raises ChildFailed.
    """
    if os.geteuid() == 0:
        run(argv, cwd=cwd)
        return
    with package_namespace(with_self=True) as namespace:
        run([*enter(namespace), *argv], cwd=cwd, pass_fds=[namespace])


def hand_over(folder: Path) -> None:
    """Make ``folder`` belong to the root of ``package_namespace``."""
    if os.geteuid() == 0:
        ids = subordinate_range()
        os.chown(folder, ids.first_uid, ids.first_gid)
    else:
        run_as_owner(["chown", "0:0", "."], cwd=folder)


def remove_handed_over(folder: Path) -> None:
    """Delete ``folder`` and all in it, whoever of ours or of the namespace's ids owns it; nothing when it is not there.

    What a killed builder had started may still be making files: it ends as it finds its builder gone, and is waited for by trying
    anew. Raises ChildFailed when that takes long.
    """
    deadline = time.monotonic() + _PATIENCE
    while folder.exists():
        try:
            run_as_owner(["rm", "-rf", "--one-file-system", "--", folder.name], cwd=folder.parent)
        except ChildFailed:
            if time.monotonic() > deadline:
                raise


# The stage runs in the work folder as root of the namespace, builds a root of the few things needed, moves into it and becomes
# the program. What it mounts is in a mount namespace of its own and gone with its last process.
_STAGE: Final = r"""
set -eu
resolver=$1
shift
room=/tmp
mount -t tmpfs -o mode=755,size=16m insula "$room"
for name in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$name" ]; then ln -s "$(readlink "/$name")" "$room/$name"
    elif [ -d "/$name" ]; then mkdir "$room/$name"; mount --rbind "/$name" "$room/$name"; fi
done
mkdir "$room/usr" "$room/etc" "$room/dev" "$room/proc" "$room/work" "$room/old" "$room/run" "$room/var" "$room/root"
mkdir -m 1777 "$room/tmp" "$room/var/tmp"
mount --rbind /usr "$room/usr"
mount -o remount,bind,ro "$room/usr" 2>/dev/null || true
# "." is this folder in the new mount namespace, reached without walking through folders closed to us.
mount -c --bind . "$room/work"
for name in null zero full random urandom tty; do
    : > "$room/dev/$name"; mount --bind "/dev/$name" "$room/dev/$name"
done
ln -s /proc/self/fd "$room/dev/fd"
mkdir -m 1777 "$room/dev/shm"
mkdir "$room/dev/pts"
if mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$room/dev/pts" 2>/dev/null
then ln -s pts/ptmx "$room/dev/ptmx"; fi
# Inside some containers the kernel refuses a new view of the processes; then it is the container's own.
mount -t proc -o nosuid,nodev,noexec proc "$room/proc" 2>/dev/null || mount --rbind /proc "$room/proc"
for path in alternatives ssl/certs ca-certificates.conf ld.so.cache ld.so.conf ld.so.conf.d mke2fs.conf perl; do
    [ -e "/etc/$path" ] || continue
    mkdir -p "$(dirname "$room/etc/$path")"
    if [ -d "/etc/$path" ]; then mkdir -p "$room/etc/$path"; else : > "$room/etc/$path"; fi
    mount --rbind "/etc/$path" "$room/etc/$path"
done
cat "$resolver" > "$room/etc/resolv.conf" 2>/dev/null || true
printf '%s\n' root:x:0:0:root:/root:/bin/sh _apt:x:42:65534::/nonexistent:/bin/false \
    nobody:x:65534:65534:nobody:/nonexistent:/bin/false > "$room/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' > "$room/etc/group"
printf '127.0.0.1 localhost\n' > "$room/etc/hosts"
printf 'passwd: files\ngroup: files\nhosts: files dns\n' > "$room/etc/nsswitch.conf"
hostname insula-build
cd "$room"
pivot_root . old
umount -l /old
rmdir /old
cd /work
exec "$@"
"""


def confined(
    namespace: int, argv: Sequence[str], network: int | None = None, resolver: Path = Path("/etc/resolv.conf")
) -> list[str]:
    """The command that runs ``argv`` as root of ``namespace`` in a closed room whose ``/work`` is the current folder.

    Start it with ``cwd`` = a folder given to the namespace by ``hand_over``, and with ``namespace`` passed on. All its
    processes end when it does; it ends when the thread that started it ends. ``network`` is a network namespace of its own (the
    host's without), ``resolver`` the file that names its name servers.
    """
    return [
        *enter(namespace, network),
        # After nsenter: changing ids clears the request to die with the parent.
        *("setpriv", "--no-new-privs", "--pdeathsig", "KILL", "--clear-groups", "--"),
        *("unshare", "--mount", "--propagation", "private", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--"),
        *("sh", "-c", _STAGE, "stage", os.fspath(resolver), *argv),
    ]
