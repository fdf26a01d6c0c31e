"""Long tests try a sample that can be had again, short ones everything; none passes that tried nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.framework.points import NEVER, Points
from tests.framework.project import ROOT


def _row(count: int, tried: list[int]) -> Callable[[int], int]:
    """What has so many points, and notes those tried."""

    def attempt(point: int) -> int:
        tried.append(point)
        return min(point, count)

    return attempt


def _sample(seed: int, name: str = "a test") -> Points:
    return Points(name, seed, whole=False)


def test_all_are_tried_to_the_end() -> None:
    tried: list[int] = []
    Points("a test", 1, whole=True).each(_row(5, tried), rounds=2, least=5)
    assert tried == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("seed", range(20))
def test_of_a_sample_one_is_in_each_part(seed: int) -> None:
    tried: list[int] = []
    _sample(seed).each(_row(40, tried), rounds=4, least=40)
    assert tried[0] == NEVER, "first it is seen how many there are"
    assert [(point - 1) // 10 for point in tried[1:]] == [0, 1, 2, 3]


def test_a_seed_gives_the_same_again_whatever_else_runs() -> None:
    row = range(1000)
    assert _sample(7).choose(row, 5) == _sample(7).choose(row, 5)
    assert _sample(7).choose(row, 5) != _sample(8).choose(row, 5)
    assert _sample(7).choose(row, 5) != _sample(7, "another").choose(row, 5)


def test_a_row_shorter_than_its_sample_is_tried_whole() -> None:
    assert _sample(1).choose([3, 1, 2], 5) == [3, 1, 2]


def test_tests_of_a_kind_count_once() -> None:
    totals: dict[str, int] = {}
    tried: list[int] = []
    for name in ("one", "two"):
        Points(name, 1, whole=False, totals=totals).each(_row(9, tried), rounds=2, least=9, kind="the same")
    assert tried.count(NEVER) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_too_few_points_are_a_failure(whole: bool) -> None:
    with pytest.raises(AssertionError, match="next to nothing was tried"):
        Points("a test", 1, whole).each(_row(3, []), rounds=2, least=4)


def test_a_sample_that_came_too_late_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="so nothing was tried"):
        _sample(1).each(lambda point: 50 if point == NEVER else 0, rounds=3, least=10)


def test_a_failure_names_its_point() -> None:
    def attempt(point: int) -> int:
        assert point != 3, "broken"
        return point

    with pytest.raises(AssertionError) as caught:
        Points("a test", 5, whole=True).each(attempt, rounds=1, least=1)
    assert caught.value.__notes__ == ["at point 3, again with: --full --point=3 (--seed=5)"]


def test_a_point_may_be_tried_alone() -> None:
    tried: list[int] = []
    Points("a test", 1, whole=False, only=17).each(_row(40, tried), rounds=3, least=40)
    assert tried == [17]
    with pytest.raises(AssertionError, match="nothing was tried"):
        Points("a test", 1, whole=False, only=41).each(_row(40, []), rounds=3, least=40)


def _cases(*options: str) -> list[str]:
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "--full", *options]
    done = subprocess.run(
        [*words, "tests/faults/test_network_kills.py"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return [line for line in done.stdout.splitlines() if "::test_a_qemu_or_keeper_killed" in line]


def test_of_a_sampled_test_some_cases_are_tried() -> None:
    every, some = _cases("--every"), _cases("--seed=1")
    assert len(some) == 8 < len(every)
    assert set(some) < set(every)
    assert _cases("--seed=1") == some != _cases("--seed=2")
