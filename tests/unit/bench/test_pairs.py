"""The measuring itself: order of the runs, statistics, intervals."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.pairs import Estimate, Pairs, difference, estimate, interleave, measure, ratio, speed

seconds = st.floats(min_value=1e-6, max_value=1e6)


def test_pairs_are_interleaved_and_take_turns_at_being_first() -> None:
    order: list[str] = []
    pairs = interleave(lambda: order.append("o"), lambda: order.append("t"), 4, warm=2)
    assert "".join(order) == "otot" + "ot" + "to" + "ot" + "to"
    assert len(pairs.ours) == len(pairs.theirs) == 4


def test_each_time_lands_on_its_own_side_and_warm_runs_on_none() -> None:
    ours, theirs = iter([9.0, 1.0, 2.0, 3.0]), iter([90.0, 10.0, 20.0, 30.0])
    assert interleave(lambda: next(ours), lambda: next(theirs), 3) == Pairs((1.0, 2.0, 3.0), (10.0, 20.0, 30.0))


def test_work_is_timed_unless_it_measured_itself() -> None:
    assert measure(lambda: 12.5) == 12.5
    began = time.perf_counter()
    took = measure(lambda: sum(range(10_000)))
    assert 0 < took <= time.perf_counter() - began


def test_the_statistics_are_of_medians() -> None:
    ours, theirs = [2.0, 4.0, 100.0], [1.0, 2.0, 3.0]
    assert ratio(ours, theirs) == 2.0
    assert speed(ours, theirs) == 0.5
    assert difference(ours, theirs) == 2.0


def test_without_spread_there_is_no_interval() -> None:
    assert estimate(Pairs((3.0,) * 5, (2.0,) * 5), ratio) == Estimate(1.5, 1.5, 1.5)


def test_the_interval_is_repeatable_and_narrows_with_more_pairs() -> None:
    chance = random.Random(7)
    ours, theirs = ([chance.gauss(middle, 0.1) for _ in range(200)] for middle in (1.1, 1.0))
    few, many = (estimate(Pairs(tuple(ours[:n]), tuple(theirs[:n])), ratio) for n in (10, 200))
    assert estimate(Pairs(tuple(ours), tuple(theirs)), ratio) == many
    assert many.high - many.low < few.high - few.low
    assert many.low < 1.1 < many.high
    assert many.low > 1.0


def test_noise_that_meets_both_sides_of_a_pair_alike_cancels_out() -> None:
    """Pairs are drawn as pairs: were the sides drawn apart, this interval would be wide."""
    loads = [1.0, 5.0, 2.0, 9.0, 3.0, 7.0, 4.0]
    assert estimate(Pairs(tuple(2 * load for load in loads), tuple(loads)), ratio) == Estimate(2.0, 2.0, 2.0)


@settings(max_examples=20)
@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=8))
def test_the_interval_lies_within_what_the_pairs_allow(times: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*times, strict=True)
    found = estimate(Pairs(ours, theirs), ratio)
    assert found.low <= found.high
    for value in (found.value, found.low, found.high):
        least, most = min(ours) / max(theirs), max(ours) / min(theirs)
        assert value == pytest.approx(min(max(value, least), most))
