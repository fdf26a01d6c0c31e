"""Machines held down for a while: below what their records allow, without the records saying so.

What a machine is held down to stands in its run folder before it is, so nothing is held that nobody knows of: who finds it there
(the next guard, `insula limit`) takes it back, and with the QEMU it was for it is gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from insula.errors import DamagedRecord
from insula.host.cgroup_trees import find_trees, is_usable
from insula.host.scheduling import has_autogroup
from insula.model.limits import THOUSAND, WORDS, Limits, narrower
from insula.model.limits import Hold as LimitHold
from insula.model.network import Rates
from insula.operations.context import Context
from insula.operations.hold import hold_machine
from insula.operations.limiting import holds, uphold
from insula.resources.groups import group_of
from insula.resources.holds import Hold
from insula.resources.pressure import OPERATION, Resource
from insula.store import names
from insula.store.machines import MachineRecord
from insula.store.records import read_record, write_record

_LEAST_CPU, _LEAST_RATE, _LEAST_IOPS, _LEAST_BITS = 10, 64 * 1024, 10, 8000  # as in model/limits.py and model/network.py
_THREADS_OUT = 3  # see `_fewer_shares`


class _Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``held.json``: by resource, the cap and what was used when that began."""

    holds: dict[Resource, tuple[float, float]]
    version: int = 1


def held_down(folder: Path) -> dict[Resource, Hold]:
    """What a machine is held down to."""
    try:
        found = read_record(folder / names.RUN / names.HELD, _Held)
    except (FileNotFoundError, NotADirectoryError, DamagedRecord):
        return {}
    return {resource: Hold(cap, used) for resource, (cap, used) in found.holds.items()}


def is_held_down(folder: Path) -> bool:
    return (folder / names.RUN / names.HELD).exists()


def forget(folder: Path) -> None:
    """Nobody holds it down any more."""
    with contextlib.suppress(FileNotFoundError):
        (folder / names.RUN / names.HELD).unlink()


def hold_down(context: Context, name: str, holds: Mapping[Resource, Hold], *, patience: float = 0.0) -> None:
    """Hold a running machine to ``holds`` beside its own limits, in the place of what it was held to; empty: to nothing else.
    Waits ``patience`` seconds for who works on it.

    Raises NotFound, WrongState, Busy, HostLacks; then it is held as it was, as far as that can be.
    """
    with hold_machine(context, name, "guard", patience=patience) as held:
        folder, record = held.folder, held.record
        before = held_down(folder)
        grouped = _has_group(context, folder)
        if holds:
            write_record(folder / names.RUN / names.HELD, _Held({key: (each.cap, each.used) for key, each in holds.items()}))
        try:
            former = narrowed(record, before, grouped=grouped)
            uphold(context, folder, narrowed(record, holds, grouped=grouped), former)
        except BaseException:
            if before:
                write_record(folder / names.RUN / names.HELD, _Held({key: (each.cap, each.used) for key, each in before.items()}))
            else:
                forget(folder)
            raise
        if not holds:
            forget(folder)


def as_held(context: Context, folder: Path, record: MachineRecord) -> MachineRecord:
    """The record, its limits as narrow as the machine is held just now."""
    return narrowed(record, held_down(folder), grouped=_has_group(context, folder))


def holds_now(context: Context, folder: Path, record: MachineRecord) -> list[LimitHold]:
    """How a running machine is held to its limits, and to what it is held down for a while."""
    if not is_held_down(folder):
        return holds(context, folder, record)
    found = holds(context, folder, as_held(context, folder, record))
    return [
        msgspec.structs.replace(each, by=f"{each.by}; held down for others' sake")
        if each.asked != _asked(each, record.limits)
        else each
        for each in found
    ]


def _asked(hold: LimitHold, limits: Limits) -> str:
    """What the record says of that limit."""
    return next(str(write(getattr(limits, field))) for field, (word, _, write) in WORDS.items() if word == hold.limit)


def narrowed(record: MachineRecord, holds: Mapping[Resource, Hold], *, grouped: bool = True) -> MachineRecord:
    """Pure: ``record`` with limits that allow no more than ``holds``. ``grouped``: a control group limits its CPU time."""
    limits = record.limits
    if (cpu := holds.get("cpu")) is not None:
        cap = max(_LEAST_CPU, round(cpu.cap * THOUSAND))
        if not grouped:
            limits = msgspec.structs.replace(limits, cpu_shares=_fewer_shares(limits.cpu_shares, cpu))
        elif not limits.cpu_limit or cap < limits.cpu_limit:
            limits = msgspec.structs.replace(limits, cpu_limit=cap, cpu_burst=0)
    if (disk := holds.get("disk")) is not None:
        limits = _slower(limits, max(_LEAST_RATE, round(disk.cap)), max(_LEAST_IOPS, round(disk.cap / OPERATION)))
    if (network := holds.get("network")) is not None:
        rates = Rates(up=max(_LEAST_BITS, round(network.cap * 8)))
        limits = msgspec.structs.replace(limits, net=narrower(limits.net, rates))
    return msgspec.structs.replace(record, limits=limits)


def _fewer_shares(shares: int, hold: Hold) -> int:
    """Where nothing limits CPU time its threads get a lower weight each. To bring a machine of many threads down to ``cap`` each
    must lose more than it is to lose as a whole, because what it leaves is shared by its own threads, too."""
    return max(2, round(shares * min(1.0, hold.cap / max(hold.used, 1e-9)) ** _THREADS_OUT))


def _slower(limits: Limits, rate: int, iops: int) -> Limits:
    if not limits.disk_rate or rate < limits.disk_rate:
        limits = msgspec.structs.replace(limits, disk_rate=rate, disk_rate_burst=0)
    if not limits.disk_iops or iops < limits.disk_iops:
        limits = msgspec.structs.replace(limits, disk_iops=iops, disk_iops_burst=0)
    return limits


def _has_group(context: Context, folder: Path) -> bool:
    group = group_of(context.home, folder / names.RUN)
    return group is not None and "cpu" in group.versions()


def can_hold_cpu() -> bool:
    """Whether what is taken from a machine's CPU time can be given back: without groups, only root may make a thread less nice
    again; of a session (autogroup) anybody may."""
    trees = (tree for tree in find_trees() if "cpu" in tree.controllers)
    return os.geteuid() == 0 or has_autogroup() or any(map(is_usable, trees))
