"""The power of a host is cut. The host is one of our guests; QEMU logs every write and flush of its disk, so one run gives as
many instants as it had writes: at each of those tried the disk is rebuilt as it may be then, and Insula must keep its word on it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.power.aftermath import Instant, Rebuilt, check, start_all, worlds
from tests.faults.power.host import Doomed, run_until_the_end
from tests.faults.power.marks import read_marks
from tests.framework.points import Points
from tests.framework.write_log import Disk, WriteLog

pytestmark = [pytest.mark.full, pytest.mark.guest, pytest.mark.limit(1800)]


def choose(log: WriteLog, count: int, seed: int) -> list[Instant]:
    """About ``count`` instants, of all kinds, in their order."""
    chance = random.Random(seed)
    marks = list(read_marks(log))
    told = [number + 1 for number, mark in marks if mark["kind"] != "begin"]
    verbs = [number + 1 for number, mark in marks if mark["kind"] in ("done", "lives")]
    flushes = [number for number, request in enumerate(log.requests) if request.flush and number > marks[0][0]]
    anywhere = range(marks[0][0], len(log.requests))

    def some(positions: list[int] | range, part: float, share: float | None) -> list[Instant]:
        picked = chance.sample(positions, min(len(positions), round(count * part)))
        return [Instant(position, chance.random() if share is None else share, chance.randrange(1 << 30)) for position in picked]

    found = some(verbs, 0.25, 0.0)  # right after something was promised, all lost that no flush made sure
    found += some(told, 0.15, 0.0)
    found += some(flushes, 0.1, 0.0)  # just before a flush: as much is unsure as can be
    found += some(flushes, 0.2, None)  # and some of it is there, some is not
    found += some([number + 1 for number in flushes], 0.1, 0.0)  # just after one
    found += some(anywhere, 0.15, None)
    found += some(anywhere, 0.05, 1.0)
    return sorted(found, key=lambda instant: instant.position)


def replay(doomed: Doomed, folder: Path, host: Path, instants: list[Instant], log: WriteLog, *, start: bool) -> Iterator[str]:
    """What is wrong after each of ``instants``."""
    disk = Disk(log, shutil.copyfile(doomed.before, folder / "replayed.raw"))
    promised = worlds(log, {instant.position for instant in instants})
    position, world = next(promised)
    for instant in instants:
        while position < instant.position:
            position, world = next(promised)
        home = Rebuilt(disk, instant, folder, host).home
        faults = check(home, world)
        if start and not faults:
            faults = list(start_all(home))
        yield from (f"{instant}, {world.verb or 'no verb'} under way: {fault}" for fault in faults)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_promise_is_kept_whenever_the_power_goes(
    home: Path, tiny: str, name: str, tmp_path: Path, points: Points, seed: int
) -> None:
    doomed = run_until_the_end(home, tmp_path, name, seed=seed, steps=80, seconds=300)
    log = WriteLog(doomed.log)
    instants = choose(log, 120, seed)
    assert len(instants) >= 100, "the log was too short to be of use"
    instants = points.choose(instants, 24)
    faults = list(replay(doomed, tmp_path, home / "host", instants, log, start=True))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("fault", ["folders", "files", "flush"])
def test_a_host_that_is_careless_is_found_out(home: Path, tiny: str, name: str, tmp_path: Path, fault: str) -> None:
    """Its fsync does nothing to folders, or to files, or its guests' flushes are answered without being done."""
    doomed = run_until_the_end(home, tmp_path, name, seed=3, steps=20, seconds=120, fault=fault)
    log = WriteLog(doomed.log)
    assert next(replay(doomed, tmp_path, home / "host", choose(log, 60, 3), log, start=False), None), "nobody noticed"
