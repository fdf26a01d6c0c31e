"""Which CPUs of this host processes may run on, and how nice they are: for where no control group can say it.

Both are properties of threads; a thread that is made later has those of the one that made it. Formats: sched(7).
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from insula.model.limits import parse_pin

_ONLINE: Final = Path("/sys/devices/system/cpu/online")
_AUTOGROUP: Final = Path("/proc/sys/kernel/sched_autogroup_enabled")
_OFTEN: Final = 20
_A_WHILE: Final = 60  # milliseconds


def online_cpus() -> tuple[int, ...]:
    """The numbers of the CPUs that run."""
    try:
        return parse_pin(_ONLINE.read_text().strip())
    except OSError:
        return tuple(range(os.cpu_count() or 1))


def has_autogroup() -> bool:
    """Whether the kernel weighs sessions against each other, and not their threads. A machine is a session of its own."""
    try:
        return _AUTOGROUP.read_text().strip() == "1"
    except OSError:
        return False


def bind(pids: Iterable[int], cpus: Collection[int]) -> None:
    """Have all threads of these processes run on these CPUs alone. Those that have ended are passed over. Raises OSError."""
    for thread in _threads(pids):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cpus)


def be_nice(pids: Iterable[int], niceness: int) -> None:
    """Give all threads of these processes this niceness. Raises OSError: only root may make anybody less nice."""
    for thread in _threads(pids):
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, thread, niceness)


def be_nice_session(pid: int, niceness: int) -> None:
    """Give the session (autogroup) of a process this niceness; a jailed process is none through which that can be done. Raises
    OSError, as `be_nice`."""
    path = Path("/proc") / str(pid) / "autogroup"
    for _ in range(_OFTEN):
        try:
            path.write_text(str(niceness))
            return
        except BlockingIOError:  # the kernel lets all ordinary users together do so ten times a second
            select.poll().poll(_A_WHILE)
    path.write_text(str(niceness))


def _threads(pids: Iterable[int]) -> Iterator[int]:
    for pid in pids:
        with contextlib.suppress(OSError):
            yield from (int(name) for name in os.listdir(f"/proc/{pid}/task"))
