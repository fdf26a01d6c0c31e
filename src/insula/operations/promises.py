"""CPUs and disk that are promised to machines: not beyond what this host's owner allows (resources/policy.py)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from insula.errors import HostLacks
from insula.host.scheduling import online_cpus
from insula.model.units import format_size
from insula.operations.context import Context
from insula.operations.observe import is_alive
from insula.resources.admission import Stock
from insula.resources.policy import read_policy
from insula.store.machines import DiskRecord
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


def check_disk(context: Context, growth: int, *, count: int = 1, whose: str = "the machine's disk") -> None:
    """Let ``count`` disks come into being that may each grow by so many bytes. Spares and what is left of warm states that nobody
    uses go before they are refused.

    Raises HostLacks (``no_space``) where the policy counts that, saying what is free, what is asked for, and what would fit.
    """
    policy = read_policy(context.home.root)
    if policy.disk is None or count * growth <= disk_stock(context, policy.disk).left:
        return
    _give_back(context)
    stock = disk_stock(context, policy.disk)
    if count * growth > stock.left:
        raise HostLacks(
            f"{_asked(count, whose)} up to {format_size(count * growth)}; of the {format_size(stock.there)} free may be promised"
            f" {stock.times} times as much, and disks that are there may grow by {format_size(stock.promised)}",
            code="no_space",
            hint=_fit(stock.left // growth, count, f"of {format_size(stock.left)}" if stock.left else "")
            + f"; {policy.source} says so",
        )


def disk_stock(context: Context, times: int) -> Stock:
    """The free room for the state folder, and by how much the disks in it may yet grow."""
    free = os.statvfs(context.home.root)
    return Stock(
        free.f_bavail * free.f_frsize, times, sum(growth_of(folder, record.disks) for folder, record in all_records(context.home))
    )


def growth_of(folder: Path, disks: Iterable[DiskRecord]) -> int:
    """By how many bytes a machine's disks may grow: each by all it has not written since its layers were frozen."""
    total = 0
    for disk in disks:
        written = 0
        with contextlib.suppress(OSError):
            written = (folder / disk.head).stat().st_blocks * 512
        total += max(0, disk.size - written)
    return total


def _give_back(context: Context) -> None:
    from insula.operations.spare import give_back_memory
    from insula.operations.warm import remove_stale

    give_back_memory(context)
    remove_stale(context)


def _asked(count: int, whose: str) -> str:
    return f"{count} {whose} need" if count > 1 else f"{whose} needs"


def _fit(fits: int, count: int, less: str) -> str:
    if fits and count > 1:
        return f"{fits} would fit"
    return f"one {less} would fit" if less else "none would fit; stop or delete other machines first"
