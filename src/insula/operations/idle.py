"""Whether a guest is at rest."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

# A guest is idle when it wanted less than this share of a CPU for so long, so many times in a row: in the middle of its boot
# it waits for a device now and then, too.
_SHARE: Final = 0.2
_FOR: Final = 0.5
_TIMES: Final = 2


def wait_idle(folder: Path, machine_id: str, patience: float) -> None:
    """Wait until the guest's QEMU wants next to no CPU time, ``patience`` seconds at most."""
    from insula.isolation.inhabitants import inhabitants

    pids = list(inhabitants(folder, machine_id))
    deadline, idle = time.monotonic() + patience, 0
    while idle < _TIMES and time.monotonic() < deadline:
        before = _wanted(pids)
        time.sleep(_FOR)  # what is measured is how much it wants in that time
        idle = idle + 1 if _wanted(pids) - before < _SHARE * _FOR else 0


def _wanted(pids: list[int]) -> float:
    """Seconds these processes' threads had a CPU or waited for one so far: on a busy host a guest may get next to nothing, and is
    not idle (proc(5), schedstat: nanoseconds of both; a kernel without it tells the first by stat, in clock ticks)."""
    return sum(_of_thread(folder) for pid in pids for folder in Path(f"/proc/{pid}/task").glob("*"))


def _of_thread(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        ran, waited, _ = (folder / "schedstat").read_text().split()
        return (int(ran) + int(waited)) / 1e9
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0  # it has ended
