"""Interleaved pairs: ours, theirs, ours, theirs… so that whatever else the computer does meets both alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

_RESAMPLES = 2000


@dataclass(frozen=True)
class Result:
    """``ours`` and ``theirs`` are medians in seconds; ``ratio`` of the medians, with its 95 % interval by bootstrap."""

    name: str
    n: int
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float

    def row(self) -> str:
        return (
            f"| {self.name} | {self.ours * 1000:.1f} ms | {self.theirs * 1000:.1f} ms "
            f"| {self.ratio:.2f} ({self.low:.2f} to {self.high:.2f}) | {self.n} |"
        )


def measure(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes. A number it returns is taken instead: it measured itself."""
    started = time.perf_counter()
    took = work()
    return took if isinstance(took, float) else time.perf_counter() - started


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], n: int, warm: int = 1) -> Result:
    """Run both ``n`` times in turn, the first of each pair alternating, after ``warm`` runs that do not count."""
    for _ in range(warm):
        measure(ours)
        measure(theirs)
    mine: list[float] = []
    other: list[float] = []
    for number in range(n):
        for is_ours in (True, False) if number % 2 == 0 else (False, True):
            (mine if is_ours else other).append(measure(ours if is_ours else theirs))
    return result(name, mine, other)


def result(name: str, mine: list[float], other: list[float]) -> Result:
    """The ratio of the medians of two lists of seconds, pairs resampled together for the interval."""
    chance = random.Random(1)
    ratios = []
    for _ in range(_RESAMPLES):
        picked = [chance.randrange(len(mine)) for _ in mine]
        ratios.append(statistics.median(mine[i] for i in picked) / statistics.median(other[i] for i in picked))
    ratios.sort()
    return Result(
        name,
        len(mine),
        statistics.median(mine),
        statistics.median(other),
        statistics.median(mine) / statistics.median(other),
        ratios[int(0.025 * _RESAMPLES)],
        ratios[int(0.975 * _RESAMPLES)],
    )
