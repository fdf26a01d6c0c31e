"""Who stays beside a running machine, and how much memory that takes."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench.world import World

_PR_SET_CHILD_SUBREAPER = 36
_KEEPER = "insula-keeper"
_EXPECTED = ("qemu-system",)
# Who serves its network: dnsmasq, one for all machines there, or a passt of its own where there can be no networks.
_NETWORK = ("dnsmasq", "passt")


@dataclass(frozen=True)
class Residents:
    """``keeper``: PSS in bytes of all its processes, those that hold the networks among them. ``others``: names of what is
    neither keeper, nor QEMU, nor serves its network."""

    keeper: int
    others: tuple[str, ...]


def look(world: World) -> Residents:
    """Start a machine with a network card, and look at every process it left running."""
    adopt_orphans()
    before = descendants()
    with world.machine("tiny", "--memory", "128M") as _:
        time.sleep(1.0)  # at rest: what the start needed is given back by now
        found = [(_program(pid), pid) for pid in sorted(descendants() - before)]
        keeper = sum(pss(pid) for name, pid in found if name == _KEEPER)
    reap()
    names = [name for name, _ in found]
    assert names.count(_KEEPER) in (2, 4), f"not the two halves of a keeper, and of what holds the networks: {names}"
    assert any(name.startswith(_EXPECTED) for name in names), names
    return Residents(keeper, tuple(name for name in names if name != _KEEPER and not name.startswith(_EXPECTED + _NETWORK)))


def adopt_orphans() -> None:
    """What a command leaves behind becomes ours, not process 1's: so nothing is missed, however it detached itself."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> set[int]:
    """All processes that came from this one."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(") ")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, added = set[int](), {os.getpid()}
    while added:
        added = {pid for pid, parent in parents.items() if parent in added}
        found |= added
    return found


def _program(pid: int) -> str:
    return os.path.basename(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace"))


def pss(pid: int) -> int:
    """Bytes of memory of a process; what it shares with others counts in parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"the kernel does not tell the PSS of {pid}")


def reap() -> None:
    """Take note of the ends of what became our children."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass
