"""What a machine's limits come to on this host: pure. What it has of control groups goes in; what is to be written where, and
what is to be done by other means, comes out.

Every machine has a group, so machines are weighed against each other, and not their threads: one with many CPUs gets no more than
one with few. The fence around a machine's memory is no limit on its guest, which has the memory it was given: it ends a QEMU that
takes much more beside it before the host runs short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from insula.model.limits import DEFAULT_SHARES, DEFAULT_WEIGHT, WORDS, Hold, Limits, format_pin
from insula.model.units import MIB

PERIOD: Final = 100_000  # microseconds: the time a CPU quota is for
_QUOTA: Final = PERIOD // 1000  # of a thousandth of a CPU
_V2_WEIGHT: Final = 100  # what is 1024 in version 1
_MOST_V1, _MOST_V2 = 262_144, 10_000
PROCESSES: Final = 1024  # a QEMU has a few hundred threads at most (isolation/jail.py); the rest is for its helpers
# Beside the guest's memory: translated code (128 MiB at most), QEMU itself, its helpers, and the page cache of its disks.
_BESIDE: Final = 768 * MIB
_PER_MEMORY: Final = 32  # and a 32nd of its memory for page tables and the like
_SLACK: Final = 64 * MIB  # version 2: so far below the fence it is slowed down

_GROUPED: Final = {"pin": "cpuset", "isolate": "cpuset", "cpu_shares": "cpu", "cpu_limit": "cpu", "cpu_burst": "cpu"}
_DISK: Final = ("disk_iops", "disk_iops_burst", "disk_rate", "disk_rate_burst")
_DELEGATE: Final = "root can; or: systemd-run --user --scope -p Delegate=yes -- $SHELL, where that passes the controller on"


class Setting(NamedTuple):
    """A value for a file of a controller; ``wish``: the field of `Limits` that it is for."""

    controller: str
    file: str
    value: str
    wish: str = ""


def fence(memory: int) -> int:
    """The bytes that a machine with a guest of ``memory`` bytes never needs to exceed."""
    return memory + memory // _PER_MEMORY + _BESIDE


def settings(limits: Limits, memory: int, versions: Mapping[str, int], cpus: str) -> list[Setting]:
    """All that is to be written for a machine, in this order. ``versions``: of which version each controller is that governs its
    group; ``cpus``: all those it could run on, as a cpuset spells them."""
    found = []
    for controller, make in (("cpuset", _cpuset), ("cpu", _cpu), ("memory", _memory), ("pids", _pids)):
        if controller in versions:
            found += make(limits, memory, versions[controller], cpus)
    return found + _weight(limits, versions)


def _cpuset(limits: Limits, _memory: int, _version: int, cpus: str) -> list[Setting]:
    """No group that processes are in can be told of no CPUs, which would be all of them, once it was told of some."""
    wish = "isolate" if limits.isolate else "pin"
    return [Setting("cpuset", "cpuset.cpus", format_pin(limits.cores) if limits.cores else cpus, wish)]


def _cpu(limits: Limits, _memory: int, version: int, _cpus: str) -> list[Setting]:
    quota = limits.cpu_limit * _QUOTA
    burst = limits.cpu_burst * _QUOTA
    if version == 1:
        return [
            Setting("cpu", "cpu.shares", str(limits.cpu_shares), "cpu_shares"),
            Setting("cpu", "cpu.cfs_burst_us", "0"),  # it may never be more than the quota
            Setting("cpu", "cpu.cfs_period_us", str(PERIOD)),
            Setting("cpu", "cpu.cfs_quota_us", str(quota or -1), "cpu_limit"),
            Setting("cpu", "cpu.cfs_burst_us", str(burst), "cpu_burst" if burst else ""),
        ]
    return [
        Setting("cpu", "cpu.weight", str(weight_of(limits.cpu_shares)), "cpu_shares"),
        Setting("cpu", "cpu.max.burst", "0"),
        Setting("cpu", "cpu.max", f"{quota or 'max'} {PERIOD}", "cpu_limit"),
        Setting("cpu", "cpu.max.burst", str(burst), "cpu_burst" if burst else ""),
    ]


def weight_of(shares: int) -> int:
    """Version 2's weight (1 to 10000, 100 as a rule) for version 1's shares."""
    return max(1, min(_MOST_V2, round(shares * _V2_WEIGHT / DEFAULT_SHARES)))


def _memory(_limits: Limits, memory: int, version: int, _cpus: str) -> list[Setting]:
    most = fence(memory)
    if version == 1:
        return [Setting("memory", "memory.limit_in_bytes", str(most))]
    return [Setting("memory", "memory.high", str(most - _SLACK)), Setting("memory", "memory.max", str(most))]


def _pids(_limits: Limits, _memory: int, _version: int, _cpus: str) -> list[Setting]:
    return [Setting("pids", "pids.max", str(PROCESSES))]


def _weight(limits: Limits, versions: Mapping[str, int]) -> list[Setting]:
    """These files are there only where the kernel has the means; whoever asks for no weight does without."""
    weight, wish = str(limits.io_weight), "io_weight" if limits.io_weight != DEFAULT_WEIGHT else ""
    if "blkio" in versions:
        return [Setting("blkio", "blkio.bfq.weight", weight, wish)]
    if "io" in versions:
        return [Setting("io", "io.bfq.weight", weight), Setting("io", "io.weight", weight, wish)]
    return []


def parent_weight(machines: int, version: int) -> tuple[str, str]:
    """File and value for a group that holds the groups of so many machines: each weighs as one ordinary process of the host."""
    if version == 1:
        return "cpu.shares", str(min(_MOST_V1, DEFAULT_SHARES * max(1, machines)))
    return "cpu.weight", str(min(_MOST_V2, _V2_WEIGHT * max(1, machines)))


def nice_of(shares: int) -> int:
    """The niceness that comes nearest to so many shares: of two processes a step apart one gets 1.25 times as much."""
    return max(-20, min(19, round(math.log(DEFAULT_SHARES / shares, 1.25))))


def wished(limits: Limits) -> list[str]:
    """The fields that are not as they are for a machine without limits."""
    return [field for field in WORDS if field != "burst_time" and getattr(limits, field) != getattr(Limits(), field)]


def hold_of(field: str, limits: Limits, versions: Mapping[str, int], *, root: bool, autogroup: bool) -> Hold:
    """How a limit is held on a host where a machine's group has the controllers ``versions``, or why it cannot be."""
    word, _, write = WORDS[field]
    holds, by = _means(field, limits, versions, root=root, autogroup=autogroup)
    return Hold(word, write(getattr(limits, field)), holds, by)


def _means(field: str, limits: Limits, versions: Mapping[str, int], *, root: bool, autogroup: bool) -> tuple[bool, str]:
    if field in _DISK:
        return True, "QEMU's throttle"
    if field == "net":
        return True, "the network"
    if field == "io_weight":
        if "io" in versions or "blkio" in versions:
            return True, "control group; felt only while the disk's scheduler is one that weighs (BFQ, iocost)"
        return False, f"no group can be made for disks here: {_DELEGATE}"
    if _GROUPED[field] in versions:
        return True, f"control group, version {versions[_GROUPED[field]]}"
    if field == "pin":
        return True, "the affinity of its threads"
    if field == "cpu_shares":
        if nice_of(limits.cpu_shares) < 0 and not root:
            return False, f"more than others have takes a control group: {_DELEGATE}"
        return True, "the niceness of its session (autogroup)" if autogroup else "the niceness of its threads"
    return False, f"no group can be made for CPU time here: {_DELEGATE}"
