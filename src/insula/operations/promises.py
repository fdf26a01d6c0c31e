"""CPUs and disk that are promised to machines: not beyond what this host's owner allows (resources/policy.py)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from insula.errors import HostLacks, InsulaError
from insula.host.files import own_usage
from insula.host.scheduling import online_cpus
from insula.model.units import format_size
from insula.operations.context import Context
from insula.operations.observe import is_alive
from insula.operations.operation import Operation
from insula.resources.admission import Stock
from insula.resources.policy import read_policy
from insula.store import names
from insula.store.machines import DiskRecord, read_machine, staged_folders
from insula.store.spares import all_records


def check_cpus(context: Context, cpus: int, *, count: int = 1, whose: str = "the machine", replaces: str = "") -> None:
    """Let ``count`` machines of so many CPUs run beside those that do; ``replaces``: the id of one whose place they take.

    Raises HostLacks (``no_cpus``) where the policy counts them, saying what is free, what is asked for, and what would fit.
    """
    policy = read_policy(context.home.root)
    if policy.cpu is None:
        return
    stock = cpu_stock(context, policy.cpu, besides=replaces)
    if count * cpus > stock.left:
        raise HostLacks(
            f"{_asked(count, whose)} {count * cpus} CPUs; of this host's {stock.there} may be promised {stock.times} times as"
            f" many, of which {stock.left} {'is' if stock.left == 1 else 'are'} left",
            code="no_cpus",
            hint=_fit(stock.left // cpus, count, f"with {stock.left} CPUs" if stock.left else "") + f"; {policy.source} says so",
        )


def cpu_stock(context: Context, times: int, *, besides: str = "") -> Stock:
    """This host's CPUs, and what those that run have of them."""
    running = (record for folder, record in all_records(context.home) if record.id != besides and is_alive(folder))
    return Stock(len(online_cpus()), times, sum(record.hardware.used_cpus for record in running))


def check_disk(context: Context, operation: Operation, growth: int, *, count: int = 1, whose: str = "the machine's disk") -> None:
    """Let ``count`` disks come into being that may each grow by so many bytes. Spares and what is left of warm states that nobody
    uses go before they are refused, as many as it takes, if that is enough.

    Raises HostLacks (``no_space``) where the policy counts that, saying what is free, what is asked for, and what would fit.
    """
    policy = read_policy(context.home.root)
    if policy.disk is None:
        return
    stock = disk_stock(context, policy.disk)
    if count * growth > stock.left:
        _give_back(context, operation, policy.disk, count * growth)
        stock = disk_stock(context, policy.disk)
    if count * growth > stock.left:
        raise HostLacks(
            f"{_asked(count, whose)} up to {format_size(count * growth)}; of the {format_size(stock.there)} free may be promised"
            f" {stock.times} times as much, and what is there may grow by {format_size(stock.promised)}",
            code="no_space",
            hint=_fit(stock.left // growth, count, f"of {format_size(stock.left)}" if stock.left else "")
            + f"; {policy.source} says so",
        )


def disk_stock(context: Context, times: int) -> Stock:
    """The free room for the state folder, and by how much what is in it may yet grow: machines' disks, warm states that are being
    made, and layers that are being merged."""
    free = os.statvfs(context.home.root)
    grown = sum(growth_of(folder, record.disks) for folder, record in all_records(context.home))
    unfinished = sum(map(growth_of_unfinished, staged_folders(context.home)))
    return Stock(free.f_bavail * free.f_frsize, times, grown + unfinished)


def growth_of_unfinished(folder: Path) -> int:
    """By how many bytes a folder may grow in which a verb makes something: a machine by its disks, a warm state by its memory,
    too, and layers that are merged by all of them."""
    if (merged := folder / names.MERGED).exists():
        return max(0, sum(map(_written, merge_sources(folder))) - _written(merged))
    with contextlib.suppress(InsulaError, OSError):
        record = read_machine(folder)
        memory = record.spec.memory if (folder / names.WARMING).exists() else 0
        kept = sum(map(_written, (folder / names.SNAPSHOTS).glob(f"*/{names.MEMORY}")))
        return growth_of(folder, record.disks) + max(0, memory - kept)
    return 0


def merge_sources(folder: Path) -> list[Path]:
    """The layers in a folder where they are merged; their numbers are their names, and the lowest is never merged."""
    return [path for path in folder.iterdir() if path.name.isdecimal() and path.name != "0"]


def growth_of(folder: Path, disks: Iterable[DiskRecord]) -> int:
    """By how many bytes a machine's disks may grow: each by all it has not written since its layers were frozen."""
    total = 0
    for disk in disks:
        total += max(0, disk.size - _written(folder / disk.head))
    return total


def _written(path: Path) -> int:
    """The bytes that a file takes; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return path.stat().st_blocks * 512
    return 0


def _give_back(context: Context, operation: Operation, times: int, wanted: int) -> None:
    """End spares, and delete warm states that are never used again, until there is room, or there are none."""
    from insula.operations.spare import give_back
    from insula.operations.warm import remove_stale

    def is_enough() -> bool:
        return wanted <= disk_stock(context, times).left

    spares = {folder: record for folder, record in all_records(context.home) if folder.parent.parent == context.home.spares}
    most = times * sum(own_usage(folder) + growth_of(folder, record.disks) for folder, record in spares.items())
    ended = 0
    if wanted <= disk_stock(context, times).left + most:
        for folder in spares:
            if is_enough():
                break
            ended += give_back(context, folder)
    deleted = 0 if is_enough() else remove_stale(context)
    words = [
        f"{count} {what}{'s' if count > 1 else ''}" for count, what in ((ended, "spare"), (deleted, "old warm state")) if count
    ]
    if words:
        operation.remarks.append(f"freed room on the disk: {' and '.join(words)} gone")


def _asked(count: int, whose: str) -> str:
    return f"{count} {whose} need" if count > 1 else f"{whose} needs"


def _fit(fits: int, count: int, less: str) -> str:
    if fits and count > 1:
        return f"{fits} would fit"
    return f"one {less} would fit" if less else "none would fit; stop or delete other machines first"
