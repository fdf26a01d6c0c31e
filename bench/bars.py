"""Every bar: its name on the command line, what is promised, and who measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench import boot, copying, quick, residents, rewind
from bench.pairs import Pairs, Statistic, difference, estimate, ratio, speed
from bench.report import Row, shown
from bench.world import World

_MS: Final = 1000.0


@dataclass(frozen=True)
class Bar:
    """``n``: how many pairs are measured unless said otherwise."""

    name: str
    what: str
    limit: float
    n: int
    measure: Callable[[Bar, World, int], Row]


def _row(bar: Bar, promise: str, measured: str, pairs: Pairs, met: bool) -> Row:
    ours, theirs = (f"{median(side) * _MS:.0f} ms" for side in (pairs.ours, pairs.theirs))
    return Row(bar.name, bar.what, promise, measured, ours, theirs, len(pairs.ours), met)


def _at_most(run: Callable[[World, int], Pairs], statistic: Statistic = ratio) -> Callable[[Bar, World, int], Row]:
    """A ratio of times that must not exceed the limit."""

    def measure(bar: Bar, world: World, n: int) -> Row:
        pairs = run(world, n)
        found = estimate(pairs, statistic)
        return _row(bar, f"≤ {bar.limit:g} ×", shown(found), pairs, found.value <= bar.limit)

    return measure


def _above(run: Callable[[World, int], Pairs]) -> Callable[[Bar, World, int], Row]:
    """Seconds above the other side that must not exceed the limit."""

    def measure(bar: Bar, world: World, n: int) -> Row:
        pairs = run(world, n)
        found = estimate(pairs, difference)
        return _row(bar, f"≤ {bar.limit * _MS:g} ms more", shown(found, " ms", 0, _MS), pairs, found.value <= bar.limit)

    return measure


def _as_fast(run: Callable[[World, int], Pairs]) -> Callable[[Bar, World, int], Row]:
    """A ratio of speeds that must reach the limit."""

    def measure(bar: Bar, world: World, n: int) -> Row:
        pairs = run(world, n)
        found = estimate(pairs, speed)
        return _row(bar, f"≥ {bar.limit:g} × as fast", shown(found), pairs, found.value >= bar.limit)

    return measure


def _resident(bar: Bar, world: World, n: int) -> Row:
    """Bytes, the largest of ``n`` machines."""
    found = [residents.look(world) for _ in range(n)]
    most = max(each.keeper for each in found)
    others = sorted({name for each in found for name in each.others})
    kib = f"{most / 1024:.0f} KiB"
    measured = f"{kib}, and {', '.join(others)}" if others else kib
    promise = f"< {bar.limit / 2**20:g} MiB, nothing else"
    return Row(bar.name, bar.what, promise, measured, kib, "-", n, most < bar.limit and not others)


def _pause(bar: Bar, world: World, n: int) -> Row:
    """Seconds, the median of ``n`` snapshots."""
    found = sorted(rewind.pause(world, n))
    middle, longest = (f"{value * _MS:.0f} ms" for value in (median(found), found[-1]))
    return Row(
        bar.name,
        bar.what,
        f"≤ {bar.limit * _MS:g} ms",
        f"{middle}, at most {longest}",
        middle,
        "-",
        n,
        median(found) <= bar.limit,
    )


_ALL = (
    Bar("noop", "`insula --version` / a Python process that imports click", 1.2, 60, _at_most(quick.noop)),
    Bar("list", "`insula list` of 1000 machines, above `insula --version`", 0.150, 30, _above(quick.list_thousand)),
    Bar(
        "exec", "`insula exec NAME -- true` / raw frames sent by a process that imports click", 1.2, 60, _at_most(quick.exec_true)
    ),
    Bar("keeper", "memory of the keeper (PSS) beside a running machine, and who else stays", 2.0**20, 2, _resident),
    Bar("copy-in", "`insula copy` of 100 MB into a guest / `dd` from a bare port", 0.9, 10, _as_fast(copying.into)),
    Bar("copy-out", "`insula copy` of 100 MB out of a guest / `dd` to a bare port", 0.9, 10, _as_fast(copying.out_of)),
    Bar("boot-tiny", "`insula run --cold tiny -- CMD` until CMD answers / QEMU by hand", 1.05, 20, _at_most(boot.tiny)),
    Bar("run-warm", "`insula run debian -- true` of a warm state / the same with `--cold`", 15.0, 6, _as_fast(rewind.run_warm)),
    Bar(
        "fork", "fork of a snapshot until its first command ended / the same state loaded by hand", 1.3, 20, _at_most(rewind.fork)
    ),
    Bar("fork-spare", "the same with a spare / without", 0.5, 20, _at_most(rewind.fork_spare)),
    Bar("restore", "restore in place until it answers / the same state loaded by hand", 1.2, 20, _at_most(rewind.restore)),
    Bar("snapshot-pause", "how long a guest dirtying its memory stands still for a snapshot", 0.040, 20, _pause),
    Bar("boot-debian", "`insula run --cold debian -- CMD` until CMD answers / QEMU by hand", 1.05, 8, _at_most(boot.debian)),
)

BARS: Final = {bar.name: bar for bar in _ALL}
