"""How much memory this computer has to give, and who has it."""

from __future__ import annotations

import contextlib
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int:
    """Bytes that new programs could use without swapping: the kernel's own estimate (``MemAvailable``, see proc(5))."""
    return _told("MemAvailable")


def total_bytes() -> int:
    """All that the kernel has to give."""
    return _told("MemTotal")


def _told(wanted: str) -> int:
    for line in _MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == wanted:
            return int(value.split()[0]) * 1024
    raise OSError(f"{_MEMINFO} names no {wanted}")


def private_bytes(pid: int) -> int:
    """Bytes that would be free without this process: pages of no file, those it has of a file mapped copy on write among them,
    also where they are swapped out. 0 when it is gone. Format: proc(5), status."""
    found = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "VmSwap"):
                found += int(value.split()[0]) * 1024
    return found
