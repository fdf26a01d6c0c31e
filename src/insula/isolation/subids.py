"""The ids an ordinary user's machines run as: of the ranges that /etc/subuid and /etc/subgid grant that user.

They are mapped into a user namespace that is made on the way into each jail (native/keeper/ids.c), by newuidmap and newgidmap.
The user is root there, who may show the jail files below his closed home, and become an id of the range; the namespace goes with
the last process in it. Whether this host lets us do so is found out by doing it, and noted until what it rests on changes.

Users have the numbers they have outside, and groups those of the users: an id has a group of the same number inside.
"""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from insula.errors import ChildFailed, HostLacks
from insula.host import acl
from insula.host.cache import cache_folder
from insula.host.files import write_atomic
from insula.host.namespaces import IdRange, subordinate_range
from insula.host.native import native_path
from insula.host.process import find_program, run

if TYPE_CHECKING:
    from insula.model.doctor import Fact

# Where in the range: images are built with its first and last ids (host/namespaces.py).
FIRST: Final = 8192
COUNT: Final = 16_384  # for each kind of process, and for groups of memory files
MACHINE, NETWORK, MEMORY = range(3)
# Where the root of a jail is seen on the way into it. bubblewrap needs the folder, too; nothing is made in it.
PLACE: Final = Path("/tmp")  # noqa: S108 - a place to mount at
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_RESTS_ON: Final = ("/etc/subuid", "/etc/subgid", "newuidmap", "newgidmap", "bwrap")
_PATIENCE: Final = 10.0
_NOTE: Final = "subids"
_WORKS: Final = "works"


@functools.cache
def own_range() -> IdRange | None:
    """The ids of the caller, an ordinary user, for jails; None for root, and where there are none, or they cannot be used."""
    if os.geteuid() == 0:
        return None
    with contextlib.suppress(HostLacks):
        ids, path, key = subordinate_range(), cache_folder() / _NOTE, _key()
        with contextlib.suppress(OSError):
            noted = path.read_text().splitlines()
            if noted[:1] == [key]:
                return ids if noted[1:] == [_WORKS] else None
        return ids if _examine(ids, key, path) == "" else None
    return None


def entering(ids: IdRange) -> list[str]:
    """The words of `insula-keeper enter` for a namespace with these ids."""
    return [f"--ids={ids.first_uid},{ids.first_gid},{ids.count}"]


def let_read(file: Path, ids: IdRange) -> int | None:
    """Let one group of ``ids`` read the caller's ``file``, besides the caller, and nobody write it; its number in a jail.

    None where the file system keeps no such lists. Which one follows from the file: whoever asks at once gets the same.
    """
    first, last = ids.first_gid + FIRST, ids.first_gid + ids.count
    try:
        there = acl.list_of(file)
        for whom, _, group in there:
            if whom == acl.GROUP and first <= group < last and there == acl.readers(group):
                return group - ids.first_gid + ids.first_uid
        chosen = first + MEMORY * COUNT + file.stat().st_ino % COUNT
        acl.set_list(file, acl.readers(chosen))
    except OSError:
        return None
    return chosen - ids.first_gid + ids.first_uid


def fact() -> Fact:
    """Does each machine run as a user of its own? Tried anew."""
    from insula.model.doctor import Fact, FactState

    name = "own users"
    if os.geteuid() == 0:
        return Fact(name, FactState.OK, "each machine runs as one that nobody else is")
    costs = "a QEMU that got out of all its namespaces would be this user"
    try:
        ids = subordinate_range()
        why = _examine(ids, _key(), cache_folder() / _NOTE)
    except HostLacks as refusal:
        return Fact(name, FactState.LIMITED, refusal.message, costs, refusal.hint or "")
    finally:
        own_range.cache_clear()
    if why:
        mend = "sudo apt-get install uidmap" if "start new" in why else "see why: unshare --user --map-users=auto true"
        return Fact(name, FactState.LIMITED, why, costs, mend)
    last = ids.first_uid + ids.count - 1
    return Fact(name, FactState.OK, f"each machine runs as one of its own, of {ids.first_uid} to {last}")


def _examine(ids: IdRange, key: str, note: Path) -> str:
    """Why a jail cannot be entered as one of ``ids``, nothing when it can; noted."""
    enter = [*entering(ids), "--show", "/usr", str(PLACE), "--locked", f"--user={ids.first_uid + FIRST}"]
    inside = ["bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "--", "true"]
    why = ""
    try:
        run([str(native_path("insula-keeper")), "enter", *enter, "--", *inside], timeout=_PATIENCE)
    except ChildFailed as failure:
        why = (failure.output.strip().splitlines() or [failure.message])[0]
    with contextlib.suppress(OSError, HostLacks):
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(note, f"{key}\n{why or _WORKS}\n".encode())
    return why


def _key() -> str:
    """Changes when what the answer rests on does: the boot, who asks in which namespace and with which rights, the files."""
    status = Path("/proc/self/status").read_text()
    locked = next((line.split()[1] for line in status.splitlines() if line.startswith("NoNewPrivs:")), "")
    words = [_BOOT.read_text().strip(), f"{os.geteuid()}:{os.getegid()}", os.readlink("/proc/self/ns/user"), locked]
    for name in _RESTS_ON:
        path = name if name.startswith("/") else find_program(name)
        try:
            seen = os.stat(path or name)
            words.append(f"{seen.st_ino}:{seen.st_mode:o}:{seen.st_size}:{seen.st_mtime_ns}")
        except OSError:
            words.append("absent")
    return " ".join(words)
