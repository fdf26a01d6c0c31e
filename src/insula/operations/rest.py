"""Whether a machine has been idle for minutes: nobody is connected to its keeper (no command, shell, console, follower of its
logs), and it used next to no CPU time.

Nobody watches machines all the time. Whoever is short of memory looks, and writes down what he saw in the machine's run folder.
What a machine used since an earlier look, or since it began, it used at most in the minutes in question: when that is less than
the share of those minutes, it was idle in them, whenever it was. The looks are as far apart as such a proof needs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import DamagedRecord
from insula.host.counters import open_processes
from insula.store import names
from insula.store.records import read_record, write_record

_SHARE: Final = 0.05  # of one CPU; an emulated guest that only keeps its clocks takes a tenth of that
_MOST: Final = 16
_MINUTE: Final = 60.0
_CONNECTED: Final = "03"
_STATE, _INODE, _PATH = 5, 6, 7  # columns of /proc/net/unix


class Look(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds since the host started, and seconds of CPU time that the machine had used then."""

    at: float
    used: float


class _Looks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``rest.json``, the oldest first."""

    looks: list[Look]
    version: int = 1


def is_at_rest(folder: Path, pids: Sequence[int], minutes: int) -> bool:
    """Whether the machine whose processes these are has been idle for so long; looks at it, and writes down what it saw."""
    try:
        now, begun = _look(pids)
    except (ProcessLookupError, OSError):
        return False
    looks = _read(folder)
    path = folder / names.RUN / names.AT_REST
    if not looks or now.at - looks[-1].at >= minutes * _MINUTE / 4:
        with contextlib.suppress(OSError, DamagedRecord):
            write_record(path, _Looks([*looks, now][-_MOST:]))
    return was_idle([begun, *looks], now, minutes) and not is_attended(pids)


def was_idle(looks: Iterable[Look], now: Look, minutes: int) -> bool:
    """Pure: whether one of the earlier looks proves that less than the share was used in the last ``minutes``."""
    window = minutes * _MINUTE
    return any(now.at - look.at >= window and 0 <= now.used - look.used < _SHARE * window for look in looks)


def is_attended(pids: Iterable[int]) -> bool:
    """Whether somebody is connected to the keeper among these processes; also when that may not be seen."""
    connected = set()
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
        words = line.split(None, _PATH)
        if words[_STATE] == _CONNECTED and len(words) > _PATH and words[_PATH].endswith(names.KEEPER_SOCKET):
            connected.add(f"socket:[{words[_INODE]}]")
    try:
        return any(_link(pid, descriptor) in connected for pid in pids for descriptor in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return True


def _link(pid: int, descriptor: str) -> str:
    with contextlib.suppress(FileNotFoundError):  # closed meanwhile
        return os.readlink(f"/proc/{pid}/fd/{descriptor}")
    return ""


def _look(pids: Sequence[int]) -> tuple[Look, Look]:
    """Now, and when the youngest of the processes began: it had used nothing then. Raises ProcessLookupError."""
    processes = open_processes(pids)
    try:
        if not processes:
            raise ProcessLookupError("none was found")
        used = sum(process.cpu_time() for process in processes) / 1e9
        begun = max(process.begun() for process in processes)
        return Look(time.clock_gettime(time.CLOCK_BOOTTIME), used), Look(begun, 0.0)
    finally:
        for process in processes:
            process.close()


def _read(folder: Path) -> list[Look]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, DamagedRecord):
        return read_record(folder / names.RUN / names.AT_REST, _Looks).looks
    return []
