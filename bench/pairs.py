"""Interleaved pairs: ours, theirs, theirs, ours… so that whatever else the computer does meets both alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

_RESAMPLES = 2000

Work = Callable[[], object]
Statistic = Callable[[Sequence[float], Sequence[float]], float]


@dataclass(frozen=True)
class Pairs:
    """Seconds of each pair: ``ours[i]`` and ``theirs[i]`` were measured one right after the other."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]


@dataclass(frozen=True)
class Estimate:
    """A statistic of all pairs, and its 95 % interval by bootstrap, pairs being drawn as pairs."""

    value: float
    low: float
    high: float


def measure(work: Work) -> float:
    """Seconds that ``work`` takes. A number it returns is taken instead: it measured itself."""
    started = time.perf_counter()
    took = work()
    return took if isinstance(took, float) else time.perf_counter() - started


def interleave(ours: Work, theirs: Work, n: int, warm: int = 1) -> Pairs:
    """Run both ``n`` times in turn, the first of each pair alternating, after ``warm`` runs of each that do not count."""
    for _ in range(warm):
        measure(ours)
        measure(theirs)
    mine: list[float] = []
    other: list[float] = []
    for number in range(n):
        turns = ((mine, ours), (other, theirs))
        for taken, work in turns if number % 2 == 0 else reversed(turns):
            taken.append(measure(work))
    return Pairs(tuple(mine), tuple(other))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as long as theirs ours takes: of the medians."""
    return median(ours) / median(theirs)


def speed(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as fast as theirs ours is: of the medians."""
    return median(theirs) / median(ours)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many seconds longer than theirs ours takes: of the medians."""
    return median(ours) - median(theirs)


def estimate(pairs: Pairs, statistic: Statistic) -> Estimate:
    """``statistic`` of ``pairs``. The same pairs always give the same interval."""
    chance = random.Random(1)
    found = []
    for _ in range(_RESAMPLES):
        drawn = chance.choices(range(len(pairs.ours)), k=len(pairs.ours))
        found.append(statistic([pairs.ours[i] for i in drawn], [pairs.theirs[i] for i in drawn]))
    found.sort()
    low, high = found[round(0.025 * _RESAMPLES)], found[round(0.975 * _RESAMPLES) - 1]
    return Estimate(statistic(pairs.ours, pairs.theirs), low, high)
