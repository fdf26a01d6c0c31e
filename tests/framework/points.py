"""Which points of a long row a test tries, say at which of a command's changes it is killed: all in short tests; in long ones
(marked ``full``) a sample, or with ``--every`` all.

A sample is one point of each of some equal parts of the row, chosen by a seed and the test's name: it is another each time,
it does not depend on which other tests run, and ``--seed`` gives it again. Of a test marked ``sampled(count)`` so many of its
cases are tried.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import pytest
from xdist.workermanage import WorkerController

# A point that never comes: what is tried there is done to its end, and tells how many there are.
NEVER: Final = 1_000_000

_T = TypeVar("_T")
_totals = pytest.StashKey[dict[str, int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every", action="store_true", help="with --full: try every point of the long tests (many hours)")
    parser.addoption("--seed", type=int, help="with --full: try the points that a run with this seed tried")
    parser.addoption("--point", type=int, help="with --full: try only this point of each long test")


def pytest_configure(config: pytest.Config) -> None:
    handed: int | None = getattr(config, "workerinput", {}).get("seed")
    if handed is not None:
        config.option.seed = handed
    elif config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(1_000_000)
    config.stash[_totals] = {}


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """All processes that do the tests have the same seed."""
    node.workerinput["seed"] = node.config.option.seed


def pytest_report_header(config: pytest.Config) -> str | None:
    if not config.getoption("--full"):
        return None
    return "points: every one" if config.getoption("--every") else f"points: a sample, again with --seed={config.option.seed}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of what was asked for, and after all else was left out."""
    rows: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            rows.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left = set[pytest.Item]()
    for name, row in rows.items():
        marker = row[0].get_closest_marker("sampled")
        assert marker is not None
        left |= set(row) - set(points_of(config, name, long=True).choose(row, marker.args[0]))
    if left:
        config.hook.pytest_deselected(items=list(left))
        items[:] = [item for item in items if item not in left]


@pytest.fixture
def points(request: pytest.FixtureRequest) -> Points:
    """The points of this test."""
    return points_of(request.config, request.node.nodeid, long=request.node.get_closest_marker("full") is not None)


def points_of(config: pytest.Config, name: str, *, long: bool) -> Points:
    """The points of a test ``name``, or of what decides which tests there are."""
    return Points(
        name=name,
        seed=config.option.seed,
        whole=not long or config.getoption("--every"),
        only=config.getoption("--point"),
        totals=config.stash[_totals],
    )


@dataclass(frozen=True)
class Points:
    """``whole``: all are tried. ``only``: no other point of a sample is. ``totals``: how many there are of a kind, once known."""

    name: str
    seed: int
    whole: bool
    only: int | None = None
    totals: dict[str, int] = field(default_factory=dict)

    def each(self, attempt: Callable[[int], int], *, rounds: int, least: int, kind: str = "") -> None:
        """Try points, counted from 1. ``attempt`` does what is tried, with the fault at its point, checks, and says how many
        points came; fewer than its own: all was done before. ``rounds``: the size of a sample; ``least``: the fewest points there
        must be; ``kind``: tests that name the same have as many.
        """
        if not self.whole:
            self._sample(attempt, rounds, least, kind or self.name)
            return
        point = 1
        while self._try(attempt, point) >= point:
            point += 1
        assert point - 1 >= least, f"there were {point - 1} points, so next to nothing was tried"

    def _sample(self, attempt: Callable[[int], int], rounds: int, least: int, kind: str) -> None:
        if self.only is not None:
            assert self._try(attempt, self.only) >= self.only, "all was done before that point came, so nothing was tried"
            return
        if kind not in self.totals:
            self.totals[kind] = self._try(attempt, NEVER)
        total = self.totals[kind]
        assert total >= least, f"there are {total} points, so next to nothing was tried"
        reached = [self._try(attempt, point) >= point for point in self.choose(range(1, total + 1), rounds)]
        assert any(reached), "all was done before any of the points came, so nothing was tried"

    def _try(self, attempt: Callable[[int], int], point: int) -> int:
        try:
            return attempt(point)
        except BaseException as failure:
            at = "with no fault at all" if point == NEVER else f"at point {point}, again with: --full --point={point}"
            failure.add_note(f"{at} (--seed={self.seed})")
            raise

    def choose(self, row: Sequence[_T], count: int) -> list[_T]:
        """A sample of a row that is known: at most ``count``, one of each of so many equal parts; all with ``--every``."""
        if self.whole or len(row) <= count:
            return list(row)
        chance = random.Random(f"{self.seed} {self.name}")
        bounds = [len(row) * part // count for part in range(count + 1)]
        return [row[chance.randrange(*part)] for part in itertools.pairwise(bounds)]

    def many(self, count: int, every: int) -> int:
        """How often something is done that has no end: ``count``, or ``every`` with ``--every``."""
        return every if self.whole else count
