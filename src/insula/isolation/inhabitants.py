"""A machine's processes, found and ended from outside: for when its keeper hangs, was stopped, or obeys somebody else.

Nothing a jailed process says is asked or believed. The porter stands outside the jail and is subreaper, so all of the machine
stays below it, and its own words (proc(5), ``cmdline``) say which machine it is for. Should the porter have been killed,
the jailed are those in another pid namespace, or of the machine's own user, who hold files of the machine's folder open. What a
keeper holds, the kernel shows to root alone: an ordinary user's keeper is known by its words as well, and one that lies about
them ends nobody but itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Collection
from pathlib import Path

from insula.isolation.uids import jail_ids

_PROC = Path("/proc")
_DEEPEST = 16  # processes between a porter and one of its machine


def inhabitants(folder: Path, machine_id: str) -> dict[int, str]:
    """The pids of the machine's jailed processes and what they call themselves, oldest first.

    ``machine_id`` may be empty when nobody knows it any more; then only who holds files of ``folder`` is found.
    """
    parents = {pid: _parent(pid) for pid in _pids()}
    found = {pid for pid in parents if machine_id and _is_keeper(pid, b"porter", machine_id)}
    porters = set(found)
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    found -= porters
    if not found:
        own = _own_user(machine_id)
        found = {pid for pid in parents if _holds(pid, folder, own) or (machine_id and _is_keeper(pid, b"inner", machine_id))}
    return {pid: _name(pid) for pid in sorted(found)}


def porters(machine_id: str) -> list[int]:
    """The pids of the machine's porters, which stand outside its jail."""
    return [pid for pid in _pids() if machine_id and _is_keeper(pid, b"porter", machine_id)]


def all_inhabitants(machine_ids: Collection[str]) -> dict[str, list[int]]:
    """The pids of the jailed processes of these machines, as far as their porters live: in one look, for many machines."""
    parents = {pid: _parent(pid) for pid in _pids()}
    known = {os.fsencode(machine_id): machine_id for machine_id in machine_ids}
    homes = {pid: known[word] for pid in parents for word in _keeper_words(pid, b"porter") if word in known}
    found: dict[str, list[int]] = {machine_id: [] for machine_id in machine_ids}
    for pid, parent in parents.items():
        above, steps = parent, 0
        while above not in homes and above and steps < _DEEPEST:
            above, steps = parents.get(above, 0), steps + 1
        if above in homes:
            found[homes[above]].append(pid)
    return found


def evict(folder: Path, machine_id: str, timeout: float) -> bool:
    """Kill every process of the machine; whether all that were found are gone within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    descriptors: list[int] = []
    try:
        for pid in inhabitants(folder, machine_id):
            with contextlib.suppress(ProcessLookupError):
                descriptors.append(os.pidfd_open(pid))
        # Looked at once more: a pid seen before its descriptor was opened may have become somebody else's in between.
        meant = inhabitants(folder, machine_id)
        ended = [_kill(descriptor, deadline) for descriptor in descriptors if _pid_of(descriptor) in meant]
        return all(ended)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _kill(descriptor: int, deadline: float) -> bool:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _pid_of(descriptor: int) -> int:
    """Format: pidfd_open(2), the ``Pid`` line of fdinfo; -1 once the process has been reaped."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    return -1


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdecimal()]


def _is_keeper(pid: int, half: bytes, machine_id: str) -> bool:
    """Whether it runs as us and says it is that half of the machine's keeper: ``porter`` or ``inner``."""
    return os.fsencode(machine_id) in _keeper_words(pid, half)


def _keeper_words(pid: int, half: bytes) -> list[bytes]:
    """Its words if it runs as us and says it is that half of a keeper."""
    with contextlib.suppress(OSError):
        entry = _PROC / str(pid)
        words = (entry / "cmdline").read_bytes().split(b"\0")
        if words[0].endswith(b"insula-keeper") and words[1:2] == [half] and _user(entry) == os.geteuid():
            return words
    return []


def _user(entry: Path) -> int:
    """Its effective user. Format: proc(5), status; the folder of one that may not be dumped belongs to root whoever it is."""
    lines = (entry / "status").read_text(errors="replace").splitlines()
    return next(int(line.split()[2]) for line in lines if line.startswith("Uid:"))


def _parent(pid: int) -> int:
    """Its parent's pid, 0 when it is gone. Format: proc(5), stat; the name may hold any character, so count from its end."""
    with contextlib.suppress(OSError, ValueError):
        return int((_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return 0


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    return ""


def _own_user(machine_id: str) -> int | None:
    """The user that none but this machine's processes are; None where it has none, or nobody knows its id any more."""
    with contextlib.suppress(ValueError):
        return jail_ids(machine_id).machine
    return None


def _holds(pid: int, folder: Path, own: int | None) -> bool:
    entry = _PROC / str(pid)
    with contextlib.suppress(OSError):
        if os.readlink(entry / "ns/pid") == os.readlink("/proc/self/ns/pid") and (own is None or _user(entry) != own):
            return False
        below = os.path.join(folder.resolve(), "")
        return any(os.readlink(link).startswith(below) for link in (entry / "fd").iterdir())
    return False
