"""Neighbours that are noisy, for real: who is named, who is not, and what the others get back. Only relations are asserted,
between machines in the same seconds, or of one machine before and after."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.framework.neighbours import Crowd, crowd

pytestmark = [pytest.mark.full, pytest.mark.root, pytest.mark.guest, pytest.mark.limit(1800)]

TRIALS = 20
SEED = 20251121
_LOOKS = 25  # until one that is noisy must be named
_QUIET = 8  # in which nobody may be


@pytest.fixture(scope="module")
def neighbours(home: Path, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    with crowd(home, tiny, tmp_path_factory.mktemp("crowd")) as found:
        yield found


@pytest.fixture(autouse=True)
def calm(neighbours: Crowd) -> Iterator[None]:
    yield
    neighbours.calm()


def _named(neighbours: Crowd, looks: int) -> set[tuple[str, str]]:
    """Whom the guard names, and for what; it stops at the first."""
    with neighbours.guard("--dry-run") as guard:
        for look in itertools.islice(guard, looks):
            if found := {(each["cause"], each["resource"]) for each in look["disturbances"] if each["proven"]}:
                return found
    return set()


def _others_have_the_host(neighbours: Crowd) -> bool:
    """Whether programs beside the machines take most of the CPUs these want: then the guard rightly blames nobody."""
    machines = neighbours.usage(2.0).values()
    used, waiting = (sum(machine["cpu"][word] for machine in machines) for word in ("used", "waiting"))
    return bool(used < 1.0 and waiting >= used)


def _disturb(neighbours: Crowd, kind: str, noisy: str, victim: str, chance: random.Random) -> None:
    if kind == "cpu":
        neighbours.load(victim, "spin")
        neighbours.load(noisy, "spin", chance.randint(4, 6))
    elif kind == "disk":
        neighbours.load(victim, "read")
        neighbours.load(noisy, "gulp", chance.randint(6, 10))
    else:
        neighbours.load(noisy, "flood", chance.randint(2, 3), peer=victim)


def test_the_noisy_one_is_named(neighbours: Crowd) -> None:
    chance = random.Random(SEED)
    wrong = []
    for trial in range(TRIALS):
        noisy, victim, other = chance.sample(list(neighbours.names), 3)
        kind = ("cpu", "disk", "network")[trial % 3]
        neighbours.load(other, chance.choice(["breathe", "sip"]))
        _disturb(neighbours, kind, noisy, victim, chance)
        while not (named := _named(neighbours, _LOOKS)) and _others_have_the_host(neighbours):
            pass  # that was no trial
        neighbours.calm()
        if {cause for cause, _ in named} != {noisy} or (kind != "network" and kind not in {word for _, word in named}):
            wrong.append((trial, kind, noisy, victim, named))
    print(f"named rightly: {TRIALS - len(wrong)} of {TRIALS}")
    assert len(wrong) <= TRIALS // 20, wrong


def test_nobody_is_named_where_all_is_quiet(neighbours: Crowd) -> None:
    chance = random.Random(SEED + 1)
    named = []
    for trial in range(TRIALS):
        for name in neighbours.names:
            load = chance.choice(["breathe", "sip", "ping", ""])
            if load:
                neighbours.load(name, load, peer=chance.choice([other for other in neighbours.names if other != name]))
        named += [(trial, each) for each in _named(neighbours, _QUIET)]
        neighbours.calm()
    assert named == []


def _grown(neighbours: Crowd, looks: int, read: Any) -> dict[str, float]:
    """By how much a counter of each machine grew, per second of the guard's own clock, which looks once a second."""
    before = neighbours.usage()
    with neighbours.guard("--dry-run") as guard:
        times = [look["at"] for look in itertools.islice(guard, looks)]
    after = neighbours.usage()
    return {name: (read(after[name]) - read(before[name])) / (times[-1] - times[0]) for name in neighbours.names}


def _under_guard(neighbours: Crowd, looks: int, read: Any, noisy: str) -> dict[str, float]:
    """The same, from the moment it holds down who is noisy."""
    with neighbours.guard() as guard:
        held = next(look["held"] for look in guard if look["held"])
        assert set(held) == {noisy}, held
        before, begun = neighbours.usage(), next(guard)["at"]
        for look in itertools.islice(guard, looks):
            ended = look["at"]
        after = neighbours.usage()
    assert not neighbours.insula("events", noisy).count(b"let-go") < 1, "it is let go at the end"
    return {name: (read(after[name]) - read(before[name])) / (ended - begun) for name in neighbours.names}


def test_who_reads_little_by_little_keeps_half_of_a_slow_disk_of_its_own(neighbours: Crowd) -> None:
    noisy, victim, _ = neighbours.names

    def reads(machine: dict[str, Any]) -> float:
        return float(machine["disk"]["reads"])

    neighbours.load(victim, "read")
    alone = _grown(neighbours, 6, reads)[victim]
    neighbours.load(noisy, "gulp", 8)
    disturbed = _grown(neighbours, 6, reads)[victim]
    guarded = _under_guard(neighbours, 40, reads, noisy)[victim]
    print(f"reads a second: {alone:.0f} alone, {disturbed:.0f} disturbed, {guarded:.0f} under the guard")
    assert disturbed < 0.2 * alone
    assert guarded >= 0.5 * alone


def test_who_computes_gets_its_part_back(neighbours: Crowd) -> None:
    noisy, victim, _ = neighbours.names

    def time(machine: dict[str, Any]) -> float:
        return float(machine["cpu"]["time"])

    neighbours.load(victim, "spin", 2)
    neighbours.load(noisy, "spin", 6)
    disturbed = _grown(neighbours, 6, time)
    guarded = _under_guard(neighbours, 20, time, noisy)
    before, after = (each[victim] / (each[victim] + each[noisy]) for each in (disturbed, guarded))
    print(f"part of the CPU time: {before:.0%} disturbed, {after:.0%} under the guard")
    assert after >= 1.2 * before


def test_a_flood_is_dammed(neighbours: Crowd) -> None:
    noisy, victim, _ = neighbours.names

    def drops(machine: dict[str, Any]) -> float:
        return float(machine["network"]["drops"])

    neighbours.load(noisy, "flood", 3, peer=victim)
    disturbed = _grown(neighbours, 6, drops)[victim]
    guarded = _under_guard(neighbours, 20, drops, noisy)[victim]
    print(f"packets dropped a second: {disturbed:.0f} disturbed, {guarded:.0f} under the guard")
    assert guarded <= 0.5 * disturbed
