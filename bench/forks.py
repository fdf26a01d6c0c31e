"""Forks: of a running machine until its child answers, and twenty at once with what they take of the memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import insula
from bench.hand_fork import HandGuest, state_of
from bench.pairs import Pairs, interleave
from bench.residents import adopt_orphans, descendants, pss, reap
from bench.world import World, scratch

T = TypeVar("T")

SIZES = ("512M", "2G")
MEMORY_LIMIT = 1.2  # times what each takes by hand
_MANY = 20
_REST = 1.0  # seconds after which what a start needed for itself is given back
_numbers = itertools.count(1)


def of_running(world: World, size: str, n: int) -> Pairs:
    """From the request to fork a running machine until its child has run a program; the machine runs on. By hand: the best way to
    take a running machine's state, and the fork of that."""
    with world.machine("tiny", "--memory", size) as name, scratch() as place:
        machine, folder = insula.connect(world.home.root).get(name), world.home.machine(name)
        with HandGuest(place / "parent", folder) as parent:

            def hand() -> float:
                started = time.perf_counter()
                with HandGuest(place / f"child-{next(_numbers)}", folder, parent.snapshot()):
                    return time.perf_counter() - started

            return interleave(lambda: _until_answer(machine), hand, n)


def _until_answer(machine: insula.Machine) -> float:
    started = time.perf_counter()
    (child,) = machine.fork(name=f"{machine.name}-{next(_numbers)}")
    child.exec("true")
    took = time.perf_counter() - started
    child.delete(force=True)
    return took


@dataclass(frozen=True)
class Many:
    """Seconds until all of them had run a program, and what each takes of the memory then, in bytes."""

    seconds: Pairs
    memory: Pairs


def many(world: World, n: int) -> Many:
    """Twenty forks of an idle Debian, as many at a time as there are CPUs on both sides."""
    adopt_orphans()
    our_memory: list[float] = []
    hand_memory: list[float] = []
    with world.machine("debian") as name:
        machine, folder = insula.connect(world.home.root).get(name), world.home.machine(name)
        origin = machine.snapshot("bench")
        state = state_of(folder, "bench")

        def ours() -> float:
            before, started = descendants(), time.perf_counter()
            children = origin.fork(_MANY, name=f"{name}-{next(_numbers)}-{{n}}")
            _side_by_side(lambda child: child.exec("true"), children)
            took = time.perf_counter() - started
            our_memory.append(_each(before))
            _side_by_side(lambda child: child.delete(force=True), children)
            reap()
            return took

        def hand() -> float:
            before, started = descendants(), time.perf_counter()
            with scratch() as place, contextlib.ExitStack() as alive:
                _side_by_side(
                    lambda number: alive.enter_context(HandGuest(place / str(number), folder, state, network=True)), range(_MANY)
                )
                took = time.perf_counter() - started
                hand_memory.append(_each(before))
            return took

        seconds = interleave(ours, hand, n, warm=0)
    return Many(seconds, Pairs(tuple(our_memory), tuple(hand_memory)))


def _side_by_side(work: Callable[[T], object], things: Iterable[T]) -> None:
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(work, things))


def _each(before: set[int]) -> float:
    """Bytes that each takes, with all its processes: those that were not there ``before``."""
    time.sleep(_REST)
    return sum(pss(pid) for pid in descendants() - before) / _MANY
